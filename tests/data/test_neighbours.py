"""The blocked search is the exact search."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from holdfast.core.errors import InputError
from holdfast.data.neighbours import nearest


@given(st.integers(0, 1000), st.integers(1, 400), st.integers(12, 500), st.integers(1, 6), st.integers(1, 10))
def test_agrees_with_a_tree(seed, queries, references, features, k):
    rng = np.random.default_rng(seed)
    reference, query = rng.normal(size=(references, features)) + 100, rng.normal(size=(queries, features)) + 100
    distances, positions = nearest(query, reference, k)
    expected, _ = cKDTree(reference).query(query, k=k)
    np.testing.assert_allclose(distances, expected.reshape(queries, k), rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(reference[positions[:, 0]] - query, axis=1), distances[:, 0], rtol=1e-12)


def test_tiny_distances_far_from_the_origin_survive():
    reference = np.random.default_rng(0).normal(size=(3000, 20)) + 1e4
    distances, positions = nearest(reference[:50] + 1e-7, reference, 1)
    np.testing.assert_array_equal(positions[:, 0], np.arange(50))
    np.testing.assert_allclose(distances[:, 0], 1e-7 * 20**0.5, rtol=1e-3)


def test_more_than_one_block_and_leaving_oneself_out():
    points = np.random.default_rng(1).normal(size=(17_000, 2))
    distances, positions = nearest(points, points, 2, exclude_self=True)
    expected, at = cKDTree(points).query(points[-2000:], k=3)
    np.testing.assert_allclose(distances[-2000:], expected[:, 1:], rtol=1e-9)
    np.testing.assert_array_equal(positions[-2000:], at[:, 1:])


@pytest.mark.parametrize(
    ("queries", "reference", "k", "message"),
    [
        (np.zeros((2, 2)), np.zeros((3, 2)), 4, "lower k"),
        (np.full((2, 2), np.nan), np.zeros((3, 2)), 1, "NaN"),
    ],
)
def test_bad_input(queries, reference, k, message):
    with pytest.raises(InputError, match=message):
        nearest(queries, reference, k)
