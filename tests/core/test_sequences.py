"""Confidence sequences cover at every look, only ever shrink, and close on a finite population."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import betaln, gammaln

from holdfast.core.errors import InputError
from holdfast.core.intervals import clopper_pearson
from holdfast.core.seeds import numpy_generator
from holdfast.core.sequences import BernsteinSequence, anytime_difference, anytime_mean, anytime_mean_path

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


@settings(max_examples=25)
@given(UNIT, st.sampled_from([1, 30]))
def test_it_only_ever_shrinks_and_lies_within_its_path(values, more):
    for population in (None, len(values) + more):
        looks = sorted({1, -(-len(values) // 3), -(-2 * len(values) // 3), len(values)})
        every = [anytime_mean(values[:n], population=population) for n in looks]
        for earlier, later in itertools.pairwise(every):
            assert min(earlier.low, later.value) - 1e-9 <= later.low <= later.value
            assert later.value <= later.high <= max(earlier.high, later.value) + 1e-9
        value, low, high = anytime_mean_path(values, population=population)
        assert np.all((low <= value) & (value <= high))
        assert low[-1] <= every[-1].low + 1e-9
        assert every[-1].high <= high[-1] + 1e-9


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 40))
def test_binary_path_nests_and_is_what_was_said_at_every_look(bits, more):
    values = np.array(bits)
    for population in (None, len(bits) + more):
        value, low, high = anytime_mean_path(values, population=population)
        assert np.all(low[1:] >= np.minimum(low[:-1], value[1:]) - 1e-12)
        assert np.all(high[1:] <= np.maximum(high[:-1], value[1:]) + 1e-12)
        for n in {1, len(bits) // 2, len(bits)} - {0}:
            said = anytime_mean(values[:n], population=population)
            assert (said.value, said.low, said.high) == pytest.approx((value[n - 1], low[n - 1], high[n - 1]))


def test_looks_pick_from_the_path():
    values = np.random.default_rng(2).random(50)
    full, some = anytime_mean_path(values), anytime_mean_path(values, np.array([1, 10, 50]))
    for whole, picked in zip(full, some):
        assert np.array_equal(whole[[0, 9, 49]], picked)
    with pytest.raises(InputError, match="looks"):
        anytime_mean_path(values, np.array([51]))


def test_binary_interval_is_the_set_of_shares_that_the_mixture_keeps():
    values = np.random.default_rng(0).random(60) < 0.8
    p = np.linspace(1e-6, 1 - 1e-6, 200_001)
    low, high = 0.0, 1.0
    for n in range(1, 61):
        k = values[:n].sum()
        wealth = betaln(k + 0.5, n - k + 0.5) - betaln(0.5, 0.5) - k * np.log(p) - (n - k) * np.log1p(-p)
        kept = p[wealth < np.log(20)]
        low, high = max(low, kept.min()), min(high, kept.max())
    estimate = anytime_mean(values)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-5)


def test_binary_interval_without_replacement_is_the_set_of_populations_kept():
    values, population = np.random.default_rng(1).random(25) < 0.6, 40

    def log_choose(a, b):
        return gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)

    kept = set(range(population + 1))
    for n in range(1, 26):
        k = int(values[:n].sum())
        mixture = betaln(k + 0.5, n - k + 0.5) - betaln(0.5, 0.5)
        for ones in list(kept):
            if not k <= ones <= population - (n - k):
                kept.discard(ones)
                continue
            # One particular order of the n draws is one of choose(n, k) equally likely ones.
            counted = log_choose(ones, k) + log_choose(population - ones, n - k) - log_choose(population, n)
            if mixture - (counted - log_choose(n, k)) >= np.log(20):
                kept.discard(ones)
    estimate = anytime_mean(values, population=population)
    assert (estimate.low, estimate.high) == pytest.approx((min(kept) / population, max(kept) / population), abs=1e-12)


def test_betting_ends_are_where_the_wealth_reaches_its_threshold():
    x = np.random.default_rng(2).beta(8, 2, 80)
    estimate = anytime_mean(x)

    def best_wealth(m, sign):
        wealth = best = 0.0
        variance, total, squares = 0.25, 0.5, 0.25
        for s, value in enumerate(x, start=1):
            bet = np.sqrt(2 * np.log(40) / (variance * s * np.log(1 + s)))
            wealth += np.log(1 + sign * min(bet, 0.5 / (m if sign > 0 else 1 - m)) * (value - m))
            best = max(best, wealth)
            total += value
            squares += (value - total / (s + 1)) ** 2
            variance = squares / (s + 1)
        return best

    assert best_wealth(estimate.low, 1) >= np.log(40) > best_wealth(estimate.low + 1e-9, 1)
    assert best_wealth(estimate.high, -1) >= np.log(40) > best_wealth(estimate.high - 1e-9, -1)


def test_binary_draws_without_replacement_cover_their_population():
    population = np.arange(400) < 280
    rate = misses(lambda rng: rng.permutation(population)[:350], 0.7, 300, level=0.9, population=400)
    assert rate <= 0.1 + 3 * np.sqrt(0.09 / 300)


def test_an_order_that_is_not_random_still_reports_the_mean():
    turn = np.r_[np.ones(500, dtype=bool), np.zeros(5000, dtype=bool)]
    for values in (turn, turn.astype(float)):
        estimate = anytime_mean(values)
        assert estimate.value == estimate.low == pytest.approx(500 / 5500)
        assert estimate.high > 0.98


def test_it_shrinks_at_every_look_when_nothing_odd_happens():
    values = np.random.default_rng(0).random(400) < 0.8
    for kind in (bool, float):
        _, low, high = anytime_mean_path(values.astype(kind))
        assert np.all(np.diff(low) >= 0)
        assert np.all(np.diff(high) <= 0)


def test_ten_thousand_values_are_quick():
    values = np.random.default_rng(6).random(10_000) < 0.9

    def best_of_three(array):
        times = []
        for _ in range(3):
            start = time.process_time()
            anytime_mean(array)
            times.append(time.process_time() - start)
        return min(times)

    assert best_of_three(values) < 0.05
    assert best_of_three(values.astype(float)) < 0.5


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


@pytest.mark.parametrize("kind", ["coin", "narrow", "skew"])
def test_bernstein_sequence_covers_at_all_looks_together(kind):
    # 400 streams, both ends at 0.05: were the true error 0.1, more than 61 misses would have probability below 0.1 %.
    rng = numpy_generator(0, "bernstein", kind)
    draw, mean = {
        "coin": (lambda n: (rng.random((n, 400)) < 0.3).astype(float), 0.3),
        "narrow": (lambda n: 0.4 + 0.2 * rng.random((n, 400)), 0.5),
        "skew": (lambda n: rng.beta(0.1, 0.9, (n, 400)), 0.1),
    }[kind]
    sequence = BernsteinSequence(400, 0.05)
    outside = np.zeros(400, dtype=bool)
    for size in (1, 2, 3, 10, 50, 200, 1000):
        sequence.add(draw(size))
        outside |= (sequence.low > mean) | (sequence.high < mean)
    assert outside.sum() <= 61
    assert (sequence.high - sequence.low).mean() < (0.03 if kind == "narrow" else 0.13)


def test_bernstein_sequence_does_not_depend_on_how_values_are_handed_over():
    values = numpy_generator(0, "bernstein", "parts").random((500, 3))
    whole, parts = BernsteinSequence(3, 0.01), BernsteinSequence(3, 0.01)
    for value in values:
        whole.add(value[None])
    for part in np.split(values, [1, 7, 300]):
        parts.add(part)
    # Fewer looks keep fewer extremes, so the ends after the last value are compared, not the tightest so far.
    assert whole.n == parts.n == 500
    assert (parts.low <= whole.low + 1e-12).all()
    assert (parts.high >= whole.high - 1e-12).all()
    np.testing.assert_allclose(parts.high - parts.low, whole.high - whole.low, rtol=0.2)


def test_bernstein_sequence_refuses_values_it_has_no_theory_for():
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        BernsteinSequence(1, 0.05).add(np.array([[1.5]]))
    with pytest.raises(InputError, match="stream"):
        BernsteinSequence(0, 0.05)
