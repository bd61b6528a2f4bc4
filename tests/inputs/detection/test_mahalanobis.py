"""The detector equals the textbook where the textbook applies, and is loud where distances mean nothing."""

import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance, ledoit_wolf
from sklearn.datasets import load_digits, load_wine
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.utils.estimator_checks import check_estimator

from holdfast.core.errors import InputError
from holdfast.inputs.detection import MahalanobisDetector


@pytest.fixture(scope="module")
def wine():
    X, y = load_wine(return_X_y=True)
    return (X - X.mean(0)) / X.std(0), y


def test_is_a_scikit_learn_estimator():
    check_estimator(MahalanobisDetector())


def test_unshrunk_classes_equal_linear_discriminant_analysis(wine):
    X, y = wine
    lda = LinearDiscriminantAnalysis(solver="svd", priors=np.full(3, 1 / 3)).fit(X, y)
    ours = MahalanobisDetector(shrinkage=0.0).fit(X, y)
    grid = np.random.default_rng(0).normal(0, 2, (2000, X.shape[1]))
    np.testing.assert_array_equal(ours.predict_class(grid), lda.predict(grid))


def test_distances_equal_those_of_the_pooled_residuals(wine):
    X, y = wine
    ours = MahalanobisDetector(shrinkage=0.0).fit(X, y)
    pooled = EmpiricalCovariance(assume_centered=True).fit(X - ours.means_[y])
    for c in range(3):
        np.testing.assert_allclose(ours.class_distances(X)[:, c], pooled.mahalanobis(X - ours.means_[c]), atol=1e-8)
    np.testing.assert_allclose(ours.score_samples(X), -ours.class_distances(X).min(1))


def test_shrinkage_is_ledoit_and_wolfs(wine):
    X, y = wine
    ours = MahalanobisDetector().fit(X, y)
    covariance, share = ledoit_wolf(X - ours.means_[y], assume_centered=True)
    np.testing.assert_allclose(ours.covariance_, covariance, atol=1e-10)
    np.testing.assert_allclose(ours.shrinkage_, share)


def test_scores_do_not_change_under_a_linear_map_of_the_features(wine):
    X, y = wine
    A = np.random.default_rng(1).normal(size=(13, 13))
    before = MahalanobisDetector(shrinkage=0.0).fit(X, y).score_samples(X)
    np.testing.assert_allclose(MahalanobisDetector(shrinkage=0.0).fit(X @ A, y).score_samples(X @ A), before, rtol=1e-6)


def test_a_class_added_later_follows_the_papers_update(wine):
    X, y = wine
    ours = MahalanobisDetector(shrinkage=0.1).fit(X[y < 2], y[y < 2])
    old = ours.pooled_covariance_
    ours.partial_fit_class(X[y == 2], 2)
    new = np.cov(X[y == 2].T, bias=True)
    np.testing.assert_allclose(ours.pooled_covariance_, (2 * old + new) / 3, atol=1e-12)
    assert (ours.predict_class(X[y == 2]) == 2).mean() > 0.9
    with pytest.raises(InputError, match="known already"):
        ours.partial_fit_class(X[y == 2], 2)
    with pytest.raises(InputError, match="at least two"):
        ours.partial_fit_class(X[:1], 7)
    for label in ("new", 2.5, [7]):
        with pytest.raises(InputError, match="like the known ones"):
            ours.partial_fit_class(X[y == 2], label)
    named = MahalanobisDetector().fit(X[y < 2], np.array(["a", "b"])[y[y < 2]])
    assert list(named.partial_fit_class(X[y == 2], "long name").classes_) == ["a", "b", "long name"]


def test_contamination_sets_the_share_called_untypical(wine):
    X, y = wine
    for share in (0.0, 0.1, 0.3):
        called = (MahalanobisDetector(contamination=share).fit(X, y).predict(X) == -1).mean()
        assert abs(called - share) <= 1 / len(X)


def test_more_features_than_examples_needs_shrinkage():
    generator = np.random.default_rng(2)
    X, y = generator.normal(size=(20, 40)), np.repeat([0, 1], 10)
    with pytest.raises(InputError, match="singular"):
        MahalanobisDetector(shrinkage=0.0).fit(X, y)
    assert np.isfinite(MahalanobisDetector().fit(X, y).score_samples(X)).all()


def test_constant_features_are_refused_without_shrinkage():
    X, y = load_digits(return_X_y=True)
    with pytest.raises(InputError, match="constant"):
        MahalanobisDetector(shrinkage=0.0).fit(X, y)


@pytest.mark.parametrize("settings", [{"shrinkage": -0.1}, {"shrinkage": "oas"}, {"contamination": 0.6}])
def test_bad_settings_are_refused(settings, wine):
    with pytest.raises(InputError):
        MahalanobisDetector().set_params(**settings).fit(*wine)


def test_a_class_of_one_is_named():
    with pytest.raises(InputError, match="class"):
        MahalanobisDetector().fit(np.random.default_rng(3).normal(size=(5, 2)), [0, 0, 0, 0, 7])
