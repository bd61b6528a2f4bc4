"""Styles: shapes and types are kept, streams are per image, and each style does what its name says."""

import numpy as np
import pytest
from scipy import ndimage

from holdfast.core.errors import InputError
from holdfast.inputs.corruption.facets import folded
from holdfast.inputs.corruption.kuwahara import anisotropic_kuwahara
from holdfast.inputs.corruption.streams import Streams
from holdfast.inputs.corruption.styles import STYLES, bilateral, outlines, stylise
from holdfast.papers.datasets import digits


def rng(seed=0):
    return np.random.default_rng(seed)


def pictures(n=3, side=32):
    smooth = ndimage.gaussian_filter(rng().random((n, side, side, 3)), (0, 2, 2, 0))
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    return ((smooth - low) / (high - low)).astype(np.float32)


@pytest.mark.parametrize("style", STYLES)
def test_shape_type_and_range_are_kept_and_the_image_changes(style):
    x = pictures()
    made = stylise(x, style, generator=rng())
    assert made.shape == x.shape
    assert made.dtype == x.dtype
    assert 0 <= made.min() <= made.max() <= 1
    assert np.abs(made - x).mean() > 0.01
    bytes_in = np.round(x * 255).astype(np.uint8)
    first = stylise(bytes_in.transpose(0, 3, 1, 2), style, generator=rng(), layout="channels_first")
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), stylise(bytes_in, style, generator=rng()))


@pytest.mark.parametrize("style", STYLES)
def test_an_image_depends_on_its_own_stream_alone(style):
    x = pictures()
    together = stylise(x, style, generator=[rng(i) for i in range(3)])
    alone = stylise(x[1:2], style, generator=[rng(1)])
    np.testing.assert_allclose(together[1:2], alone, atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_grey_and_small_images_pass(style):
    x = digits(3)[0][:, 0]
    assert stylise(x, style, generator=rng()).shape == (3, 8, 8)
    assert len(stylise(x[:0], style, generator=rng())) == 0


def test_sketches_have_no_colour_and_cartoons_few_levels():
    x = pictures(side=64)
    drawn = stylise(x, "sketch", generator=rng())
    assert np.ptp(drawn, axis=-1).max() < 0.05
    ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32)[None, None, :, None], (1, 64, 64, 3))
    light = stylise(np.ascontiguousarray(ramp), "cartoon", generator=rng())[0, 32, :, 0]
    assert (np.abs(np.diff(light)) < 0.008).mean() > 0.5  # terraces, where the ramp rises by .016 everywhere


def test_outlines_are_dark_at_an_edge_and_white_on_an_even_plane():
    step = np.zeros((1, 32, 32, 1), dtype=np.float32)
    step[:, :, 16:] = 1
    drawn = outlines(step, 1.0, 0.05)
    assert drawn[0, 16, 13:16].min() < 0.3
    assert drawn[0, 16, 24:].min() == 1
    assert (outlines(np.full((1, 16, 16, 1), 0.7, np.float32), 1.0, 0.05) == 1).all()


def test_edge_keeping_filters_leave_planes_and_steps_and_remove_noise():
    plane = np.full((1, 24, 24, 3), 0.4, dtype=np.float32)
    step = plane.copy()
    step[:, :, 12:] = 0.9
    noisy = (step + 0.02 * rng().standard_normal(step.shape)).astype(np.float32)
    for smoothed in (lambda x: anisotropic_kuwahara(x, 3.0), lambda x: bilateral(x, 2.0, 0.1)):
        np.testing.assert_allclose(smoothed(plane), plane, atol=1e-5)
        np.testing.assert_allclose(smoothed(step), step, atol=0.02)
        assert np.abs(smoothed(noisy) - step).mean() < 0.6 * np.abs(noisy - step).mean()


def test_folding_is_piecewise_even_and_keeps_the_mean_without_shading():
    x = pictures(n=2)
    made = folded(x, 1.0, Streams.of(rng(), 2), points=40, shading=0.0)
    for before, after in zip(x, made, strict=True):
        assert len(np.unique(after.reshape(-1, 3).round(5), axis=0)) < 110
        np.testing.assert_allclose(after.mean((0, 1)), before.mean((0, 1)), atol=1e-4)


def test_bad_input_is_told():
    with pytest.raises(InputError, match="unknown style 'oil'; choose from sketch"):
        stylise(pictures(), "oil", generator=rng())
    with pytest.raises(InputError, match="channels; is the layout right"):
        stylise(np.zeros((1, 16, 16, 16), np.float32), "sketch", generator=rng())
    with pytest.raises(InputError, match="styles take images of at least 8x8"):
        stylise(pictures().transpose(0, 3, 1, 2), "sketch", generator=rng())
    with pytest.raises(InputError, match="rescale first"):
        stylise(pictures() * 255, "sketch", generator=rng())
