"""Confidence sequences cover at every look, only ever shrink, and close on a finite population."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from holdfast.core.errors import InputError
from holdfast.core.intervals import clopper_pearson
from holdfast.core.sequences import anytime_difference, anytime_mean, anytime_mean_path

UNIT = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1))


def misses(draw, truth, runs, **options):
    """Share of runs in which the running intersection (so: any look) excludes the truth."""
    missed = 0
    for run in range(runs):
        estimate = anytime_mean(draw(np.random.default_rng(run)), **options)
        missed += not estimate.low <= truth <= estimate.high
    return missed / runs


@pytest.mark.parametrize(("p", "kind"), [(0.9, bool), (0.5, bool), (0.9, float), (0.02, float)])
def test_no_look_excludes_the_truth_more_often_than_it_may(p, kind):
    rate = misses(lambda rng: (rng.random(200) < p).astype(kind), p, 400, level=0.9)
    assert rate <= 0.1 + 3 * np.sqrt(0.09 / 400)


def test_an_interval_for_a_fixed_size_does_not_survive_peeking():
    missed = 0
    for run in range(200):
        hits = np.cumsum(np.random.default_rng(run).random(200) < 0.5)
        looks = [clopper_pearson(int(hits[n - 1]), n, level=0.9) for n in range(5, 201, 5)]
        missed += not all(look.low <= 0.5 <= look.high for look in looks)
    assert missed / 200 > 0.2


def test_draws_without_replacement_cover_their_population():
    population = np.random.default_rng(0).beta(2, 5, 150)
    rate = misses(lambda rng: rng.permutation(population)[:100], population.mean(), 300, level=0.9, population=150)
    assert rate <= 0.1 + 3 * np.sqrt(0.09 / 300)


@given(UNIT)
def test_a_whole_population_leaves_no_doubt(values):
    estimate = anytime_mean(values, population=len(values))
    assert estimate.low == estimate.high == pytest.approx(values.mean())


@given(UNIT, st.integers(0, 40))
def test_without_replacement_no_mean_is_kept_that_the_rest_cannot_reach(values, more):
    size = len(values) + more
    estimate = anytime_mean(values, population=size)
    assert estimate.low >= values.sum() / size - 1e-9
    assert estimate.high <= (values.sum() + more) / size + 1e-9


@given(UNIT)
def test_it_only_ever_shrinks_up_to_the_reported_mean(values):
    looks = np.arange(1, len(values) + 1)
    value, low, high = anytime_mean_path(values, looks)
    for k in range(1, len(looks)):
        assert low[k] >= min(low[k - 1], value[k]) - 1e-12
        assert high[k] <= max(high[k - 1], value[k]) + 1e-12


@given(UNIT)
def test_mirror_images_have_mirrored_intervals(values):
    straight, mirrored = anytime_mean(values), anytime_mean(1 - values)
    assert mirrored.low == pytest.approx(1 - straight.high, abs=1e-9)
    assert mirrored.high == pytest.approx(1 - straight.low, abs=1e-9)


@pytest.mark.parametrize("kind", [bool, float])
@pytest.mark.parametrize("n", [1, 2, 30, 1000])
def test_streaks_bound_the_unseen_side_only(n, kind):
    ones, zeros = anytime_mean(np.ones(n, dtype=kind)), anytime_mean(np.zeros(n, dtype=kind))
    assert (ones.value, ones.high) == (1, 1)
    assert (zeros.value, zeros.low) == (0, 0)
    assert ones.low == pytest.approx(1 - zeros.high, abs=1e-9)
    assert ones.low < 1
    if n == 1000:
        assert ones.low > 0.985


def test_the_price_of_peeking_is_small():
    values = np.random.default_rng(1).random(2000) < 0.8
    fixed = clopper_pearson(int(values.sum()), len(values))
    assert fixed.width < anytime_mean(values).width < 2 * fixed.width
    assert fixed.width < anytime_mean(values.astype(float)).width < 2 * fixed.width


def test_differences_of_equal_pairs_are_zero_and_bounds_scale():
    a = np.random.default_rng(0).random(400)
    assert anytime_difference(a, a).value == 0
    assert anytime_difference(a, a).low < 0 < anytime_difference(a, a).high
    b = np.clip(a + 0.3, 0, 1)
    assert anytime_difference(a, b).low > 0.1
    stretched = anytime_mean(10 * a - 5, bounds=(-5.0, 5.0))
    plain = anytime_mean(a)
    assert stretched.low == pytest.approx(10 * plain.low - 5, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (np.array([]), {}, "at least one"),
        (np.array([0.5, np.nan]), {}, "finite"),
        (np.array([0.5, 1.5]), {}, "lie in"),
        (np.array([0.5]), {"level": 1.0}, "level"),
        (np.array([0.5]), {"bounds": (1.0, 0.0)}, "bounds"),
        (np.array([0.5, 0.5]), {"population": 1}, "population"),
    ],
)
def test_bad_values_are_refused(values, options, words):
    with pytest.raises(InputError, match=words):
        anytime_mean(values, **options)
