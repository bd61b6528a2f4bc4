"""The score is the distance to the k-th neighbour, nothing else."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.utils.estimator_checks import check_estimator

from holdfast.core.errors import InputError
from holdfast.inputs.detection import NeighbourDetector


@pytest.mark.filterwarnings("ignore")
def test_is_a_scikit_learn_estimator():
    check_estimator(NeighbourDetector(k=3))


def data(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 5))


@pytest.mark.parametrize("normalise", [True, False])
def test_agrees_with_all_distances(normalise):
    X, new = data(80), data(30, seed=1)
    scaled = [part / np.linalg.norm(part, axis=1, keepdims=True) if normalise else part for part in (X, new)]
    wanted = -np.sort(cdist(scaled[1], scaled[0]), axis=1)[:, 6]
    np.testing.assert_allclose(NeighbourDetector(k=7, normalise=normalise).fit(X).score_samples(new), wanted)


def test_the_threshold_leaves_every_example_out_of_its_neighbours():
    X = data(1000)
    detector = NeighbourDetector(k=5, contamination=0.1).fit(X)
    assert (detector.predict(data(2000, seed=2)) == -1).mean() == pytest.approx(0.1, abs=0.03)


def test_few_examples_are_said_and_bad_settings_refused():
    with pytest.warns(UserWarning, match="9 is used"):
        assert NeighbourDetector().fit(data(10)).k_ == 9
    for wrong in ({"k": 0}, {"contamination": 0.7}):
        with pytest.raises(InputError):
            NeighbourDetector(**wrong).fit(data(10))
