"""Dimensions of sets whose dimension is known, and identities of the estimators."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import nn

from holdfast.core.errors import InputError
from holdfast.data.dimension import (
    GeoMLE,
    MLEDimension,
    TwoNN,
    label_sharpness,
    predict_vulnerability,
    representation_dimension,
    scaling_fit,
)


def sphere(dimension: int, number: int, ambient: int, seed: int = 0) -> np.ndarray:
    """Points spread evenly on a sphere of the dimension, turned at random in the ambient space."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(number, dimension + 1))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    turn, _ = np.linalg.qr(rng.normal(size=(ambient, ambient)))
    return points @ turn[: dimension + 1]


@pytest.mark.parametrize("dimension", [1, 2, 5])
@pytest.mark.parametrize("estimator", [MLEDimension(), TwoNN(), GeoMLE(bootstraps=5)])
def test_the_dimension_of_a_sphere(dimension, estimator):
    assert estimator.fit(sphere(dimension, 1500, 20)).dimension_ == pytest.approx(dimension, rel=0.15)


@settings(max_examples=10)
@given(st.integers(0, 100), st.floats(0.01, 100))
def test_turning_scaling_and_padding_change_nothing(seed, scale):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(200, 4))
    turn, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    changed = scale * np.pad(X, ((0, 0), (0, 3))) @ turn + 5
    for estimator in (MLEDimension(8), TwoNN()):
        assert estimator.fit(changed).dimension_ == pytest.approx(estimator.fit(X).dimension_, rel=1e-7)


def test_the_formula_of_levina_and_bickel_with_mackays_average():
    X = np.random.default_rng(0).random((300, 6))
    distances = NearestNeighbors(n_neighbors=11).fit(X).kneighbors(X)[0][:, 1:]
    inverse = [np.mean(np.log(row[-1] / row[:-1])) for row in distances]
    fitted = MLEDimension(10).fit(X)
    assert fitted.dimension_ == pytest.approx(1 / np.mean(inverse), rel=1e-9)
    np.testing.assert_allclose(fitted.pointwise_, 1 / np.array(inverse), rtol=1e-9)
    assert fitted.estimate_.low < fitted.dimension_ < fitted.estimate_.high


def test_copies_are_dropped_and_counted():
    X = sphere(2, 300, 5)
    fitted = MLEDimension().fit(np.concatenate([X, X[:50]]))
    assert fitted.duplicates_ == 50
    assert fitted.dimension_ == pytest.approx(MLEDimension().fit(X).dimension_)


def test_the_estimators_are_scikit_learns():
    # In a process of its own: the type hook of the tests refuses the nonsense that scikit-learn sets at constructors.
    code = """from sklearn.utils.estimator_checks import check_estimator
from holdfast.data.dimension import MLEDimension, TwoNN
for estimator in (MLEDimension(3), TwoNN()):
    check_estimator(estimator, on_skip=None)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sharpness_of_two_separated_classes_is_one_over_their_gap():
    line = np.linspace(0, 1, 101)[:, None]
    X, y = np.concatenate([line, line + 1.25]), np.repeat([0, 1], 101)
    sharpness = label_sharpness(X, y, samples=202)
    assert sharpness.value == pytest.approx(4.0)
    assert predict_vulnerability(X, y, 202).radius.value == pytest.approx(0.125)


@given(st.floats(0.1, 10))
def test_sharpness_goes_with_the_inverse_of_scale(scale):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(150, 3)), rng.integers(0, 3, 150)
    before, after = (label_sharpness(factor * X, y, 100) for factor in (1.0, scale))
    assert after.value * scale == pytest.approx(before.value, rel=1e-6)


def test_the_bottleneck_bounds_the_dimension_of_a_representation():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 2), nn.Linear(2, 30))
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    data = torch.randn(500, 20, generator=generator)
    assert representation_dimension(model, "1", data).dimension_ < 2.3
    with pytest.raises(InputError, match="no layer"):
        representation_dimension(model, "head", data)


def test_a_power_law_is_recovered():
    sizes = np.array([100.0, 200, 400, 800])
    fit = scaling_fit(sizes, 3 * sizes**-0.4)
    assert fit.slope.value == pytest.approx(-0.4)
    assert np.exp(fit.intercept) == pytest.approx(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLEDimension(20).fit(np.random.default_rng(0).random((15, 2))), "below the number of distinct"),
        (lambda: TwoNN(1.0).fit(np.eye(5)), "share"),
        (lambda: GeoMLE((5, 5)).fit(np.eye(50)), "range"),
        (lambda: label_sharpness(np.eye(4), np.zeros(4, int)), "two classes"),
        (lambda: label_sharpness(np.eye(4), np.arange(4), repeats=1), "2 repeats"),
        (lambda: scaling_fit(np.array([1.0, 2.0]), np.array([1.0, 0.5])), "3 runs"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
