"""Patch profiles: places on and off the grid, what fills the window, and that rates count only what was right."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.attack.patch_profile import (
    KINDS,
    corrupted,
    filled_from,
    fooling_rate,
    patch_profile,
    patched,
    token_places,
)
from holdfast.inputs.corruption import corrupt
from holdfast.threats import Patch


def pictures(n=40, side=12, channels=1, seed=0):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


class Corner(nn.Module):
    """Says 1 where the mean of one pixel's window is bright; everything else is ignored."""

    def forward(self, x):
        bright = x[:, :, 4:8, 4:8].mean((1, 2, 3)) - 0.5
        return torch.stack([-bright, bright], 1)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_places_lie_off_the_grid_by_the_offset_and_inside(offset):
    x = pictures(400, side=28)
    places = token_places(Patch(4, 4), x, offset=offset, generator=torch.Generator().manual_seed(0))
    assert places.shape == (400, 2)
    assert bool((places % 4 == offset).all())
    assert (int(places.min()), int(places.max())) == (4 + offset, 20 + offset)
    assert len(places.unique(dim=0)) == 25


def test_places_of_images_with_few_tokens_stay_inside():
    for side, patch in ((8, Patch(4, 4)), (4, Patch(4, 4)), (8, Patch(4, 2))):
        x = pictures(60, side=side)
        for offset in (0, 1):
            places = token_places(patch, x, offset=offset, generator=torch.Generator().manual_seed(0))
            down, across = patch.places(x)
            assert bool((places >= 0).all())
            assert bool((places < torch.tensor([down, across])).all())
    free = token_places(Patch(5, 3), pictures(500), align=False, generator=torch.Generator().manual_seed(0))
    assert free.amax(0).tolist() == [7, 9]


def test_a_natural_patch_is_a_window_of_the_corrupted_image():
    x, places = pictures(), torch.tensor([[2, 5]]).expand(40, -1)
    made = patched(
        Corner().eval(), x, torch.zeros(40, dtype=torch.int64), Patch(3, 4), places, "brightness", severity=5
    )
    whole = corrupt(x.numpy(), "brightness", 5, generator=np.random.default_rng(0), layout="channels_first")
    wanted = x.clone()
    wanted[:, :, 2:5, 5:9] = torch.from_numpy(whole)[:, :, 2:5, 5:9]
    torch.testing.assert_close(made, wanted)


def test_corruption_works_in_any_valid_range():
    x = pictures()
    plain = corrupted(x, "contrast", 3, np.random.default_rng(0))
    wide = corrupted(x * 4 - 2, "contrast", 3, np.random.default_rng(0), valid=(-2.0, 2.0))
    torch.testing.assert_close(wide, plain * 4 - 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["natural", "noise", "blank", "adversarial", "gaussian_noise"])
def test_only_the_window_changes(kind):
    x, places = pictures(20), torch.tensor([[4, 4]]).expand(20, -1)
    model = Corner().eval()
    made = patched(model, x, model(x).argmax(1), Patch(4, 4), places, kind, seed=3)
    outside = filled_from(torch.zeros_like(x), made, Patch(4, 4), places)
    assert torch.equal(outside, filled_from(torch.zeros_like(x), x, Patch(4, 4), places))
    assert int((made != x).flatten(1).any(1).sum()) >= 15  # some corruptions leave a window of noise as it is
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1


def test_the_profile_finds_the_only_window_a_model_looks_at():
    x = pictures(60)
    y = Corner()(x).argmax(1)
    table = patch_profile(Corner().eval(), x, y, Patch(4, 4), ("adversarial", "blank"), (0, 3), steps=15)
    rates = {(row[0], row[1]): row[2] for row in table.rows}
    assert rates["clean accuracy", None].value == 1
    # Interior tokens of 12 pixels: only the one at 4; moved by 3 pixels it covers one of 16 pixels of the window.
    assert rates["adversarial", 0].value == 1
    assert rates["adversarial", 3].value < 0.5


def test_rates_are_of_what_was_right():
    right = torch.tensor([True, True, True, False, False])
    wrong = torch.tensor([True, False, False, True, True])
    rate = fooling_rate(right, wrong)
    assert (rate.value, rate.n) == (pytest.approx(1 / 3), 3)
    with pytest.raises(InputError, match="no clean image right"):
        fooling_rate(torch.zeros(3, dtype=torch.bool), wrong[:3])


def test_bad_input_is_told():
    x, model = pictures(), Corner().eval()
    y = model(x).argmax(1)
    with pytest.raises(InputError, match="does not divide"):
        token_places(Patch(5, 5), x)
    with pytest.raises(InputError, match="does not fit"):
        token_places(Patch(13, 1), x)
    for offset in (-1, 4):
        with pytest.raises(InputError, match="offset"):
            token_places(Patch(4, 4), x, offset=offset)
    with pytest.raises(InputError, match="unknown kind"):
        patch_profile(model, x, y, Patch(4, 4), ("rain",))
    with pytest.raises(InputError, match="unknown kind"):
        patched(model, x, y, Patch(4, 4), torch.zeros(40, 2, dtype=torch.int64), "rain")
    with pytest.raises(InputError, match="valid range"):
        patched(model, x, y, Patch(4, 4), torch.zeros(40, 2, dtype=torch.int64), "blank", valid=None)
    assert "snow" in KINDS
