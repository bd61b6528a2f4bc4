"""Images that set shape against texture: what is kept, what is destroyed, and what counts as an answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.attack.biases import (
    CroppedWarning,
    CueConflicts,
    cue_conflict,
    recognition,
    scramble,
    shape_bias,
    silhouette,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=6, channels=2, height=12, width=12, seed=0):
    return torch.rand(n, channels, height, width, generator=seeded(seed))


def discs(n=6, side=12, radius=4.0):
    place = torch.arange(side) - (side - 1) / 2
    return (place[:, None] ** 2 + place**2 <= radius**2).expand(n, 1, side, side)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_scrambling_moves_whole_tiles_and_loses_none(k, size, seed):
    x = pictures(3, 2, k * size, k * size * 2, seed)
    mixed = scramble(x, k, seeded(seed))

    def tiles(image):
        return sorted(
            image[:, i * size : (i + 1) * size, j * size * 2 : (j + 1) * size * 2].flatten().tolist()
            for i in range(k)
            for j in range(k)
        )

    assert all(tiles(before) == tiles(after) for before, after in zip(x, mixed, strict=True))


def test_scrambling_into_one_tile_changes_nothing_and_every_order_is_as_likely():
    x = pictures()
    assert torch.equal(scramble(x, 1), x)
    numbered = torch.arange(4.0).reshape(1, 1, 2, 2).expand(4800, -1, -1, -1)
    orders = scramble(numbered, 2, seeded()).flatten(1) @ torch.tensor([64.0, 16.0, 4.0, 1.0])
    counts = orders.unique(return_counts=True)[1].double()
    assert len(counts) == 24
    assert float(((counts - 200) ** 2 / 200).sum()) < 49.7  # chi-squared with 23 degrees of freedom, p = 0.001


def test_sides_that_do_not_divide_are_cropped_and_told():
    with pytest.warns(CroppedWarning, match="12x9"):
        assert scramble(pictures(height=14, width=10), 3).shape == (6, 2, 12, 9)


def test_a_conflict_has_the_outline_of_one_image_and_the_values_of_the_other():
    shapes, textures, masks = pictures(seed=1), pictures(seed=2) + 5, discs()
    made = cue_conflict(shapes, textures, masks, seeded(), tile=5, background=-1.0)
    inside = masks.expand_as(made)
    assert bool((made[~inside] == -1).all())
    for image, source in zip(made, textures, strict=True):
        assert set(image[0][masks[0, 0]].tolist()) <= set(source[0].flatten().tolist())


def test_the_tile_is_cut_from_the_object_and_mirrored_without_seams():
    textures = torch.zeros(4, 1, 12, 12)
    held = torch.zeros(4, 1, 12, 12, dtype=torch.bool)
    for index, (top, left) in enumerate([(0, 0), (7, 2), (3, 8), (8, 8)]):
        textures[index, 0, top : top + 4, left : left + 4] = torch.rand(4, 4, generator=seeded(index)) + 1
        held[index, 0, top : top + 4, left : left + 4] = True
    everywhere = torch.ones(4, 1, 12, 12, dtype=torch.bool)
    made = cue_conflict(textures, textures, everywhere, seeded(), texture_masks=held, tile=4)
    for index, (top, left) in enumerate([(0, 0), (7, 2), (3, 8), (8, 8)]):
        tile = textures[index, 0, top : top + 4, left : left + 4]
        torch.testing.assert_close(made[index, 0, :4, :4], tile)
        torch.testing.assert_close(made[index, 0, 4:8, :4], tile.flip(0))
        torch.testing.assert_close(made[index, 0, 8:12, 4:8], tile.flip(1))


def test_silhouettes_keep_the_outline_alone():
    made = silhouette(discs(), pictures(), value=0.7, background=0.2)
    assert made.shape == (6, 2, 12, 12)
    assert made.unique().tolist() == pytest.approx([0.2, 0.7])
    assert bool(((made > 0.5) == discs()).all())


class Says(nn.Module):
    """Answers the class written in the first pixel."""

    def forward(self, x):
        return nn.functional.one_hot(x[:, 0, 0, 0].long(), 5).float()


def conflicts(answers, shape, texture):
    images = torch.zeros(len(answers), 1, 4, 4)
    images[:, 0, 0, 0] = torch.tensor(answers, dtype=torch.float32)
    return CueConflicts(images, torch.tensor(shape), torch.tensor(texture))


def test_bias_counts_answers_by_shape_or_texture_alone():
    found = shape_bias(Says(), conflicts([0, 0, 1, 4, 2], [0, 0, 0, 0, 2], [1, 1, 1, 1, 1]))
    assert (found.value, found.n) == (pytest.approx(3 / 4), 4)
    assert shape_bias(Says(), conflicts([1, 1], [0, 0], [1, 1])).value == 0


def test_recognition_starts_from_what_every_model_gets_right():
    x = conflicts([0, 1, 2, 3], [0] * 4, [1] * 4).images
    y = torch.tensor([0, 1, 2, 4])

    class Never2(Says):
        def forward(self, images):
            logits = super().forward(images)
            return torch.where(torch.arange(5) == 2, -1.0, logits)

    changed = {"same": x, "zeros": torch.zeros_like(x)}
    table = recognition({"a": Says(), "b": Never2()}, x, y, changed)
    assert table.columns == ("images", "a", "b")
    assert [(row[0], row[1].value, row[2].value, row[1].n) for row in table.rows] == [
        ("same", 1.0, 1.0, 2),
        ("zeros", 0.5, 0.5, 2),
    ]


def test_bad_input_is_told():
    x = pictures()
    with pytest.raises(InputError, match="no conflict"):
        conflicts([0, 1], [0, 1], [1, 1])
    with pytest.raises(InputError, match="one each"):
        CueConflicts(x, torch.zeros(6, dtype=torch.int64), torch.ones(5, dtype=torch.int64))
    with pytest.raises(InputError, match="no bias to measure"):
        shape_bias(Says(), conflicts([4, 4], [0, 0], [1, 1]))
    with pytest.raises(InputError, match="masks have shape"):
        cue_conflict(x, x, discs(side=11))
    with pytest.raises(InputError, match="masks have shape"):
        silhouette(discs(n=5), x)
    with pytest.raises(InputError, match="alike"):
        cue_conflict(x, x[:, :1], discs())
    with pytest.raises(InputError, match="tile of 13"):
        cue_conflict(x, x, discs(), tile=13)
    for k in (0, 13):
        with pytest.raises(InputError, match="cannot be cut"):
            scramble(x, k)
    with pytest.raises(InputError, match="originals are 6"):
        recognition({"a": Says()}, x, torch.zeros(6, dtype=torch.int64), {"few": x[:2]})
    with pytest.raises(InputError, match="no image is right"):
        recognition({"a": Says()}, x, torch.full((6,), 3), {"same": x})
