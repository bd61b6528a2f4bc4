"""Attribute edits: the object stays what and as large as was asked, the rest is filled, guided and reported."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.corruption.attributes import (
    ObjectEdit,
    SizeClampedWarning,
    attribute_report,
    blended_denoise,
    guided,
    spectral_amplitude,
)
from holdfast.inputs.corruption.holes import biharmonic_fill
from holdfast.inputs.corruption.placement import bounds


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(n=3, side=32, seed=0):
    """Objects of value .9 (an L, so that turning shows) on random backgrounds below .7."""
    x = torch.rand(n, 3, side, side, generator=rng(seed)) * 0.7
    mask = torch.zeros(n, side, side, dtype=torch.bool)
    mask[:, 10:22, 12:16] = True
    mask[:, 18:22, 12:20] = True
    return torch.where(mask[:, None], torch.tensor(0.9), x), mask


@pytest.mark.parametrize(
    "edit",
    [
        ObjectEdit(),
        ObjectEdit(complexity=20.0),
        ObjectEdit(complexity=-20.0),
        ObjectEdit(background=torch.zeros(1, 3, 32, 32)),
        ObjectEdit(complexity=20.0, guidance=lambda x: x.mean((1, 2, 3))),
    ],
)
def test_background_edits_leave_the_object_as_it_was(edit):
    x, mask = scene()
    made, shape = edit.compose(x, mask, rng())
    assert torch.equal(shape, mask)
    assert torch.equal(made[mask[:, None].expand_as(x)], x[mask[:, None].expand_as(x)])
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1


def test_no_edit_is_the_image_itself():
    x, mask = scene()
    assert torch.equal(ObjectEdit().edit(x, mask, rng()), x)


@given(st.floats(0.02, 0.25))
def test_the_object_covers_what_was_asked_to_the_pixel(share):
    x, mask = scene(n=1)
    _, shape = ObjectEdit(size=share, fill=lambda images, missing: images).compose(x, mask, rng())
    assert abs(int(shape.sum()) - share * 32 * 32) <= 0.5


def test_full_size_touches_the_frame_and_too_large_is_clamped_with_a_warning():
    x, mask = scene()
    _, full = ObjectEdit(size="full").compose(x, mask, rng())
    assert bounds(full)[:, [0, 2]].tolist() == [[0, 32]] * 3
    with pytest.warns(SizeClampedWarning, match="3 of 3 objects"):
        _, clamped = ObjectEdit(size=0.9).compose(x, mask, rng())
    assert torch.equal(full, clamped)


def test_a_named_position_is_the_middle_of_the_box_and_random_ones_stay_inside():
    x, mask = scene(n=40)
    _, corner = ObjectEdit(position=(0.0, 1.0)).compose(x, mask, rng())
    assert bounds(corner)[0].tolist() == [0, 24, 12, 32]  # as far into the corner as its 12x8 box can go
    _, middle = ObjectEdit(position=(0.5, 0.5)).compose(x, mask, rng())
    assert bounds(middle)[0].tolist() == [10, 12, 22, 20]
    _, moved = ObjectEdit(position="random").compose(x, mask, rng())
    assert torch.equal(moved.sum((1, 2)), mask.sum((1, 2)))
    assert len({tuple(box) for box in bounds(moved).tolist()}) > 20


def test_a_quarter_turn_is_that_of_the_array():
    x, mask = scene(n=1)
    made, shape = ObjectEdit(angle=90.0).compose(x, mask, rng())
    box = [int(part) for part in bounds(shape)[0]]
    turned = mask[0, 10:22, 12:20].rot90(1, (0, 1))
    assert torch.equal(shape[0, box[0] : box[2], box[1] : box[3]], turned)
    assert float((made - 0.9).abs()[:, :, shape[0]].max()) < 1e-5


def test_nothing_of_the_object_is_left_in_the_hole():
    """Two images that differ in the object alone have the same background once it is moved away."""
    x, mask = scene(n=1)
    other = torch.where(mask[:, None], torch.tensor(0.1), x)
    edit = ObjectEdit(position=(0.0, 0.0))
    (one, shape), (two, _) = (edit.compose(images, mask, rng()) for images in (x, other))
    outside = ~shape[0]
    torch.testing.assert_close(one[:, :, outside], two[:, :, outside])


def test_holes_in_planes_and_saddles_are_filled_exactly():
    row, column = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 20), indexing="ij")
    plane = 0.2 + 0.3 * row + 0.4 * column
    saddle = 0.5 + 0.4 * ((row * 23) ** 2 - (column * 23) ** 2 * (19 / 23) ** 2) / 23**2
    x = torch.stack([plane, saddle])[None].double()
    missing = torch.zeros(1, 24, 20, dtype=torch.bool)
    missing[0, 6:15, 5:12] = True
    filled = biharmonic_fill(torch.where(missing[:, None], torch.rand_like(x), x), missing, texture=0.0)
    torch.testing.assert_close(filled[:, 0], x[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(filled[:, 1], x[:, 1], atol=2e-3, rtol=0)
    missing[0, :4, :4] = True  # and a corner
    filled = biharmonic_fill(torch.where(missing[:, None], torch.rand_like(x), x), missing, texture=0.0)
    torch.testing.assert_close(filled[:, 0], x[:, 0], atol=1e-5, rtol=0)


def test_texture_gives_holes_the_roughness_around_them():
    """High frequencies, as the mean size of the Laplacian, well inside a hole in fine noise."""
    x = torch.rand(1, 1, 40, 40, generator=rng()) * 0.4 + 0.3
    missing = torch.zeros(1, 40, 40, dtype=torch.bool)
    missing[0, 10:26, 10:26] = True

    def roughness(images):
        return float(images.diff(n=2, dim=2).abs().mean() + images.diff(n=2, dim=3).abs().mean())

    smooth, laid = (biharmonic_fill(x, missing, texture=amount)[:, :, 14:22, 14:22] for amount in (0.0, 1.0))
    around = roughness(x[:, :, :10])
    assert abs(roughness(laid) - around) < 0.5 * abs(roughness(smooth) - around)


def test_amplitude_grows_with_lambda_and_the_histogram_stays():
    x, mask = scene()
    x = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    amplitude = [float(spectral_amplitude(guided(x, mask, c, None), mask).mean()) for c in (-20.0, -5.0, 5.0, 20.0)]
    original = float(spectral_amplitude(x, mask).mean())
    assert amplitude[0] < amplitude[1] < original < amplitude[2] < amplitude[3]
    for before, after, shape in zip(x, guided(x, mask, 20.0, None), mask, strict=True):
        torch.testing.assert_close(before[:, ~shape].sort(1).values, after[:, ~shape].sort(1).values)


def test_amplitude_of_a_single_wave_is_known():
    """cos(2 pi 3 c / n) has two coefficients of n / 2 (orthonormal in n x n), so the mean over n^2 is 1 / n."""
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16)
    assert float(spectral_amplitude(wave)) == pytest.approx(1 / 16, abs=1e-6)
    assert float(spectral_amplitude(torch.full((1, 1, 8, 8), 0.3))) == pytest.approx(0, abs=1e-6)


def test_guidance_is_followed():
    x, mask = scene()

    def left_half(images):
        return images[..., :16].mean((1, 2, 3))

    moved = ObjectEdit(guidance=left_half).edit(x, mask, rng())
    assert (left_half(moved) < left_half(x) - 0.02).all()


def gaussian_denoiser(x, level):
    """Posterior mean under N(0, 1)."""
    return x / (1 + level**2)


def test_blended_denoising_samples_the_prior_around_the_object():
    x, mask = scene(n=40)
    levels = [10 * 0.75**i for i in range(28)]
    made = blended_denoise(
        gaussian_denoiser, x, mask, lambda images: images.sum((1, 2, 3)) * 0, levels, generator=rng()
    )
    shape = mask[:, None].expand_as(x)
    assert torch.equal(made[shape], x[shape])
    assert float(made[~shape].mean()) == pytest.approx(0, abs=0.05)
    assert float(made[~shape].std()) == pytest.approx(1, abs=0.15)
    bright = blended_denoise(
        gaussian_denoiser, x, mask, lambda images: -images.sum((1, 2, 3)), levels, generator=rng(), weight=0.1
    )
    assert float(bright[~shape].mean()) > 0.2


class Brightness(nn.Module):
    """Class 1 when the corner pixel is light."""

    def forward(self, x):
        light = x[:, :, 0, 0].mean(1) - 0.35
        return torch.stack([-light, light], 1)


def test_the_report_pairs_what_was_lost():
    x, mask = scene(n=30)
    y = Brightness()(x).argmax(1)
    edits = {"dark": ObjectEdit(background=torch.zeros(1, 3, 32, 32)), "same": ObjectEdit()}
    made = attribute_report(Brightness().eval(), x, y, mask, edits, generator=rng())
    assert made.accuracy.value == 1
    assert made.dropped["same"].value == 0
    assert made.dropped["dark"].value == pytest.approx(float((y == 1).float().mean()))
    assert made.dropped["dark"].low > 0
    assert [row[0] for row in made.table().rows] == ["dark", "same"]
    assert isinstance(made.correct["dark"], np.ndarray)


def test_bad_input_is_told():
    x, mask = scene()
    with pytest.raises(InputError, match="image 1 is empty"):
        ObjectEdit().edit(x, mask & torch.tensor([True, False, True])[:, None, None], rng())
    with pytest.raises(InputError, match="covers everything"):
        ObjectEdit().edit(x, torch.ones_like(mask), rng())
    with pytest.raises(InputError, match="differ in number or size"):
        ObjectEdit().edit(x, mask[:, :16], rng())
    with pytest.raises(InputError, match="share of the image's area"):
        ObjectEdit(size=1.5)
    for size in (2, 1, 0, "huge"):
        with pytest.raises(InputError, match="share of the image's area"):
            ObjectEdit(size=size)
    for position in ((3.0, 5.0), (0.5, -0.1), (float("nan"), 0.5), "left"):
        with pytest.raises(InputError, match="position"):
            ObjectEdit(position=position)
    for angle in (float("inf"), "upside down"):
        with pytest.raises(InputError, match="degrees"):
            ObjectEdit(angle=angle)
    with pytest.raises(InputError, match="backgrounds must be"):
        ObjectEdit(background=torch.zeros(1, 3, 8, 8)).edit(x, mask, rng())
    with pytest.raises(InputError, match="at least one edit"):
        attribute_report(Brightness(), x, torch.zeros(3, dtype=torch.long), mask, {}, generator=rng())
    with pytest.raises(InputError, match="levels that fall"):
        blended_denoise(gaussian_denoiser, x, mask, lambda images: images.sum((1, 2, 3)), [1.0, 2.0], generator=rng())
    with pytest.raises(InputError, match="nothing to fill it from"):
        biharmonic_fill(x, torch.ones_like(mask))
