"""Threats that act on places of an image: `Patch` (a rectangle is replaced) and `Translation` (the camera moves).

Images have shape (batch, channels, height, width).  Raises InputError for sizes that are not positive or exceed the
image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.threats.base import Threat, Valid, room, uniform, valid_bounds, value_range


@dataclass(frozen=True, eq=False)
class Patch(Threat):
    """One `height` x `width` rectangle, anywhere in the image, replaced by any valid values; the rest is untouched.

    The measure of a perturbation is how far it must be stretched to fill such a rectangle: the larger of its row span
    over `height` and its column span over `width`, in units of the longer side.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise InputError(f"a patch is at least 1x1, got {self.height}x{self.width}")

    @property
    def radius(self) -> float:
        return float(max(self.height, self.width))

    def scaled(self, radius: float | int) -> Patch:
        share = radius / self.radius
        return Patch(max(1, math.floor(self.height * share + 0.5)), max(1, math.floor(self.width * share + 0.5)))

    def describe(self) -> str:
        return f"one {self.height}x{self.width} rectangle replaced"

    def stride(self, valid: Valid = None) -> float:
        return value_range(valid, self)

    def norm(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        changed = self._fits(delta).abs().amax(1) > 0
        rows, columns = _span(changed.any(2)), _span(changed.any(1))
        return torch.maximum(rows / self.height, columns / self.width).to(delta.dtype) * self.radius

    def window_sums(self, values: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch down across"]:
        """Sum of `values` over the patch at every place its top left corner may take."""
        total = F.pad(values.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
        h, w = self.height, self.width
        sums = total[:, h:, w:] - total[:, :-h, w:] - total[:, h:, :-w] + total[:, :-h, :-w]
        return sums.to(values.dtype)

    def places(self, x: Float[Tensor, "batch *shape"]) -> tuple[int, int]:
        """How many rows and columns its top left corner may take.  Raises InputError where it does not fit."""
        self._fits(x)
        return x.shape[2] - self.height + 1, x.shape[3] - self.width + 1

    def random_places(
        self, x: Float[Tensor, "batch *shape"], *, generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch 2"]:
        """(top, left) of one patch an image, uniform over where it fits."""
        drawn = uniform(x.double(), generator, (2, len(x)))
        corners = [(drawn[k] * count).long().clamp(max=count - 1) for k, count in enumerate(self.places(x))]
        return torch.stack(corners, 1)

    def mask(
        self, top: Int[Tensor, " batch"], left: Int[Tensor, " batch"], height: int, width: int
    ) -> Bool[Tensor, "batch 1 height width"]:
        """Where the patch lies when its top left corner is at (top, left)."""
        rows, columns = torch.arange(height, device=top.device), torch.arange(width, device=top.device)
        down = (rows >= top[:, None]) & (rows < top[:, None] + self.height)
        across = (columns >= left[:, None]) & (columns < left[:, None] + self.width)
        return (down[:, None, :, None] & across[:, None, None, :]).reshape(len(top), 1, height, width)

    def best_window(self, gain: Float[Tensor, "batch channels height width"]) -> Bool[Tensor, "batch 1 height width"]:
        """The place of the patch that holds the largest sum of `gain`."""
        sums = self.window_sums(gain.sum(1))
        best = sums.flatten(1).argmax(1)
        return self.mask(best // sums.shape[2], best % sums.shape[2], *gain.shape[2:])

    def interval(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        return valid_bounds(self._fits(x), valid)

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        low, high = valid_bounds(self._fits(x), valid)
        clipped = torch.clamp(x_adv, low, high)
        return torch.where(self.best_window((x_adv - x).square() - (x_adv - clipped).square()), clipped, x)

    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        value_range(valid, self)
        low, high = valid_bounds(self._fits(x), valid)
        top, left = self.random_places(x, generator=generator).unbind(1)
        values = torch.clamp(low + (high - low) * uniform(x, generator), low, high)
        return torch.where(self.mask(top, left, *x.shape[2:]), values, x)

    def steepest(self, grad: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The sign of the gradient in the window where its absolute sum is largest."""
        return grad.sign() * self.best_window(self._fits(grad).abs()).to(grad.dtype)

    def worst(
        self, rows: Float[Tensor, "batch rows *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch rows"]:
        value_range(valid, self)
        down, up = (end[:, None] for end in room(self._fits(x), valid))
        lowest = torch.minimum(rows * down, rows * up).sum(2)
        return self.window_sums(lowest.flatten(0, 1)).flatten(1).amin(1).reshape(rows.shape[:2])

    def _fits(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise InputError(f"a patch needs images (batch, channels, height, width), got shape {tuple(x.shape)}")
        if x.shape[2] < self.height or x.shape[3] < self.width:
            raise InputError(
                f"a {self.height}x{self.width} patch does not fit an image of {x.shape[2]}x{x.shape[3]} pixels"
            )
        return x


def _span(touched: Bool[Tensor, "batch length"]) -> Float[Tensor, " batch"]:
    """Distance from the first to the last true place, both included; 0 where there is none."""
    place = torch.arange(touched.shape[1], device=touched.device)
    last = torch.where(touched, place, -1).amax(1)
    first = torch.where(touched, place, touched.shape[1]).amin(1)
    return (last - first + 1).clamp(min=0).to(torch.float64)


EDGES = ("reveal", "zeros", "edge", "cyclic")


@dataclass(frozen=True, eq=False)
class Translation(Threat):
    """The image moved by whole pixels, at most `pixels` in each direction.

    `edge` says what enters at the border: "zeros", the "edge" repeated, the other side ("cyclic"), or, for "reveal",
    the real pixels of a larger image: then x carries a margin of `pixels` on every side and a view is its middle. The
    set is finite, so projection and `worst` enumerate its (2 pixels + 1)^2 views.
    """

    pixels: int
    edge: str = "zeros"

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise InputError(f"a translation moves by at least one pixel, got {self.pixels}")
        if self.edge not in EDGES:
            raise InputError(f"unknown edge {self.edge!r} of a translation; choose from {', '.join(EDGES)}")

    @property
    def radius(self) -> float:
        return float(self.pixels)

    def scaled(self, radius: float | int) -> Translation:
        return Translation(max(1, math.floor(radius + 0.5)), self.edge)

    def describe(self) -> str:
        return f"the picture moved by up to {self.pixels} pixel{'s' if self.pixels > 1 else ''} in each direction"

    def norm(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Euclidean size of the change; what is admissible is decided by `contains`."""
        size: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return size

    def moves(self) -> Iterator[tuple[int, int]]:
        """Every (down, right) shift, the identity first."""
        steps = sorted(range(-self.pixels, self.pixels + 1), key=abs)
        return iter(sorted(product(steps, steps), key=lambda move: max(abs(move[0]), abs(move[1]))))

    def moved(self, x: Float[Tensor, "batch channels height width"], move: tuple[int, int]) -> Tensor:
        """The view after shifting the content by `move` (down, right); for "reveal" smaller than x by the margin."""
        down, right = move
        if self.edge == "cyclic":
            return x.roll((down, right), dims=(2, 3))
        m = self.pixels
        if min(x.shape[2:]) <= (2 * m if self.edge == "reveal" else m):
            raise InputError(f"an image of {x.shape[2]}x{x.shape[3]} pixels is too small to move by {m}")
        if self.edge == "zeros":
            x = F.pad(x, (m, m, m, m))
        elif self.edge == "edge":
            x = F.pad(x, (m, m, m, m), mode="replicate")
        height, width = x.shape[2] - 2 * m, x.shape[3] - 2 * m
        return x[:, :, m - down : m - down + height, m - right : m - right + width]

    def views(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "moves batch channels high wide"]:
        """All views, in the order of `moves`."""
        if x.ndim != 4:
            raise InputError(f"a translation needs images (batch, channels, height, width), got shape {tuple(x.shape)}")
        return torch.stack([self.moved(x, move) for move in self.moves()])

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        views = self._same_size(x)
        nearest = (views - x_adv).square().flatten(2).sum(2).argmin(0)
        return views[nearest, torch.arange(len(x), device=x.device)]

    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        views = self._same_size(x)
        drawn = (uniform(x.double(), generator, (len(x),)) * len(views)).long().clamp(max=len(views) - 1)
        return views[drawn, torch.arange(len(x), device=x.device)]

    def worst(
        self, rows: Float[Tensor, "batch rows *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch rows"]:
        change = (self._same_size(x) - x).flatten(2)
        return torch.einsum("brn,mbn->brm", rows.flatten(2), change).amin(2)

    def interval(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        views = self._same_size(x)
        return views.amin(0), views.amax(0)

    def contains(
        self,
        x_adv: Float[Tensor, "batch *shape"],
        x: Float[Tensor, "batch *shape"],
        valid: Valid = None,
        tolerance: float = 1e-6,
    ) -> Bool[Tensor, " batch"]:
        return ((self._same_size(x) - x_adv).abs().flatten(2).amax(2) <= tolerance).any(0)

    def _same_size(self, x: Tensor) -> Tensor:
        if self.edge == "reveal":
            raise UnsupportedError(
                "a translation that reveals real pixels gives views smaller than its image; take them with views(x)"
            )
        return self.views(x)
