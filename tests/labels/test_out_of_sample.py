"""Cross-validated probabilities never come from a model that saw the example."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from holdfast.core.errors import InputError
from holdfast.labels.confident import find_label_issues
from holdfast.labels.out_of_sample import cross_validated_probabilities


def test_a_model_that_memorises_is_no_better_than_chance_on_random_labels():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(600, 5)), rng.integers(0, 3, 600)
    probabilities = cross_validated_probabilities(KNeighborsClassifier(1), X, y)
    assert abs(np.mean(probabilities.argmax(1) == y) - 1 / 3) < 0.08


class Memory(ClassifierMixin, BaseEstimator):
    """Says class 1 for every row it was fitted on and class 0 otherwise."""

    def fit(self, X, y):
        self.classes_, self.seen_ = np.array([0, 1]), set(X[:, 0])
        return self

    def predict_proba(self, X):
        seen = np.array([x in self.seen_ for x in X[:, 0]], dtype=float)
        return np.stack([1 - seen, seen], axis=1)


@pytest.mark.parametrize("rare", [False, True])
def test_no_example_is_judged_by_a_model_fitted_on_it(rare):
    y = np.array([1] + [0] * 49) if rare else np.arange(50) % 2
    probabilities = cross_validated_probabilities(Memory(), np.arange(50.0)[:, None], y)
    np.testing.assert_array_equal(probabilities[:, 1], 0)


def test_flipped_digits_are_found():
    X, y = load_digits(return_X_y=True)
    X, y = X[:900] / 16, y[:900]
    rng = np.random.default_rng(1)
    flipped = rng.choice(900, 60, replace=False)
    given = y.copy()
    given[flipped] = (y[flipped] + rng.integers(1, 10, 60)) % 10
    probabilities = cross_validated_probabilities(LogisticRegression(max_iter=200), X, given, 3)
    issues = find_label_issues(given, probabilities, "both")
    assert np.isin(issues.order, flipped).mean() > 0.5
    assert roc_auc_score(np.isin(np.arange(900), flipped), -issues.quality) > 0.95


def test_columns_follow_the_class_indices():
    y = np.array([0, 3] * 10)
    probabilities = cross_validated_probabilities(LogisticRegression(), np.arange(20.0)[:, None], y, 2, classes=6)
    assert probabilities.shape == (20, 6)
    np.testing.assert_array_equal(probabilities[:, [1, 2, 4, 5]], 0)


@pytest.mark.parametrize(
    ("labels", "folds", "message"),
    [
        (np.zeros(10, int), 2, "two classes"),
        (np.arange(10) % 2, 1, "2 folds"),
        (np.arange(10) % 2 - 1, 2, "class indices"),
    ],
)
def test_bad_input(labels, folds, message):
    with pytest.raises(InputError, match=message):
        cross_validated_probabilities(LogisticRegression(), np.zeros((10, 1)), labels, folds)
