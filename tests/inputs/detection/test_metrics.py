"""Detection metrics: brute-force identities, agreement with scikit-learn, and intervals that cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from holdfast.core.errors import InputError
from holdfast.inputs.detection import metrics

small = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12)


@given(small, small)
def test_auroc_counts_pairs_with_ties_as_half(a, b):
    pairs = np.subtract.outer(np.array(a), np.array(b))
    estimate = metrics.auroc(a, b)
    np.testing.assert_allclose(estimate.value, np.mean((pairs > 0) + 0.5 * (pairs == 0)), atol=1e-12)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@given(small, small)
def test_exchanging_the_sets_mirrors_the_interval(a, b):
    forward, backward = metrics.auroc(a, b), metrics.auroc(b, a).complement()
    np.testing.assert_allclose([forward.low, forward.high], [backward.low, backward.high], atol=1e-9)


def test_delong_covers_the_true_auroc():
    generator = np.random.default_rng(0)
    truth = norm.cdf(1.2 / np.sqrt(2))
    runs = 600
    estimates = [metrics.auroc(generator.normal(1.2, 1, 60), generator.normal(0, 1, 40)) for _ in range(runs)]
    covered = np.mean([e.low <= truth <= e.high for e in estimates])
    assert 0.92 <= covered <= 0.98


def test_perfect_separation_is_not_certainty():
    estimate = metrics.auroc(np.arange(10.0) + 100, np.arange(20.0))
    assert estimate.value == 1
    np.testing.assert_allclose(estimate.low, 0.025 ** (1 / 10))
    assert metrics.auroc_difference(([2.0, 3.0],) * 2, ([0.0, 1.0],) * 2).width > 0.5


@pytest.mark.parametrize("few", [1, 2, 3, 5])
def test_auroc_covers_with_few_scores_in_a_set(few):
    generator = np.random.default_rng(few)
    truth = norm.cdf(1 / np.sqrt(2))
    estimates = [metrics.auroc(generator.normal(0, 1, 100), generator.normal(-1, 1, few)) for _ in range(400)]
    assert np.mean([e.low <= truth <= e.high for e in estimates]) >= 0.93


def test_a_difference_of_aurocs_is_not_certain_with_one_score_in_a_set():
    typical = np.arange(20.0)
    assert metrics.auroc_difference((typical, -typical), ([5.5], [5.5])).width > 1


def test_no_metric_is_certain_where_the_sets_separate():
    typical, other = np.arange(5.0) + 10, np.arange(5.0)
    assert metrics.fpr_at_tpr(typical, other).high == 1  # five scores do not bound their own 5 % quantile
    share = 1 - 0.025**0.2
    for positive in ("typical", "other"):
        np.testing.assert_allclose(metrics.aupr(typical, other, positive=positive).low, 1 - share)
    np.testing.assert_allclose(metrics.detection_accuracy(typical, other).low, 1 - share / np.sqrt(2))
    many = metrics.fpr_at_tpr(np.arange(2000.0) + 100, np.arange(40.0), resamples=4000)
    np.testing.assert_allclose(many.high, 1 - 0.025 ** (1 / 40), atol=0.02)


@pytest.mark.parametrize(("typical", "other", "rate"), [(50, 50, 0.02), (20, 200, 0.2), (400, 100, 0.02)])
def test_fpr_covers_the_rate_at_the_true_threshold(typical, other, rate):
    generator = np.random.default_rng(3)
    shift = norm.isf(rate) + norm.ppf(0.95)
    estimates = [
        metrics.fpr_at_tpr(generator.normal(shift, 1, typical), generator.normal(0, 1, other)) for _ in range(300)
    ]
    assert np.mean([e.low <= rate <= e.high for e in estimates]) >= 0.93


def test_aupr_and_accuracy_cover_near_one():
    generator = np.random.default_rng(4)
    accuracy = norm.cdf(3.0 / 2)
    precision = metrics.aupr(generator.normal(3, 1, 100_000), generator.normal(0, 1, 100_000), resamples=1).value
    covered = []
    for _ in range(60):
        a, b = generator.normal(3, 1, 20), generator.normal(0, 1, 20)
        found = metrics.aupr(a, b, resamples=25), metrics.detection_accuracy(a, b, resamples=25)
        covered.append([found[0].low <= precision <= found[0].high, found[1].low <= accuracy <= found[1].high])
    assert (np.mean(covered, axis=0) >= 0.93).all()


def test_agrees_with_scikit_learn():
    generator = np.random.default_rng(1)
    a, b = generator.normal(1, 1, 300), generator.normal(0, 2, 200)
    truth, score = np.repeat([1, 0], [300, 200]), np.concatenate([a, b])
    np.testing.assert_allclose(metrics.auroc(a, b).value, roc_auc_score(truth, score), atol=1e-12)
    fpr, tpr, _ = roc_curve(truth, score, drop_intermediate=False)
    np.testing.assert_allclose(metrics.fpr_at_tpr(a, b, resamples=20).value, fpr[tpr >= 0.95].min())
    np.testing.assert_allclose(metrics.detection_accuracy(a, b, resamples=20).value, ((tpr + 1 - fpr) / 2).max())


def test_paired_interval_is_narrower_than_independent_ones():
    generator = np.random.default_rng(2)
    a, b = generator.normal(1, 1, 400), generator.normal(0, 1, 400)
    a_near, b_near = a + generator.normal(0, 0.3, 400), b + generator.normal(0, 0.3, 400)
    difference = metrics.auroc_difference((a, a_near), (b, b_near))
    np.testing.assert_allclose(difference.value, metrics.auroc(a, b).value - metrics.auroc(a_near, b_near).value)
    assert difference.width < 0.6 * (metrics.auroc(a, b).width + metrics.auroc(a_near, b_near).width)
    same = metrics.paired_difference(metrics.false_positive_rate, (a, b), (a, b), resamples=50)
    assert (same.low, same.high) == (0, 0)
    fpr = metrics.paired_difference(metrics.false_positive_rate, (a, b), (a_near, b_near), resamples=200)
    assert fpr.low <= fpr.value <= fpr.high


def test_aupr_of_a_blind_score_is_the_base_rate():
    for positive, rate in (("typical", 0.25), ("other", 0.75)):
        estimate = metrics.aupr(np.zeros(10), np.zeros(30), positive=positive, resamples=20)
        np.testing.assert_allclose(estimate.value, rate)


def test_fpr_threshold_comes_from_the_typical_set():
    typical = np.arange(100.0)
    assert metrics.false_positive_rate(typical, np.array([4.9, 5.0, 6.0]), 0.95) == 2 / 3


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.auroc([], [1.0]),
        lambda: metrics.auroc([np.nan], [1.0]),
        lambda: metrics.fpr_at_tpr([1.0], [1.0], tpr=0.0),
        lambda: metrics.aupr([1.0], [1.0], positive="in"),
        lambda: metrics.auroc_difference(([1.0], [1.0, 2.0]), ([1.0], [1.0])),
        lambda: metrics.paired_difference(metrics.false_positive_rate, ([1.0], [1.0]), ([1.0, 2.0], [1.0])),
    ],
)
def test_bad_scores_are_refused(call):
    with pytest.raises(InputError):
        call()
