"""Where an object stands in its image, and reading it at another place, size and angle."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Masks = Bool[Tensor, "n height width"]


def bounds(mask: Masks) -> Float[Tensor, "n 4"]:
    """(top, left, bottom, right) of every mask in pixels, bottom and right exclusive; masks must not be empty."""
    down, across = mask.any(2).double(), mask.any(1).double()
    return torch.stack(
        [
            down.argmax(1),
            across.argmax(1),
            mask.shape[1] - down.flip(1).argmax(1),
            mask.shape[2] - across.flip(1).argmax(1),
        ],
        1,
    ).double()


def turned_extent(mask: Masks, middle: Float[Tensor, "n 2"], angle: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    """Height and width of the smallest upright box, centred on `middle`, around the mask turned about it."""
    height, width = mask.shape[1:]
    rows, columns = (torch.arange(size, dtype=torch.float64) + 0.5 for size in (height, width))
    down, right = rows[None, :, None] - middle[:, :1, None], columns[None, None, :] - middle[:, 1:, None]
    cosine, sine = _turn(angle)
    inside = mask.cpu()
    reach_down = ((down * cosine - right * sine).abs() * inside).amax((1, 2))
    reach_right = ((right * cosine + down * sine).abs() * inside).amax((1, 2))
    edge = (cosine.abs() + sine.abs())[:, 0, 0]  # from the pixels' centres to their corners
    return torch.stack([2 * reach_down + edge, 2 * reach_right + edge], 1)


def resampled(
    x: Float[Tensor, "n channels height width"],
    mask: Masks,
    middle: Float[Tensor, "n 2"],
    goal: Float[Tensor, "n 2"],
    scale: Float[Tensor, " n"],
    angle: Float[Tensor, " n"],
) -> tuple[Float[Tensor, "n channels height width"], Masks]:
    """Images and masks whose point `middle` stands at `goal` (row, column), enlarged and turned counter-clockwise.

    Pixels are read bilinearly from the object alone, so none of its old background comes along.  The new mask holds the
    pixels that the object covers most, as many as its area asks for.
    """
    height, width = mask.shape[1:]
    rows, columns = (torch.arange(size, dtype=torch.float64) + 0.5 for size in (height, width))
    down, right = rows[None, :, None] - goal[:, :1, None], columns[None, None, :] - goal[:, 1:, None]
    cosine, sine = _turn(angle)
    factor = scale[:, None, None]
    source_down = (down * cosine + right * sine) / factor + middle[:, :1, None]
    source_right = (right * cosine - down * sine) / factor + middle[:, 1:, None]
    grid = torch.stack([source_right * 2 / width - 1, source_down * 2 / height - 1], -1).to(x)
    solid = mask[:, None].to(x)
    read = F.grid_sample(torch.cat([x * solid, solid], 1), grid, align_corners=False, padding_mode="zeros")
    weight = read[:, -1:]
    wanted = (scale.double() ** 2 * mask.sum((1, 2)).double().cpu()).round()
    rank = weight[:, 0].flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    covered = (rank < wanted[:, None].to(rank.device)).view_as(mask) & (weight[:, 0] > 0)
    return read[:, :-1] / weight.clamp(min=1e-6), covered


def _turn(angle: Float[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    radians = torch.deg2rad(angle.double())[:, None, None]
    return torch.cos(radians), torch.sin(radians)
