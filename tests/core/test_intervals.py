"""Fixed-size intervals agree with SciPy where it has them, and cover where it does not."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from holdfast.core.errors import InputError
from holdfast.core.intervals import (
    bootstrap,
    clopper_pearson,
    clopper_pearson_lower,
    clopper_pearson_upper,
    difference_of_proportions,
    empirical_bernstein,
    fractional_clopper_pearson,
    mcnemar,
    paired_difference,
    weighted_clopper_pearson,
    wilson,
)

COUNTS = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, st.sampled_from([0.9, 0.95, 0.99]))
def test_proportions_agree_with_scipy(counts, level):
    k, n = counts
    for ours, method in [(clopper_pearson(k, n, level), "exact"), (wilson(k, n, level), "wilson")]:
        theirs = stats.binomtest(k, n).proportion_ci(level, method=method)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(COUNTS)
def test_fractional_and_weighted_intervals_are_the_exact_one_for_counts(counts):
    k, n = counts
    exact = clopper_pearson(k, n, 0.9)
    assert fractional_clopper_pearson(k, n, 0.9) == pytest.approx((exact.low, exact.high), abs=1e-12)
    weighted = weighted_clopper_pearson((np.arange(n) < k).astype(float), np.full(n, 1 / n), 0.9)
    assert (weighted.value, weighted.low, weighted.high) == pytest.approx((k / n, exact.low, exact.high), abs=1e-9)


def test_a_weighted_mean_of_rare_events_is_covered():
    generator, weights = np.random.default_rng(0), np.arange(1.0, 41) / np.arange(1.0, 41).sum()
    rates = np.linspace(0.0, 0.1, 40)
    found = [weighted_clopper_pearson((generator.random(40) < rates).astype(float), weights) for _ in range(1000)]
    assert np.mean([e.low <= weights @ rates <= e.high for e in found]) >= 0.95
    with pytest.raises(InputError, match="sum to 1"):
        weighted_clopper_pearson(np.zeros(2), np.ones(2))
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        weighted_clopper_pearson(np.array([2.0]), np.ones(1))


@given(COUNTS)
def test_one_sided_bounds_are_the_ends_of_the_two_sided_interval(counts):
    k, n = counts
    both = clopper_pearson(k, n, 0.9)
    ends = clopper_pearson_lower(k, n, 0.05), clopper_pearson_upper(k, n, 0.05)
    assert ends == pytest.approx((both.low, both.high), abs=1e-12)


def test_newcombe_matches_the_published_example():
    # Newcombe (1998), table II: 56/70 against 48/80, method 10: 0.0524 to 0.3339
    estimate = difference_of_proportions(48, 80, 56, 70)
    assert (estimate.low, estimate.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_paired_booleans_cover():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        a = rng.random(60) < 0.8
        b = np.where(rng.random(60) < 0.3, rng.random(60) < 0.5, a)
        estimate = paired_difference(a, b)
        covered += estimate.low <= 0.3 * (0.5 - 0.8) <= estimate.high
    assert covered / 600 > 0.93


def test_booleans_that_never_differ_still_leave_doubt():
    same = np.ones(20, dtype=bool)
    assert paired_difference(same, same).low < 0 < paired_difference(same, same).high


def test_paired_numbers_are_students_t():
    a, b = np.random.default_rng(0).normal(size=(2, 40))
    theirs = stats.ttest_rel(b, a).confidence_interval(0.95)
    ours = paired_difference(a, b)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert math.isinf(paired_difference(a[:1], b[:1]).high)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_test(pairs):
    a, b = np.array(pairs).T
    result = mcnemar(a, b)
    discordant = result.only_a + result.only_b
    expected = 1.0 if discordant == 0 else stats.binomtest(result.only_a, discordant).pvalue
    assert result.exact_p == pytest.approx(expected)
    assert result.mid_p <= result.exact_p


def test_empirical_bernstein_covers_any_distribution():
    rng = np.random.default_rng(0)
    for _ in range(200):
        estimate = empirical_bernstein((rng.random(100) < 0.03).astype(float), 0.95)
        assert estimate.low <= 0.03 <= estimate.high


def test_the_bootstrap_agrees_with_scipy_and_knows_the_mean():
    values = np.random.default_rng(0).exponential(size=150)
    ours = bootstrap(np.mean, values, generator=np.random.default_rng(1), resamples=4000)
    theirs = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(1), n_resamples=4000).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_a_vectorized_statistic_gives_the_same_as_a_loop():
    values = np.random.default_rng(0).exponential(size=80)
    loop = bootstrap(np.var, values, generator=np.random.default_rng(1), resamples=500)
    block = bootstrap(
        lambda x: x.var(axis=1), values, generator=np.random.default_rng(1), resamples=500, vectorized=True
    )
    assert (loop.low, loop.high) == pytest.approx((block.low, block.high))


def test_strata_keep_their_sizes():
    y = np.r_[np.zeros(3), np.ones(97)]
    estimate = bootstrap(np.mean, y, generator=np.random.default_rng(1), resamples=200, stratify=y)
    assert estimate.low == estimate.high == pytest.approx(0.97)


def test_mid_p_matches_the_published_example():
    # Bentur et al.'s airway data, discordant pairs 1 and 7, in Fagerland et al. (2013): exact 0.0703, mid-p 0.0391
    a, b = np.r_[np.ones(1), np.zeros(7)].astype(bool), np.r_[np.zeros(1), np.ones(7)].astype(bool)
    assert (mcnemar(a, b).exact_p, mcnemar(a, b).mid_p) == pytest.approx((0.0703, 0.0391), abs=5e-5)


def test_a_statistic_that_does_not_vary_has_no_width():
    assert bootstrap(lambda x: 3.0, np.arange(10.0), generator=np.random.default_rng(0)).width == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: clopper_pearson(3, 2),
        lambda: clopper_pearson(-1, 2),
        lambda: wilson(0, 0),
        lambda: wilson(1, 2, level=1.0),
        lambda: paired_difference(np.zeros(3), np.zeros(4)),
        lambda: paired_difference(np.array([np.nan]), np.zeros(1)),
        lambda: mcnemar(np.array([], dtype=bool), np.array([], dtype=bool)),
        lambda: empirical_bernstein(np.array([0.5])),
        lambda: empirical_bernstein(np.array([0.5, 2.0])),
        lambda: bootstrap(lambda x: np.nan, np.zeros(3), generator=np.random.default_rng(0)),
        lambda: bootstrap(np.mean, np.zeros(3), generator=np.random.default_rng(0), stratify=np.zeros(2)),
        lambda: bootstrap(np.mean, np.zeros(3), np.zeros(4), generator=np.random.default_rng(0)),
    ],
)
def test_bad_counts_and_shapes_are_refused(call):
    with pytest.raises(InputError):
        call()
