"""Stopping rules against their guarantee, and the bounds they look at against exact ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import betaln, ndtr

from holdfast.core.errors import InputError
from holdfast.core.intervals import clopper_pearson_lower
from holdfast.core.seeds import numpy_generator
from holdfast.core.sequences import mixture_ends
from holdfast.inputs.smoothing.noise import Gaussian
from holdfast.inputs.smoothing.sampling import FIRST_LOOK, GROWTH
from holdfast.inputs.smoothing.stopping import FixedN, Planned, Precision, RadiusTarget, Reach
from holdfast.inputs.smoothing.votes import VoteCounts, expected_lower

UNIT = Gaussian(1.0)


def expected(votes, n0, alpha):
    return lambda sizes: UNIT.radius(expected_lower(votes, n0, sizes, alpha))


def simulate(rule, p, alpha, cap, runs, stream, n0=50):
    """Lower bounds and draws of `runs` inputs whose label has probability p, drawn as the samplers draw."""
    rng = numpy_generator(0, "stopping", stream)
    counts, rows = VoteCounts(runs, alpha, rule.sequential), np.arange(runs)
    chosen = rng.binomial(n0, p, runs)
    caps = [rule.plan(expected(count, n0, alpha), cap) for count in chosen.tolist()]
    counts.start(rows, np.array(caps), chosen, n0)
    while len(rows):
        left = counts.cap[rows] - counts.draws[rows]
        step = np.minimum(np.maximum(counts.draws[rows] // GROWTH, FIRST_LOOK), left) if rule.sequential else left
        counts.add(rows, step, rng.binomial(step, p))
        rows = rows[counts.draws[rows] < counts.cap[rows]]
        reach = Reach(UNIT.radius(counts.lower[rows]), UNIT.radius(counts.eventual(rows)))
        rows = rows[~rule.done(reach, UNIT)]
    return counts.lower, counts.draws


@pytest.mark.parametrize("rule", [RadiusTarget(0.0), RadiusTarget(0.4), Precision(0.3), Planned(0.9), FixedN()])
@pytest.mark.parametrize("p", [0.5, 0.6, 0.9, 0.999])
def test_stopping_early_keeps_the_error_below_alpha(rule, p):
    # 1000 runs at alpha = 0.1: were the true error 0.1, more than 130 misses would have probability below 0.1 %.
    lower, _ = simulate(rule, p, 0.1, 2000, 1000, f"{rule} {p}")
    assert (lower > p).sum() <= 130


def test_looking_at_the_exact_bound_as_often_would_break_the_guarantee():
    # The test above has teeth: with Clopper-Pearson at every look the error passes alpha by far.
    rng = numpy_generator(0, "naive")
    misses, p = 0, 0.6
    for _ in range(300):
        draws = np.cumsum(rng.random(2000) < p)
        looks = np.unique(np.geomspace(16, 2000, 20).astype(int))
        misses += any(clopper_pearson_lower(int(draws[n - 1]), int(n), 0.1) > p for n in looks)
    assert misses > 60


@pytest.mark.parametrize("target", [0.25, 1.0])
def test_decisions_are_those_of_the_exact_bound_after_all_draws(target):
    wanted = float(ndtr(target))
    for gap in (-0.05, 0.05):
        p = wanted + gap
        lower, draws = simulate(RadiusTarget(target), p, 1e-3, 50_000, 200, f"{target} {gap}")
        assert ((UNIT.radius(lower) >= target) == (gap > 0)).all()
        assert draws.mean() < 50_000 / 10


def test_precision_is_what_it_says_where_it_stops_early():
    width = 0.2
    lower, draws = simulate(Precision(width), 0.8, 1e-3, 50_000, 200, "precision")
    assert (draws < 50_000).all()
    fixed = clopper_pearson_lower(40_000, 50_000, 1e-3)
    assert (UNIT.radius(lower) >= UNIT.radius(np.array([fixed])) - width).all()


def test_a_saturated_label_is_worth_nearly_as_much_after_all_draws():
    lower, draws = simulate(Precision(1e-6), 1.0, 1e-3, 100_000, 1, "saturated")
    assert draws[0] == 100_000
    exact = UNIT.radius(np.array([1e-3 ** (1 / 100_000)]))
    assert 0.99 < (UNIT.radius(lower) / exact)[0] < 1


def test_a_label_that_cannot_win_is_given_up_soon():
    for rule in (RadiusTarget(0.0), Precision(0.1), Planned()):
        lower, draws = simulate(rule, 0.3, 1e-3, 100_000, 100, "hopeless")
        assert (lower < 0.5).all()
        assert draws.max() <= 500


def test_planned_asks_for_what_the_arithmetic_says():
    size = Planned(0.98).plan(expected(90, 100, 1e-3), 100_000)
    share = 90.5 / 101
    radius = [UNIT.radius(np.array([clopper_pearson_lower(round(n * share), n, 1e-3)]))[0] for n in (size, 100_000)]
    assert radius[0] / radius[1] == pytest.approx(0.98, abs=0.002)
    assert size / 100_000 < 0.25
    assert Planned(1.0).plan(expected(90, 100, 1e-3), 1000) == 1000


@pytest.mark.parametrize(("k", "n"), [(0, 50), (50, 50), (40, 50), (999, 1000)])
@pytest.mark.parametrize("prior", [(0.5, 0.5), (20.5, 5.5)])
def test_mixture_ends_hold_the_share_and_stand_where_the_wealth_is_one_over_alpha(k, n, prior):
    (low,), (high,) = mixture_ends(np.array([k]), np.array([n]), 0.01, prior)
    assert low <= k / n <= high
    assert low <= clopper_pearson_lower(k, n, 0.01)
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:  # nearer to 1 the end itself is rounded
            log_wealth = betaln(k + prior[0], n - k + prior[1]) - betaln(*prior)
            log_wealth -= k * math.log(end) + (n - k) * math.log1p(-end)
            assert log_wealth == pytest.approx(math.log(100), abs=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RadiusTarget(-1.0), "radius"),
        (lambda: Precision(0.0), "width"),
        (lambda: Planned(0.0), "share"),
        (lambda: mixture_ends(np.array([3]), np.array([2]), 0.1), "ones"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()
