"""Small moves of an image, tried out one by one: whole-pixel shifts, and shifts with rotation.

The set is finite, so the answer is exact: an image is fooled when one of its views is.  For `Translation(px, "reveal")`
x carries a margin of px real pixels on every side, the model sees the middle, and what enters at the border is what a
camera would have seen (Azulay and Weiss, 2019, on why padding and rolling tell less).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.inputs.attack.loop import Model, as_labels, check_batch, check_logits, forward
from holdfast.inputs.attack.losses import margin
from holdfast.threats.base import Valid
from holdfast.threats.places import Translation


@dataclass(frozen=True, eq=False)
class ShiftRun:
    """What trying every move found, one entry an example.

    `x_adv` is the first view that fools (else the clean view); `fooled_moves` how many do; `worst_margin` the largest
    best-wrong minus right logit over all views; `success` whether a rightly classified clean view can be fooled.
    `predictions` (moves, batch) are the answers to all views, the unmoved one first.
    """

    x_adv: Float[Tensor, "batch channels high wide"]
    success: Bool[Tensor, " batch"]
    fooled_moves: Int[Tensor, " batch"]
    worst_margin: Float[Tensor, " batch"]
    predictions: Int[Tensor, "moves batch"]


@dataclass(frozen=True)
class ShiftAttack:
    """Every whole-pixel move of a `Translation` against every example."""

    threat: Translation

    def __call__(
        self,
        model: Model,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channels high wide"]:
        """The first view that fools, or the clean view; smaller than x by the margin when moves reveal pixels."""
        return self.run(model, x, y, valid=valid, generator=generator).x_adv

    def run(
        self,
        model: Model,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = None,
        generator: torch.Generator | None = None,
    ) -> ShiftRun:
        """Everything that was found out.  `generator` is not used, every move is tried.  Raises InputError for images
        too small to move, and as `check_images`.
        """
        y = check_images(model, x, y, valid, zeros_enter=self.threat.edge == "zeros")
        return tried(model, [self.threat.moved(x, move) for move in self.threat.moves()], y)


@dataclass(frozen=True)
class RotationTranslation:
    """A grid of rotations (up to `degrees`) and shifts (up to `pixels`), bilinear, zeros entering at the border.

    `grid` counts rotations, shifts down and shifts right, each odd so that the unmoved image is among them
    (Engstrom et al., 2019: 31 x 5 x 5 over 30 degrees and a tenth of the image).
    """

    degrees: float = 30.0
    pixels: float = 3.0
    grid: tuple[int, int, int] = (31, 7, 7)

    def __post_init__(self) -> None:
        if any(count < 1 or count % 2 == 0 for count in self.grid):
            raise InputError(f"every count of the grid must be odd, to hold the unmoved image, got {self.grid}")

    def __call__(
        self,
        model: Model,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The mildest view that fools, or the clean image."""
        return self.run(model, x, y, valid=valid, generator=generator).x_adv

    def run(
        self,
        model: Model,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        *,
        valid: Valid = None,
        generator: torch.Generator | None = None,
    ) -> ShiftRun:
        """Everything that was found out; views are ordered from mild to wild.  `generator` is not used, every move is
        tried.  Raises InputError as `check_images`.
        """
        y = check_images(model, x, y, valid, zeros_enter=True)
        return tried(model, (rotated(x, *move) if any(move) else x for move in self.moves()), y)

    def moves(self) -> list[tuple[float, float, float]]:
        """(degrees, down, right) from the unmoved image outwards."""
        reach = (self.degrees, self.pixels, self.pixels)
        lines = [
            [size * (2 * i / (count - 1) - 1) if count > 1 else 0.0 for i in range(count)]
            for size, count in zip(reach, self.grid, strict=True)
        ]
        turns, downs, rights = lines
        return sorted(
            product(turns, downs, rights), key=lambda move: sum(abs(part) / (r or 1) for part, r in zip(move, reach))
        )


def rotated(
    x: Float[Tensor, "batch channels height width"], degrees: float, down: float, right: float
) -> Float[Tensor, "batch channels height width"]:
    """x turned counterclockwise about its centre by `degrees`, then moved by (down, right) pixels."""
    height, width = x.shape[2:]
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    cos, sin = float(angle.cos()), float(angle.sin())
    # where an output pixel comes from, in coordinates that run from -1 to 1 along each side
    across, along = -2 * right / width, -2 * down / height
    ratio = height / width
    theta = torch.tensor(
        [
            [cos, -sin * ratio, cos * across - sin * ratio * along],
            [sin / ratio, cos, sin / ratio * across + cos * along],
        ],
        dtype=x.dtype,
        device=x.device,
    )
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def check_images(model: Model, x: Any, y: Any, valid: Valid, zeros_enter: bool) -> Int[Tensor, " batch"]:
    """The labels as int64.  Raises InputError for a model in training mode, x that is no finite batch of images in the
    valid range (None: any), labels of another length or type, or a range without the zeros that enter at the border.
    """
    y = as_labels(x, y)
    if x.ndim != 4:
        raise InputError(f"images (batch, channels, height, width) were wanted, got shape {tuple(x.shape)}")
    check_batch(model, x, y, valid)
    if zeros_enter and valid is not None:
        low, high = (torch.as_tensor(end) for end in valid)
        if bool((low > 0).any() or (high < 0).any()):
            raise InputError(f"zeros enter at the border, but lie outside the valid range {valid}")
    return y


def tried(model: Model, views: Iterable[Tensor], y: Int[Tensor, " batch"]) -> ShiftRun:
    """Every view (batch, ...) of an iterable, the unmoved one first, against the model."""
    clean: Tensor | None = None
    predictions: list[Tensor] = []
    for view in views:
        logits = forward(model, view)
        if clean is None:
            check_logits(logits, view, y)
        wrong, gap = logits.argmax(1) != y, margin(logits, y)
        predictions.append(logits.argmax(1))
        if clean is None:
            clean, x_adv, worst = view, view.clone(), gap
            fooled = torch.zeros_like(y)
            right = ~wrong
            continue
        fresh = right & wrong & (fooled == 0)
        x_adv[fresh] = view[fresh]
        fooled += (right & wrong).long()
        worst = torch.maximum(worst, gap)
    if clean is None:
        raise InputError("there are no views to try")
    return ShiftRun(x_adv, fooled > 0, fooled, worst, torch.stack(predictions))
