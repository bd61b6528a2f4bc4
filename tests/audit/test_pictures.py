"""Pictures of examples: what a person sees is what the model was fed."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.audit.pictures import LONGEST, describe_change, describe_row, encode_png, picture
from holdfast.core.errors import InputError


def decoded(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_small_images_are_enlarged_by_a_whole_factor_and_nothing_is_smoothed():
    image = np.random.default_rng(0).integers(0, 256, (8, 8)) / 255
    seen = decoded(encode_png(image))
    factor = seen.shape[0] // 8
    assert seen.shape == (96, 96)
    assert np.array_equal(seen, np.kron(np.round(255 * image), np.ones((factor, factor))))


@pytest.mark.parametrize("shape", [(3, 300, 200), (1, 113, 40), (200, 500)])
def test_large_images_are_shrunk_to_the_longest_side_and_keep_their_mean(shape):
    image = np.random.default_rng(1).random(shape)
    seen = decoded(encode_png(image, scale_to=500))
    assert max(seen.shape[:2]) == LONGEST
    assert abs(seen.shape[0] / seen.shape[1] - shape[-2] / shape[-1]) < 0.05
    assert abs(seen.mean() / 255 - image.mean()) < 0.01


def test_channels_are_rgb_in_that_order_and_any_other_number_is_averaged():
    red = np.zeros((3, 4, 4))
    red[0] = 1
    assert np.array_equal(decoded(encode_png(red))[0, 0], [255, 0, 0])
    assert np.array_equal(decoded(encode_png(np.stack([np.zeros((4, 4)), np.ones((4, 4))])))[0, 0], 128)


def test_the_valid_range_gives_black_and_white_and_what_lies_outside_is_clipped():
    image = np.array([[-3.0, -1.0], [1.0, 9.0]])
    assert np.array_equal(np.unique(decoded(encode_png(image, valid=(-1.0, 1.0)))), [0, 255])
    per_channel = (torch.tensor([[[0.0]], [[0.0]], [[-1.0]]]), torch.tensor([[[1.0]], [[2.0]], [[1.0]]]))
    assert np.array_equal(decoded(encode_png(torch.zeros(3, 2, 2) + 1.0, per_channel))[0, 0], [255, 128, 255])
    assert np.array_equal(np.unique(decoded(encode_png(np.full((2, 2), 7.0), valid=None))), [0])


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros((0, 4)), np.full((2, 2), np.nan), np.zeros((1, 1, 1, 1))])
def test_what_is_no_image_is_refused(bad):
    with pytest.raises(InputError):
        encode_png(bad)


def test_a_row_is_described_by_what_is_unusual_about_it():
    reference = np.random.default_rng(2).normal(size=(500, 3)) * [1.0, 100.0, 1.0] + [0.0, 0.0, 5.0]
    fields = describe_row(np.array([0.1, 30.0, 50.0]), ("age", "income", "<b>height"), reference, limit=2)
    assert fields[0][0] == "<b>height"
    assert fields[0][1] == f"50 (typical {np.median(reference[:, 2]):.4g})"
    assert describe_row(np.array([np.nan, 30.0, 50.0]), None, reference)[0][1].startswith("missing (typical ")
    assert describe_row(np.arange(9.0), limit=2) == (("feature 0", "0"), ("feature 1", "1"))


def test_a_perturbed_row_is_described_by_what_moved():
    before, after = np.array([1.0, 100.0, 3.0, np.nan]), np.array([2.0, 110.0, 3.0, np.nan])
    assert describe_change(before, after, ("a", "b", "c", "d")) == (("a", "1 → 2"), ("b", "100 → 110"))


def test_names_and_references_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="2 feature names"):
        describe_row(np.zeros(3), ("a", "b"))
    with pytest.raises(InputError, match="reference"):
        describe_row(np.zeros(3), None, np.zeros((4, 2)))
    with pytest.raises(InputError, match="same length"):
        describe_change(np.zeros(3), np.zeros(2))


def test_a_picture_fits_its_modality():
    image = picture("cat", np.zeros((1, 8, 8)), modality="image", before=np.ones((1, 8, 8)))
    assert image.png is not None
    assert image.before_png is not None
    assert image.png != image.before_png
    row = picture("row", np.zeros(2), modality="tabular", before=np.ones(2), names=("a", "b"))
    assert row.png is None
    assert row.fields == (("a", "1 → 0"), ("b", "1 → 0"))
    assert picture("x", np.zeros((2, 2, 2, 2)), modality="other").fields == (("shape", "2×2×2×2"),)
