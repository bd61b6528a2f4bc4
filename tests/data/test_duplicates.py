"""Planted duplicates are found, independent examples are not, and copies are really equal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from holdfast.core.errors import InputError
from holdfast.data.duplicates import DuplicateIndex, chance_of_coincidence, find_duplicates
from holdfast.subject.data import ArrayInputs


def digits() -> np.ndarray:
    return (load_digits().images[:, None] / 16).astype(np.float32)


def textures(seed: int, number: int, side: int = 24, channels: int = 3) -> np.ndarray:
    """Smooth random images, independent of each other."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(number, channels, side // 4, side // 4))
    return np.kron(coarse, np.ones((1, 1, 4, 4))).astype(np.float32)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 12), st.sampled_from(["tabular", "image"]))
def test_exact_copies_are_found_and_nothing_else_in_noise(seed, copies, modality):
    rng = np.random.default_rng(seed)
    shape = (3, 8, 8) if modality == "image" else (9,)
    reference = rng.normal(size=(120, *shape)).astype(np.float32)
    queries = rng.normal(size=(40, *shape)).astype(np.float32)
    source = rng.choice(120, copies, replace=False)
    queries[:copies] = reference[source]
    matches = find_duplicates(queries, reference, modality, false_match_rate=1e-5)
    np.testing.assert_array_equal(matches.exact, np.arange(40) < copies)
    np.testing.assert_array_equal(matches.nearest[:copies], source)
    assert not matches.near.any()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 0.8 * x + 0.1,
        lambda x: np.roll(x, (1, 1), (-2, -1)),
        lambda x: np.roll(0.9 * x, -1, -1),
    ],
    ids=["brightness and contrast", "shift", "shift and contrast"],
)
@pytest.mark.parametrize("images", [digits()[:600], textures(0, 600)], ids=["digits", "textures"])
def test_altered_copies_of_images_are_near_duplicates(images, change):
    index = DuplicateIndex.build(ArrayInputs(images), "image")
    source = np.arange(0, 600, 10)
    matches = index.find(change(images[source]).astype(np.float32))
    found = matches.duplicate & (matches.nearest == source)
    assert found.mean() > 0.95


def test_noise_added_to_rows_is_a_near_duplicate():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 10)).astype(np.float32) * 10.0 ** np.arange(10, dtype=np.float32)
    index = DuplicateIndex.build(ArrayInputs(rows), "tabular")
    jittered = rows[:300] * (1 + 0.01 * rng.normal(size=(300, 10))).astype(np.float32)
    assert index.find(jittered).near.mean() > 0.95
    fresh = rng.normal(size=(1000, 10)).astype(np.float32) * 10.0 ** np.arange(10, dtype=np.float32)
    assert index.find(fresh).duplicate.sum() <= 2


@settings(max_examples=10)
@given(st.integers(2, 8), st.integers(0, 100))
def test_false_matches_keep_their_stated_rate_on_even_data(dimension, seed):
    rng = np.random.default_rng(seed)
    index = DuplicateIndex.build(ArrayInputs(rng.random((1500, dimension))), "tabular", false_match_rate=0.01)
    near = index.find(rng.random((1500, dimension)).astype(np.float32)).near.sum()
    assert near <= 15 + 5 * 15**0.5 + 5  # five standard deviations, and the uncertainty of the dimension


def test_within_a_set_an_example_does_not_match_itself():
    images = digits()[:400]
    images[7] = images[300]
    matches = find_duplicates(images, modality="image")
    assert np.flatnonzero(matches.exact).tolist() == [7, 300]
    assert matches.nearest[[7, 300]].tolist() == [300, 7]
    assert not np.any(matches.nearest == np.arange(400))


def test_many_copies_of_one_example():
    rows = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    rows[:50] = rows[0]
    assert np.flatnonzero(find_duplicates(rows).exact).tolist() == list(range(50))


def test_negative_zero_and_nan_are_values_like_any_other():
    reference = np.array([[0.0, np.nan], [1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    queries = np.array([[-0.0, -np.nan], [1.0, np.nan]], dtype=np.float32)
    assert find_duplicates(queries, reference).exact.tolist() == [True, False]


def test_flat_images_and_constant_columns_do_not_break_the_search():
    images = np.concatenate([np.zeros((5, 1, 8, 8), np.float32), digits()[:60]])
    assert find_duplicates(images, modality="image").exact[:5].all()
    rows = np.ones((50, 3), np.float32)
    assert find_duplicates(rows).exact.all()


def test_a_handful_of_examples_has_exact_matches_only():
    assert not find_duplicates(np.arange(3.0, dtype=np.float32)[:, None]).duplicate.any()
    assert find_duplicates(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32)).exact.all()


def test_larger_images_are_reduced():
    images = np.kron(textures(1, 200, 24, 1), np.ones((1, 1, 5, 5), np.float32))  # 120 × 120
    matches = find_duplicates(np.roll(images[:40], 3, -1), images, "image")
    assert matches.near.mean() > 0.9


def test_coincidence_of_coarse_rows_is_foretold():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 3, (500, 4)).astype(np.float32)
    assert abs(chance_of_coincidence(coarse) - find_duplicates(coarse).exact.mean()) < 0.02
    assert chance_of_coincidence(rng.random((500, 4)).astype(np.float32)) < 1e-6


def test_bad_input():
    images = digits()[:20]
    with pytest.raises(InputError, match="false_match_rate"):
        DuplicateIndex.build(ArrayInputs(images), "image", false_match_rate=1.5)
    with pytest.raises(InputError, match="channels, height, width"):
        DuplicateIndex.build(ArrayInputs(images[:, 0]), "image")
    with pytest.raises(InputError, match="queries have shape"):
        DuplicateIndex.build(ArrayInputs(images), "image").find(images[:, :, :4])
