"""Margin smoothing: slopes against quadrature, radii against the truth, and what choosing a map may cost."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtri
from scipy.stats import norm

from holdfast.core.errors import InputError
from holdfast.core.intervals import empirical_bernstein_width
from holdfast.core.seeds import torch_generator
from holdfast.inputs.smoothing.gaussian import Smoothed
from holdfast.inputs.smoothing.lvm import (
    MarginSmoothed,
    bernstein_radius,
    best_of_maps_radius,
    default_maps,
    margin_radius,
    smoothed_lipschitz,
)
from holdfast.inputs.smoothing.margins import map_radii, moments
from holdfast.inputs.smoothing.simplex import SimplexMap
from holdfast.inputs.smoothing.stopping import Planned, Precision, RadiusTarget

HARD = SimplexMap("hardmax")


def base(x):
    """Two classes, logits linear in the first coordinate: the margin's slope is 2."""
    return torch.stack([-x[:, 0], x[:, 0]], 1)


def true_mean(one, at, sigma):
    """E s(F(at + e)) of class 1, by quadrature."""

    def value(e):
        return float(one(base(torch.tensor([[at + e]], dtype=torch.float64)))[0, 1])

    edges = sorted({-at, *(-at + turn / one.temperature / 2 for turn in (-1.0, 1.0)), -8 * sigma, 8 * sigma})
    parts = [quad(lambda e: value(e) * norm.pdf(e, scale=sigma), *ends) for ends in pairwise(edges)]
    return sum(part[0] for part in parts) + norm.sf(8 * sigma, scale=sigma)


def array(*values):
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize("lipschitz", [0.01, 0.5, 3.0, 40.0])
@pytest.mark.parametrize("sigma", [0.12, 1.0])
@pytest.mark.parametrize("span", [1.0, 2.0])
def test_the_smoothed_slope_is_that_of_a_ramp(lipschitz, sigma, span):
    # The ramp has slope L over a width span / L and is flat elsewhere; smoothed, it is steepest in the middle.
    half = span / (2 * lipschitz)
    steepest = quad(lambda u: lipschitz * norm.pdf(u, scale=sigma), -min(half, 9 * sigma), min(half, 9 * sigma))[0]
    assert smoothed_lipschitz(lipschitz, sigma, span) == pytest.approx(steepest, abs=1e-8)


def test_limits_of_the_smoothed_slope():
    assert smoothed_lipschitz(math.inf, 0.5) == pytest.approx(1 / (0.5 * math.sqrt(2 * math.pi)))
    assert smoothed_lipschitz(1e9, 0.5) == pytest.approx(smoothed_lipschitz(math.inf, 0.5))
    assert smoothed_lipschitz(1e-6, 0.5) == pytest.approx(1e-6)


@given(lower=st.floats(0, 1), upper=st.floats(0, 1), sigma=st.floats(0.05, 2))
@settings(max_examples=200, deadline=None)
def test_without_a_slope_the_linear_radius_never_wins(lower, upper, sigma):
    if not (lower > upper and lower < 1 and upper > 0):
        return
    by_quantile = sigma / 2 * (ndtri(lower) - ndtri(upper))
    assert float(margin_radius(array(lower), array(upper), sigma)[0]) == pytest.approx(by_quantile)
    assert by_quantile >= sigma * math.sqrt(math.pi / 2) * (lower - upper) - 1e-12


def test_a_small_slope_certifies_more():
    lower, upper = array(0.7), array(0.2)
    assert margin_radius(lower, upper, 0.2, 0.5)[0] == pytest.approx(0.5 / smoothed_lipschitz(0.5, 0.2, 2.0))
    assert margin_radius(lower, upper, 0.2, 0.5)[0] > 2 * margin_radius(lower, upper, 0.2)[0]


def test_ends_of_the_unit_interval_certify_nothing():
    assert margin_radius(array(0.0, -0.1), array(0.5, 0.2), 1.0).max() < 0
    assert margin_radius(array(0.9), array(1.0), 1.0)[0] < 0


def test_two_complementary_classes_get_the_radius_of_votes():
    # With values 0 and 1 and two classes, R = sigma Phi^-1(p_lower) for p_lower the empirical Bernstein end.
    mean, variance = array(0.1, 0.9), array(0.09, 0.09)
    radius, lower = bernstein_radius(mean, variance, 1000, 0.5, 0.01, 1)
    assert float(lower) == pytest.approx(0.9 - empirical_bernstein_width(0.09, 1000, 0.005))
    assert float(radius) == pytest.approx(0.5 * float(ndtri(lower)))


def test_the_variance_is_that_of_all_draws():
    logits = torch.randn(500, 4, generator=torch_generator(0, "moments"), dtype=torch.float64)
    maps = (SimplexMap("softmax", 2.0), SimplexMap("sparsemax", 0.7), HARD)
    found = moments(maps, logits)
    for place, one in enumerate(maps):
        values = one(logits).numpy()
        np.testing.assert_allclose(found.mean[place], values.mean(0), atol=1e-12)
        np.testing.assert_allclose(found.variance[place], values.var(0, ddof=1), atol=1e-12)


@pytest.mark.parametrize("rule", [None, RadiusTarget(0.4), Precision(0.3), Planned(0.9)])
@pytest.mark.parametrize("one", [SimplexMap("softmax", 1.0), SimplexMap("sparsemax", 2.0), HARD])
def test_a_map_certifies_no_more_than_the_distance_to_the_boundary(one, rule):
    # The smoothed answer of every map flips at 0, so that |x| is the true radius.
    smoothed = MarginSmoothed(base, 0.5, (one,), batch=2000)
    x = torch.tensor([[0.5], [-0.2], [1.2]])
    found = smoothed.certify(x, n0=100, n=4000, stop=rule, generator=torch_generator(0, "lvm", str(one)))
    assert found.label.tolist() == [1, 0, 1]
    assert (found.radius <= x.abs()[:, 0]).all()
    assert found.radius[0] > (0.2 if rule is None else 0.0)


def test_a_plan_never_asks_for_less_than_a_variance_takes():
    # Between two answers hardly anything is to be had, so that the plan is the smallest there is: 1 of 50 draws.
    found = MarginSmoothed(base, 0.5, (SimplexMap("softmax"),)).certify(torch.zeros(1, 1), n0=50, n=50, stop=Planned())
    assert found.n_used.item() == 52
    assert found.abstained.item()


def test_a_known_slope_certifies_what_the_quantiles_cannot():
    # Logits of slope 0.2 through softmax(1): nearly linear, hardly any variance.
    weak = MarginSmoothed(lambda x: 0.2 * base(x), 0.1, (SimplexMap("softmax"),))
    known = MarginSmoothed(weak.base, 0.1, weak.maps, lipschitz=0.2 * math.sqrt(2))
    x = torch.tensor([[1.0]])
    plain, better = (one.certify(x, n=5000, generator=torch_generator(0, "slope")) for one in (weak, known))
    assert 2 * plain.radius.item() < better.radius.item() <= 1.0


def test_choosing_a_map_is_within_reach_of_the_best_single_one():
    maps = (HARD, *(SimplexMap("softmax", t) for t in (0.5, 2.0, 8.0, 50.0)))
    x = torch.tensor([[0.8]])
    each = [
        MarginSmoothed(base, 1.0, (one,)).certify(x, n=5000, generator=torch_generator(0, "each")).radius.item()
        for one in maps
    ]
    chosen = MarginSmoothed(base, 1.0, maps).certify(x, n=5000, generator=torch_generator(0, "each"))
    union = MarginSmoothed(base, 1.0, maps, selection="union").certify(x, n=5000, generator=torch_generator(0, "each"))
    assert chosen.radius.item() > 0.9 * max(each)
    assert 0.85 * max(each) < union.radius.item() <= max(each)
    assert 0 <= chosen.map_index.item() < len(maps)


def test_hard_votes_alone_are_plain_smoothing():
    x = torch.tensor([[0.4], [0.05]])
    votes = Smoothed(base, 0.5, 2).certify(x, n0=100, n=3000, generator=torch_generator(0, "same"))
    hard = MarginSmoothed(base, 0.5, (HARD,)).certify(x, n0=100, n=3000, generator=torch_generator(0, "same"))
    assert torch.equal(votes.label, hard.label)
    assert torch.allclose(votes.radius, hard.radius)
    assert torch.allclose(votes.p_lower, hard.p_lower)


def test_a_certificate_with_a_chosen_map_is_wrong_no_more_often_than_alpha():
    # A truth next to nothing, the hardest case; at alpha = 0.2, more than 33 misses of 100 would have probability
    # below 0.1 % were the error 0.2.
    maps = (HARD, *(SimplexMap("sparsemax", float(t)) for t in np.geomspace(0.3, 20, 9)))
    for selection, rule in (("draws", None), ("union", None), ("draws", Precision(0.3))):
        smoothed = MarginSmoothed(base, 1.0, maps, batch=5000, selection=selection)
        found = smoothed.certify(
            torch.full((100, 1), 0.02), n0=60, n=60, alpha=0.2, stop=rule, generator=torch_generator(0, "coverage")
        )
        true = torch.where(found.label == 1, 0.02, 0.0)
        assert int((found.radius > true).sum()) <= 33


def test_the_best_of_many_maps_is_no_less_than_any_and_never_negative():
    logits = base(0.3 + torch.randn(300, 1, generator=torch_generator(0, "best"), dtype=torch.float64))
    maps = default_maps()
    best = best_of_maps_radius(maps, logits, 1, 1.0, 0.01)
    assert best == max(best_of_maps_radius((one,), logits, 1, 1.0, 0.01) for one in maps[:40])
    assert best_of_maps_radius(maps, logits, 0, 1.0, 0.01) == 0.0


def test_the_truth_by_quadrature_is_what_the_draws_estimate():
    one = SimplexMap("softmax", 3.0)
    logits = base(0.3 + 0.5 * torch.randn(40_000, 1, generator=torch_generator(0, "quad"), dtype=torch.float64))
    found = moments((one,), logits)
    assert found.mean[0, 1] == pytest.approx(true_mean(one, 0.3, 0.5), abs=0.006)


def test_temperatures_that_are_never_best_cost_nothing_but_time():
    logits = base(torch.randn(400, 1, generator=torch_generator(0, "many"), dtype=torch.float64) + 1)
    maps = default_maps()
    assert len(maps) == 205
    radius, lower = map_radii(maps, moments(maps, logits, 1.0), 5000, 1.0, 1e-3)
    assert np.isfinite(radius).all()
    assert ((lower > 0) & (lower < 1)).all()


@pytest.mark.usefixtures("unannotated")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MarginSmoothed(base, 0.0), "sigma"),
        (lambda: MarginSmoothed(base, 1.0, ()), "map"),
        (lambda: MarginSmoothed(base, 1.0, lipschitz=-1.0), "Lipschitz"),
        (lambda: MarginSmoothed(base, 1.0, selection="typo"), "draws, union"),
        (lambda: MarginSmoothed(base, 1.0).certify(torch.ones(1, 1), n=1), "n >= 2"),
        (lambda: MarginSmoothed(lambda x: x, 1.0).certify(torch.ones(1, 1), n=5), "2 classes"),
        (lambda: MarginSmoothed(lambda x: base(x) * torch.nan, 1.0).certify(torch.ones(1, 1), n=5), "NaN"),
        (lambda: MarginSmoothed(lambda x: base(x) / 0, 1.0).certify(torch.ones(1, 1), n=5), "finite"),
        (lambda: smoothed_lipschitz(0.0, 1.0), "positive"),
        (lambda: bernstein_radius(array(0.5, 0.5), array(0.1, 0.1), 1, 1.0, 0.1, 0), "n >= 2"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()
