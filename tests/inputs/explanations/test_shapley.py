"""Shapley values against brute force over orders, linear models, and the axioms."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestRegressor

from holdfast.core.errors import InputError
from holdfast.inputs.explanations import exact_shapley, permutation_shapley


def drawn(seed, features, rows=5, many=4):
    generator = np.random.default_rng(seed)
    return generator, generator.normal(size=(rows, features)), generator.normal(size=(many, features))


def wavy(weights):
    return lambda X: np.sin(X @ weights) + X[:, 0] * X[:, -1]


@given(st.integers(0, 1000), st.integers(1, 4))
@settings(max_examples=15)
def test_exact_values_are_the_mean_over_all_orders(seed, features):
    generator, X, behind = drawn(seed, features)
    f = wavy(generator.normal(size=features))
    wanted = np.zeros_like(X)
    orders = list(permutations(range(features)))
    for order in orders:
        mixed = np.repeat(behind[None], len(X), axis=0)
        before = f(mixed.reshape(-1, features)).reshape(len(X), -1).mean(1)
        for feature in order:
            mixed[:, :, feature] = X[:, None, feature]
            after = f(mixed.reshape(-1, features)).reshape(len(X), -1).mean(1)
            wanted[:, feature] += (after - before) / len(orders)
            before = after
    np.testing.assert_allclose(exact_shapley(f, X, behind).values[:, :, 0], wanted, atol=1e-12)


@given(st.integers(0, 1000), st.integers(1, 7), st.integers(1, 3))
@settings(max_examples=25)
def test_values_add_up_to_the_prediction_whatever_the_number_of_orders(seed, features, pairs):
    generator, X, behind = drawn(seed, features)
    f = wavy(generator.normal(size=features))
    for found in (exact_shapley(f, X, behind), permutation_shapley(f, X, behind, pairs=pairs, generator=generator)):
        np.testing.assert_allclose(found.base + found.values.sum(1)[:, 0], f(X), atol=1e-12)
        np.testing.assert_allclose(found.base[0], f(behind).mean())


def test_linear_models_have_slope_times_distance_from_the_background():
    _, X, behind = drawn(0, 6)
    slope = np.arange(6.0)
    wanted = (X - behind.mean(0)) * slope
    for find in (exact_shapley, permutation_shapley):
        np.testing.assert_allclose(find(lambda Z: Z @ slope, X, behind).values[:, :, 0], wanted, atol=1e-12)


def test_one_antithetic_pair_is_exact_for_two_way_interactions():
    generator, X, behind = drawn(1, 5)
    M = generator.normal(size=(5, 5))
    f = lambda Z: np.einsum("ni,ij,nj->n", Z, M, Z)  # noqa: E731
    sampled = permutation_shapley(f, X, behind, pairs=1, generator=generator)
    np.testing.assert_allclose(sampled.values, exact_shapley(f, X, behind).values, atol=1e-10)


def test_a_factor_that_is_not_used_gets_nothing_and_symmetric_ones_the_same():
    _, X, behind = drawn(2, 3)
    X[:, 1], behind[:, 1] = X[:, 0], behind[:, 0]
    found = exact_shapley(lambda Z: Z[:, 0] * Z[:, 1], X, behind).values[:, :, 0]
    np.testing.assert_allclose(found[:, 2], 0, atol=1e-12)
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-12)


def test_several_outputs_are_explained_one_by_one():
    generator, X, behind = drawn(3, 4)
    f, g = (wavy(generator.normal(size=4)) for _ in range(2))
    both = exact_shapley(lambda Z: np.stack([f(Z), g(Z)], 1), X, behind)
    np.testing.assert_allclose(both.values[:, :, 1], exact_shapley(g, X, behind).values[:, :, 0])
    np.testing.assert_allclose(both.magnitudes(), np.abs(both.values).sum(2))


def test_sampling_approaches_the_exact_values():
    generator, X, behind = drawn(4, 7, rows=8)
    model = RandomForestRegressor(5, random_state=0).fit(X, wavy(np.ones(7))(X)).predict
    exact = exact_shapley(model, X, behind).values
    few, many = (
        np.abs(permutation_shapley(model, X, behind, pairs=pairs, generator=generator).values - exact).mean()
        for pairs in (1, 60)
    )
    assert many < few / 3


def test_agrees_with_the_shap_package():
    shap = pytest.importorskip("shap", reason="shap is a bench peer")
    generator, X, behind = drawn(5, 5)
    f = wavy(generator.normal(size=5))
    theirs = shap.explainers.Exact(f, shap.maskers.Independent(behind, max_samples=100))(X).values
    np.testing.assert_allclose(exact_shapley(f, X, behind).values[:, :, 0], theirs, atol=1e-8)


@pytest.mark.parametrize(
    ("model", "X", "behind"),
    [
        (lambda Z: Z[:, 0], np.zeros((2, 3)), np.zeros((2, 2))),
        (lambda Z: Z[:, 0], np.zeros((0, 3)), np.zeros((2, 3))),
        (lambda Z: Z[:, 0], np.full((2, 3), np.nan), np.zeros((2, 3))),
        (lambda Z: Z[:1, 0], np.zeros((2, 3)), np.zeros((2, 3))),
        (lambda Z: Z[:, 0] * np.inf, np.ones((2, 3)), np.ones((2, 3))),
    ],
)
def test_what_does_not_fit_is_refused(model, X, behind):
    for find in (exact_shapley, permutation_shapley):
        with pytest.raises(InputError), np.errstate(invalid="ignore"):
            find(model, X, behind)


def test_too_many_features_and_too_few_orders_are_refused():
    with pytest.raises(InputError, match="permutation_shapley"):
        exact_shapley(lambda Z: Z[:, 0], np.zeros((1, 13)), np.zeros((1, 13)))
    with pytest.raises(InputError, match="pair"):
        permutation_shapley(lambda Z: Z[:, 0], np.zeros((1, 2)), np.zeros((1, 2)), pairs=0)
