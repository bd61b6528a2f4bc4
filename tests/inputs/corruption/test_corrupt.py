"""The fifteen families: agreement with independent formulae, shapes, streams, sizes, severity, time, bad input."""

import inspect
import io
import time

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from holdfast.core.errors import InputError
from holdfast.inputs.corruption import FAMILIES, corrupt, load_textures
from holdfast.inputs.corruption.blur import defocus_kernel
from holdfast.inputs.corruption.digital import box_matrix
from holdfast.inputs.corruption.resampling import fold, zoom_matrix
from holdfast.inputs.corruption.streams import Streams
from holdfast.inputs.corruption.tables import PARAMETERS, table_for
from holdfast.inputs.corruption.weather import plasma
from holdfast.threats.corruption import FAMILIES as NAMED

# Mean change grows with severity where the published parameters mean it to.  Glass, frost and elastic trade one part of
# their effect for another from level to level, and pixelate snaps to whole pixels.
GROWING = tuple(f for f in FAMILIES if f not in ("glass_blur", "frost", "elastic_transform", "pixelate"))


def scenes(n, height, width, channels=3, seed=0):
    """Smooth random images with an edge, float32 in [0, 1]."""
    noise = np.random.default_rng(seed).normal(size=(n, height, width, channels))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
    smooth = 0.5 + 0.25 * smooth / smooth.std()
    smooth[:, : height // 3] += 0.3
    return np.clip(smooth, 0, 1).astype(np.float32)


def apply(x, name, severity, seed=0, **options):
    return corrupt(x, name, severity, generator=np.random.default_rng(seed), **options)


def test_families_are_those_the_threat_names():
    assert FAMILIES == NAMED


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 9, 17, 1), (3, 13, 11, 3), (2, 33, 21, 4)])
def test_shape_type_and_range_are_kept_at_any_size(name, shape):
    x = scenes(shape[0], shape[1], shape[2], shape[3] if len(shape) == 4 else 1).reshape(shape)
    for given in (x, x.astype(np.float64), np.round(x * 255).astype(np.uint8)):
        made = apply(given, name, 5)
        assert made.shape == given.shape
        assert made.dtype == given.dtype
        assert made.min() >= 0
        assert made.max() <= (255 if given.dtype == np.uint8 else 1)
        assert (made != given).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_is_corrupted_alike_in_any_batch(name):
    x = scenes(4, 16, 12)
    together = corrupt(x, name, 4, generator=[np.random.default_rng(i) for i in range(4)])
    alone = [corrupt(x[i : i + 1], name, 4, generator=[np.random.default_rng(i)]) for i in range(4)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)
    np.testing.assert_array_equal(apply(x, name, 4, seed=3), apply(x, name, 4, seed=3))


@pytest.mark.parametrize("name", FAMILIES)
def test_images_of_one_batch_get_their_own_randomness(name):
    x = np.repeat(scenes(1, 24, 24), 2, axis=0)
    made = apply(x, name, 5)
    is_random = name not in (
        "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression",
    )  # fmt: skip
    assert (made[0] != made[1]).any() == is_random


@pytest.mark.parametrize("side", [8, 28, 32, 64])
@pytest.mark.parametrize("name", GROWING)
def test_severity_grows(name, side):
    x = scenes(12, side, side)
    change = np.array([np.abs(apply(x, name, severity) - x).mean() for severity in range(1, 6)])
    assert change[0] > 0
    assert (np.diff(change) >= -0.1 * change[1:]).all()
    assert change[4] > 1.5 * change[0]


@pytest.mark.parametrize("name", ["elastic_transform", "glass_blur", "frost", "pixelate"])
def test_the_other_families_change_images_at_every_severity(name):
    for side in (8, 28, 64):
        x = scenes(6, side, side)
        assert min(np.abs(apply(x, name, severity) - x).mean() for severity in range(1, 6)) > 0.003


def test_layouts_agree():
    x = scenes(3, 10, 14)
    first = apply(x.transpose(0, 3, 1, 2).copy(), "snow", 2, layout="channels_first")
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), apply(x, "snow", 2))


def test_gaussian_noise_has_the_published_deviation():
    x = np.full((40, 32, 32, 3), 0.5, dtype=np.float32)
    for severity, deviation in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), start=1):
        assert (apply(x, "gaussian_noise", severity) - x).std() == pytest.approx(deviation, rel=0.01)


def test_shot_noise_has_the_variance_of_photon_counts():
    x = np.full((40, 32, 32, 3), 0.4, dtype=np.float32)
    noise = apply(x, "shot_noise", 1) - x
    assert noise.var() == pytest.approx(0.4 / 500, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=5e-4)


def test_impulse_noise_replaces_the_published_share_half_by_half():
    made = apply(np.full((40, 32, 32, 3), 0.5, dtype=np.float32), "impulse_noise", 5)
    assert (made == 1).mean() == pytest.approx(0.035, abs=0.002)
    assert (made == 0).mean() == pytest.approx(0.035, abs=0.002)


def test_contrast_and_brightness_by_hand():
    x = scenes(3, 32, 32)
    mean = x.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(apply(x, "contrast", 2), np.clip((x - mean) * 0.5 + mean, 0, 1), atol=1e-6)
    import colorsys

    made = apply(x, "brightness", 3)
    for row, column in [(0, 0), (5, 20), (31, 31)]:
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, x[0, row, column]))
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.15, 1))
        np.testing.assert_allclose(made[0, row, column], wanted, atol=1e-5)
    assert (apply(np.zeros((1, 32, 32, 3), np.float32), "brightness", 3) == np.float32(0.15)).all()


@pytest.mark.parametrize("side", [32, 64, 224])
def test_defocus_is_the_published_disk_at_the_sizes_of_the_tables(side):
    x = scenes(1, side, side, 1)
    for severity in (1, 4):
        radius, width = PARAMETERS["defocus_blur"][table_for(side)][severity - 1]
        grid = np.arange(-20, 21)
        disk = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(float)
        near = np.exp(-(np.arange(-1, 2) ** 2) / (2 * width**2))
        disk = ndimage.convolve(disk, np.outer(near, near) / near.sum() ** 2, mode="constant")
        wanted = ndimage.correlate(x[0], (disk / disk.sum())[..., None], mode="mirror")
        np.testing.assert_allclose(apply(x, "defocus_blur", severity)[0], wanted, atol=1 / 255)


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.875, 1.0, 1.3, 1.8])
def test_a_rescaled_kernel_keeps_its_sum_and_widens_with_severity(scale):
    spreads = []
    for parameters in PARAMETERS["defocus_blur"]["32"]:
        kernel = defocus_kernel(*parameters, scale)
        offset = np.arange(len(kernel)) - len(kernel) // 2
        assert kernel.sum() == pytest.approx(1)
        spreads.append(float((kernel.sum(axis=1) * np.abs(offset)).sum()))
    assert spreads[0] > 0
    assert (np.diff(spreads) > -0.05).all()


def test_motion_moves_mass_along_its_direction_only():
    x = np.zeros((200, 33, 33), dtype=np.float32)
    x[:, 16, 16] = 1
    made = apply(x, "motion_blur", 3).astype(np.float64)
    grid = np.arange(33) - 16
    np.testing.assert_allclose(made.sum(axis=(1, 2)), 1, atol=1e-4)
    along = (made * np.abs(grid)[None, None, :]).sum(axis=(1, 2))
    across = (made * np.abs(grid)[None, :, None]).sum(axis=(1, 2))
    assert (across <= along + 0.6).all()  # the angle lies within 45 degrees of the horizontal
    assert ((made * grid[None, None, :]).sum(axis=(1, 2)) < 0).all()  # trails are one-sided


@pytest.mark.parametrize("size", [32, 65, 224])
@pytest.mark.parametrize("factor", [1.01, 1.06, 1.11, 1.25])
def test_the_published_zoom_is_scipys(size, factor):
    line = np.random.default_rng(0).random(size)
    cut = int(np.ceil(size / factor))
    start = (size - cut) // 2
    enlarged = ndimage.zoom(line[start : start + cut], factor, order=1)
    trim = (len(enlarged) - size) // 2
    ours = zoom_matrix(size, factor, published=True) @ line
    np.testing.assert_allclose(ours, enlarged[trim : trim + size], atol=1e-9)


def test_the_exact_zoom_fixes_the_centre_and_scales_a_ramp():
    ramp = np.linspace(-1, 1, 9)
    np.testing.assert_allclose(zoom_matrix(9, 1.25, published=False) @ ramp, ramp / 1.25, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixelate_is_pillows_box_resampling(channels):
    x = np.round(scenes(4, 30, 37, channels) * 255).astype(np.uint8)
    for severity, share in enumerate((0.95, 0.9, 0.85, 0.75, 0.65), start=1):
        small = (int(37 * share), int(30 * share))
        for image, made in zip(x, apply(x, "pixelate", severity), strict=True):
            shrunk = Image.fromarray(image.squeeze()).resize(small, Image.Resampling.BOX)
            wanted = np.asarray(shrunk.resize((37, 30), Image.Resampling.BOX)).reshape(image.shape)
            assert np.abs(made.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(("channels", "share"), [(1, 0.97), (3, 0.92)])
def test_jpeg_is_pillows(channels, share):
    x = np.round(scenes(6, 41, 35, channels) * 255).astype(np.uint8)
    for severity, quality in enumerate((80, 65, 58, 50, 40), start=1):
        for image, made in zip(x, apply(x, "jpeg_compression", severity), strict=True):
            file = io.BytesIO()
            Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
            gap = np.abs(made.astype(int) - np.asarray(Image.open(file)).reshape(image.shape))
            assert gap.mean() < 0.75
            assert (gap <= 2).mean() > share


def test_elastic_without_strength_is_affine():
    rows, columns = np.meshgrid(np.linspace(0.2, 0.6, 32), np.linspace(0, 0.3, 32), indexing="ij")
    made = apply((rows + columns)[None].astype(np.float32), "elastic_transform", 1)[0].astype(np.float64)
    inner = made[12:20, 12:20]  # an affine map of a ramp is a ramp: no second differences
    assert np.abs(np.diff(inner, 2, axis=0)).max() < 1e-5
    assert np.abs(np.diff(inner, 2, axis=1)).max() < 1e-5
    assert np.abs(made - (rows + columns)).max() > 0.005


def test_glass_only_swaps_pixels_when_its_blur_is_too_narrow_to_matter():
    x = np.round(scenes(3, 32, 32, 1) * 255).astype(np.uint8)
    made = apply(x, "glass_blur", 1)  # blur of 0.05 pixels
    np.testing.assert_array_equal(np.sort(made.ravel()), np.sort(x.ravel()))
    assert (made[:, 2:-2] != x[:, 2:-2]).mean() > 0.3


def test_plasma_repeats_and_fills_its_range():
    heights = plasma(64, 2.0, Streams.of(np.random.default_rng(0), 8))
    np.testing.assert_allclose(heights.min(axis=(1, 2)), 0)
    np.testing.assert_allclose(heights.max(axis=(1, 2)), 1)
    seam = np.abs(heights[:, :, 0] - heights[:, :, -1]).mean()
    inner = np.abs(np.diff(heights, axis=2)).mean()
    assert seam < 2 * inner  # no seam where the torus closes
    rough = plasma(64, 1.2, Streams.of(np.random.default_rng(0), 8))
    assert np.abs(np.diff(rough, axis=2)).mean() > 2 * inner


def test_fog_keeps_the_brightest_value_and_lifts_black():
    x = scenes(5, 32, 32)
    made = apply(x, "fog", 5)
    assert (made.max(axis=(1, 2, 3)) <= x.max(axis=(1, 2, 3)) + 1e-5).all()
    dark = x < 0.1
    assert made[dark].mean() > x[dark].mean() + 0.05


def test_frost_takes_the_users_textures():
    x = scenes(2, 16, 16)
    texture = np.full((200, 170, 3), 0.5, dtype=np.float32)
    made = apply(x, "frost", 3, textures=[texture])
    np.testing.assert_allclose(made, np.clip(0.9 * x + 0.2, 0, 1), atol=1e-6)
    bytes_ = apply(x, "frost", 3, textures=[np.full((200, 170, 3), 51, dtype=np.uint8)])
    np.testing.assert_allclose(bytes_, np.clip(0.9 * x + 0.08, 0, 1), atol=1e-6)
    with pytest.raises(InputError, match=r"texture needs shape .≥160, ≥160, 3. .* it at 0.1 of"):
        apply(x, "frost", 3, textures=[texture[:100]])
    with pytest.raises(InputError, match="float in"):
        apply(x, "frost", 3, textures=[texture * 255])
    with pytest.raises(InputError, match="empty"):
        apply(x, "frost", 3, textures=[])
    with pytest.raises(InputError, match="height, width, 3"):
        apply(x, "frost", 3, textures=[texture[..., 0]])


@pytest.mark.parametrize(("side", "share"), [(32, 0.2), (64, 0.3), (224, 1.0), (28, 0.175)])
def test_textures_are_used_at_the_published_share_of_their_size(side, share):
    pitch = 40  # stripes of this many pixels, so of pitch * share in the image
    stripes = (np.arange(1200) // pitch % 2).astype(np.float32)
    made = apply(
        np.zeros((1, side, side, 3), np.float32), "frost", 1, textures=[np.tile(stripes[:, None, None], (1, 1200, 3))]
    )
    level = made[0, :, 0, 0]
    switches = np.flatnonzero(np.abs(np.diff(level > level.max() / 2)))
    np.testing.assert_allclose(np.diff(switches).mean(), pitch * share, rtol=0.05)


def test_textures_come_from_a_folder(tmp_path):
    for name, value in (("b.png", 51), ("a.jpg", 255)):
        Image.fromarray(np.full((170, 200, 3), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    loaded = load_textures(tmp_path)
    assert [texture.shape for texture in loaded] == [(170, 200, 3)] * 2
    np.testing.assert_allclose([texture.mean() for texture in loaded], [1.0, 0.2], atol=1e-3)
    x = scenes(3, 16, 16)
    np.testing.assert_array_equal(apply(x, "frost", 2, textures=str(tmp_path)), apply(x, "frost", 2, textures=loaded))
    with pytest.raises(InputError, match="no folder"):
        load_textures(tmp_path / "c")
    (tmp_path / "c.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be decoded"):
        load_textures(tmp_path)


def test_borders_fold():
    index = np.arange(-3, 7)
    np.testing.assert_array_equal(fold(index, 4, "reflect-101"), [3, 2, 1, 0, 1, 2, 3, 2, 1, 0])
    np.testing.assert_array_equal(fold(index, 4, "reflect"), [2, 1, 0, 0, 1, 2, 3, 3, 2, 1])
    np.testing.assert_array_equal(fold(index, 4, "edge"), [0, 0, 0, 0, 1, 2, 3, 3, 3, 3])


def test_box_rows_are_means():
    for entering, leaving in [(8, 7), (28, 18), (5, 13)]:
        np.testing.assert_allclose(box_matrix(entering, leaving).sum(axis=1), 1)


def test_all_75_cells_of_100_small_images_take_seconds():
    x = scenes(100, 28, 28, 1)
    began = time.process_time()
    for name in FAMILIES:
        for severity in range(1, 6):
            apply(x, name, severity)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("x", "name", "severity", "says"),
    [
        (np.zeros((1, 8, 8)), "rain", 1, "unknown corruption"),
        (np.zeros((1, 8, 8)), "fog", 6, "1 to 5"),
        (np.zeros((1, 7, 8)), "fog", 1, "at least 8x8"),
        (np.zeros((1, 3, 32, 32)), "fog", 1, "channels_first"),
        (np.zeros((8, 8)), "fog", 1, "shape"),
        (np.full((1, 8, 8), 255.0), "fog", 1, "rescale"),
        (np.full((1, 8, 8), np.nan), "fog", 1, "finite"),
        (np.zeros((1, 8, 8), np.int64), "fog", 1, "uint8"),
    ],
)
def test_bad_input_is_told(x, name, severity, says):
    with pytest.raises(InputError, match=says):
        apply(x, name, severity)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"x": torch.zeros(1, 8, 8)}, "numpy array"),
        ({"severity": 2.0}, "whole number"),
        ({"severity": "2"}, "whole number"),
        ({"generator": 0}, "default_rng"),
        ({"generator": [0]}, "default_rng"),
        ({"table": 32}, "tables are called"),
        ({"table": "99"}, "tables are called"),
    ],
)
def test_arguments_of_another_type_are_told(changed, says):
    """As users meet them: without the checks of types that tests add."""
    given = {"x": np.zeros((1, 8, 8)), "name": "fog", "severity": 1, "generator": np.random.default_rng(0), **changed}
    with pytest.raises(InputError, match=says):
        inspect.unwrap(corrupt)(**given)


def test_a_generator_is_wanted_for_every_image():
    with pytest.raises(InputError, match="2 generators"):
        corrupt(np.zeros((3, 8, 8)), "fog", 1, generator=[np.random.default_rng(i) for i in range(2)])


def test_nothing_in_nothing_out():
    assert apply(np.zeros((0, 8, 8), np.float32), "fog", 1).shape == (0, 8, 8)
