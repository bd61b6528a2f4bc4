"""Conformal sets keep their promise exactly as often as the theory says, and agree with MAPIE where it has the same."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

from holdfast.analysis.conformal import (
    ConformalClassifier,
    ConformalRegressor,
    aps_scores,
    conformal_quantile,
    evaluate_sets,
)
from holdfast.core.errors import InputError


def examples(seed, n, classes=5, hard=0):
    """Probabilities and labels; examples of class `hard` get worse probabilities than they deserve."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    z = rng.normal(size=(n, classes))
    z[np.arange(n), y] += np.where(y == hard, 0.5, 2.5)
    p = np.exp(z)
    return p / p.sum(axis=1, keepdims=True), y


@given(st.integers(1, 200), st.floats(0.01, 0.99))
def test_quantile_is_the_smallest_score_that_enough_others_do_not_exceed(n, alpha):
    scores = np.random.default_rng(n).permutation(n).astype(float)
    rank = next((k for k in range(1, n + 1) if k >= (n + 1) * (1 - alpha) - 1e-9), None)
    assert conformal_quantile(scores, alpha) == (math.inf if rank is None else rank - 1)


def test_nine_scores_suffice_for_ninety_percent_and_eight_do_not():
    assert conformal_quantile(np.arange(9.0), 0.1) == 8
    assert conformal_quantile(np.arange(8.0), 0.1) == math.inf


@pytest.mark.parametrize(
    "options", [{"score": "lac"}, {"score": "aps", "randomised": True}, {"score": "raps", "randomised": True}]
)
def test_average_coverage_is_the_exact_one(options):
    """Over calibration draws coverage averages ceil((n + 1)(1 - alpha)) / (n + 1): 0.9 at n = 99, alpha = 0.1."""
    covered = []
    for seed in range(150):
        p, y = examples(seed, 99 + 400)
        model = ConformalClassifier(alpha=0.1, random_state=seed, **options).fit(p[:99], y[:99])
        covered.append(model.predict(p[99:])[np.arange(400), y[99:]].mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=4 * np.std(covered) / math.sqrt(150))


def test_class_conditional_thresholds_cover_the_hard_class():
    hard = {True: [], False: []}
    for seed in range(20):
        p, y = examples(seed, 2000)
        for conditional, seen in hard.items():
            model = ConformalClassifier(alpha=0.1, class_conditional=conditional).fit(p[:1000], y[:1000])
            seen.append(evaluate_sets(model.predict(p[1000:]), y[1000:]).class_coverage[0].value)
    assert np.mean(hard[False]) < 0.8
    assert np.mean(hard[True]) == pytest.approx(0.9, abs=0.02)


def test_a_class_too_rare_to_calibrate_is_in_every_set():
    p, y = examples(1, 300)
    keep = (y != 3) | (np.cumsum(y == 3) <= 5)
    model = ConformalClassifier(alpha=0.1, class_conditional=True).fit(p[keep], y[keep])
    assert math.isinf(model.thresholds_[3])
    assert model.predict(p)[:, 3].all()


def test_sets_can_be_kept_from_being_empty():
    p, y = examples(3, 400, hard=None)
    p = p**4 / (p**4).sum(axis=1, keepdims=True)
    empty = ConformalClassifier(alpha=0.4).fit(p[:200], y[:200]).predict(p[200:])
    never = ConformalClassifier(alpha=0.4, allow_empty=False).fit(p[:200], y[:200]).predict(p[200:])
    assert empty.sum(axis=1).min() == 0
    assert never.sum(axis=1).min() == 1
    assert np.array_equal(never, empty | (np.arange(5) == p[200:].argmax(axis=1)[:, None]))


def test_aps_scores_by_hand():
    p = np.array([[0.2, 0.5, 0.3]])
    assert aps_scores(p) == pytest.approx(np.array([[1.0, 0.5, 0.8]]))
    assert aps_scores(p, np.array([0.5])) == pytest.approx(np.array([[0.9, 0.25, 0.65]]))
    assert aps_scores(p, penalty=0.1, kept=1) == pytest.approx(np.array([[1.2, 0.5, 0.9]]))


@given(st.integers(0, 1000))
def test_smaller_alpha_gives_larger_sets(seed):
    p, y = examples(seed, 120)
    for score in ("lac", "aps"):
        wide = ConformalClassifier(alpha=0.05, score=score).fit(p[:60], y[:60]).predict(p[60:])
        narrow = ConformalClassifier(alpha=0.3, score=score).fit(p[:60], y[:60]).predict(p[60:])
        assert np.all(wide | ~narrow)


def test_sets_agree_with_mapie():
    mapie = pytest.importorskip("mapie.conformity_scores")
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Told(ClassifierMixin, BaseEstimator):
        """A fitted classifier whose input is its output."""

        classes_ = np.arange(5)

        def fit(self, X, y):
            return self

        def __sklearn_is_fitted__(self):
            return True

        def predict_proba(self, X):
            return X

        def predict(self, X):
            return X.argmax(axis=1)

    from mapie.classification import SplitConformalClassifier

    p, y = examples(2, 800)
    peer = SplitConformalClassifier(
        Told(), confidence_level=0.9, conformity_score=mapie.LACConformityScore(), prefit=True
    )
    peer.conformalize(p[:400], y[:400])
    sets = peer.predict_set(p[400:])[1][:, :, 0]
    assert np.array_equal(sets, ConformalClassifier(alpha=0.1, score="lac").fit(p[:400], y[:400]).predict(p[400:]))


def test_regression_intervals_keep_their_promise():
    X, y = load_diabetes(return_X_y=True)
    covered = []
    for seed in range(60):
        order = np.random.default_rng(seed).permutation(len(X))
        train, test = order[:300], order[300:]
        model = ConformalRegressor(Ridge(0.1), alpha=0.2, random_state=seed).fit(X[train], y[train])
        low, high = model.predict_interval(X[test]).T
        covered.append(np.mean((low <= y[test]) & (y[test] <= high)))
    assert np.mean(covered) == pytest.approx(121 / 151, abs=0.02)


def test_prefit_regressor_uses_all_data_to_calibrate():
    X = np.linspace(0, 1, 99)[:, None]
    fitted = Ridge().fit(X, np.zeros(99))
    model = ConformalRegressor(fitted, alpha=0.1, prefit=True).fit(X, np.arange(99.0))
    assert model.half_width_ == pytest.approx(89.0)


def test_evaluation_counts_by_hand():
    sets = np.array([[True, False], [True, True], [False, False], [False, True]])
    quality = evaluate_sets(sets, np.array([0, 1, 0, 0]))
    assert quality.coverage.value == 0.5
    assert quality.mean_size.value == 1.0
    assert quality.sizes.tolist() == [1, 2, 1]
    assert quality.class_coverage[0].value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: conformal_quantile(np.ones(3), 0.0),
        lambda: conformal_quantile(np.array([np.nan]), 0.1),
        lambda: ConformalClassifier().fit(np.array([[2.0, -1.0]]), np.array([0])),
        lambda: ConformalClassifier().fit(np.array([[0.5, 0.5]]), np.array([2])),
        lambda: ConformalClassifier().set_params(score="best").fit(np.array([[0.5, 0.5]]), np.array([1])),
        lambda: ConformalClassifier().fit(*examples(0, 50)).predict(np.full((2, 4), 0.25)),
        lambda: ConformalRegressor(Ridge(), calibration_share=0.0).fit(np.ones((4, 1)), np.ones(4)),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InputError):
        call()
