"""Rows that live on a small window of an image.

A neuron of a convolution sees a window of its input, so the row that belongs to it is zero elsewhere.  `Patches` keeps
only the window: values (examples, rows, channels, height, width) and, for every row, where its corner lies in the
plane.  A window may reach over the edge of the plane; its entries there are zero.  Going back through a convolution
windows grow; when they cover most of the plane they are written out as ordinary rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

#: Share of the plane beyond which ordinary rows are cheaper.
MOST = 0.3


@dataclass(frozen=True)
class Patches:
    """Windowed rows on a value of event shape (1, channels, *plane)."""

    values: Tensor  # (examples, rows, channels, height, width)
    top: Tensor  # (examples, rows) long
    left: Tensor  # (examples, rows) long
    plane: tuple[int, int]

    @property
    def window(self) -> tuple[int, int]:
        return self.values.shape[-2], self.values.shape[-1]

    @property
    def large(self) -> bool:
        """Whether the windows cover so much of the plane that they save nothing."""
        return self.window[0] * self.window[1] > MOST * self.plane[0] * self.plane[1]

    def mirrored(self) -> Patches:
        """The rows followed by their negatives."""
        top, left = (torch.cat([corner, corner], 1) for corner in (self.top, self.left))
        return replace(self, values=torch.cat([self.values, -self.values], 1), top=top, left=left)

    def masked(self) -> Patches:
        """Entries beyond the edge of the plane set to zero."""
        inside = [
            (corner[..., None] + torch.arange(size, device=corner.device)).clamp(-1, extent)
            for corner, size, extent in zip((self.top, self.left), self.window, self.plane)
        ]
        rows, columns = ((place >= 0) & (place < extent) for place, extent in zip(inside, self.plane))
        if bool(rows.all()) and bool(columns.all()):
            return self
        keep = rows[..., None, :, None] & columns[..., None, None, :]
        return replace(self, values=self.values * keep)

    def _margins(self) -> tuple[int, int, int, int]:
        """How far windows reach over each edge: left, right, top, bottom."""
        (height, width), (rows, columns) = self.plane, self.window
        reach = (
            -int(self.left.min()),
            int(self.left.max()) + columns - width,
            -int(self.top.min()),
            int(self.top.max()) + rows - height,
        )
        return tuple(max(0, part) for part in reach)  # type: ignore[return-value]

    def seen(self, value: Tensor) -> Tensor:
        """What the windows see of `value`, (examples, channels, *plane), zero beyond its edge; shaped like `values`."""
        left, right, above, below = self._margins()
        padded = F.pad(value, (left, right, above, below)) if left or right or above or below else value
        views = padded.unfold(2, self.window[0], 1).unfold(3, self.window[1], 1).permute(0, 2, 3, 1, 4, 5)
        examples, rows, columns = views.shape[:3]
        example = torch.arange(examples, device=value.device)[:, None]
        if 2 * self.top.shape[1] < rows * columns:
            return views[example, self.top + above, self.left + left]
        place = (example * rows + self.top + above) * columns + self.left + left
        # Many rows: every window once, then whole windows copied, with far fewer jumps in memory than entry by entry.
        seen = views.flatten(3).reshape(examples * rows * columns, -1).index_select(0, place.flatten())
        return seen.reshape(*place.shape, *views.shape[3:])

    def inner(self, value: Tensor) -> Tensor:
        """row . value for every row, (examples, rows)."""
        return (self.values * self.seen(value)).flatten(2).sum(-1)

    def dense(self) -> Tensor:
        """The same as ordinary rows, (examples, rows, 1, channels, *plane)."""
        # Every pixel takes its entry of the window, or the zero put behind the last one: faster than placing entries.
        down, across = (
            _offsets(corner, size, extent)
            for corner, size, extent in zip((self.top, self.left), self.window, self.plane)
        )
        padded = F.pad(self.values.flatten(0, 1), (0, 1, 0, 1))
        index = (down[:, :, None] * padded.shape[-1] + across[:, None, :]).flatten(1)[:, None]
        whole = padded.flatten(2).gather(2, index.expand(-1, padded.shape[1], -1))
        return whole.reshape(*self.values.shape[:3], *self.plane).unsqueeze(2)

    def plus(self, other: Patches) -> Patches | None:
        """Rows of two users of one value added up, or None when their windows do not move together."""
        rise, shift = other.top - self.top, other.left - self.left
        if not bool((rise == rise[0, 0]).all()) or not bool((shift == shift[0, 0]).all()):
            return None
        down, right = int(rise[0, 0]), int(shift[0, 0])
        first_top, first_left = min(0, down), min(0, right)
        height = max(self.window[0], down + other.window[0]) - first_top
        width = max(self.window[1], right + other.window[1]) - first_left
        summed = _placed(self.values, -first_top, -first_left, height, width) + _placed(
            other.values, down - first_top, right - first_left, height, width
        )
        return replace(self, values=summed, top=self.top + first_top, left=self.left + first_left)


@dataclass(frozen=True)
class Phases:
    """Rows on an image, sorted by the place of each pixel within squares of side `stride`.

    That is how a strided convolution's adjoint comes out when it is computed as one plain convolution; sorting the
    image that the rows are applied to is far cheaper than sorting the rows back.  Channels come last, as the
    convolution's kernel likes them.
    """

    values: Tensor  # (examples, rows, height, width, channels * stride^2)
    stride: int
    corner: tuple[int, int]  # pixels above and left of the image that the squares cover too
    plane: tuple[int, int]

    def mirrored(self) -> Phases:
        """The rows followed by their negatives."""
        return replace(self, values=torch.cat([self.values, -self.values], 1))

    def seen(self, value: Tensor) -> Tensor:
        """`value`, (examples, channels, *plane), sorted the same way, zero beyond its edge; broadcasts to `values`."""
        (top, left), (height, width) = self.corner, self.plane
        rows, columns = (size * self.stride for size in self.values.shape[2:4])
        padded = F.pad(value, (left, columns - left - width, top, rows - top - height))
        return F.pixel_unshuffle(padded, self.stride).permute(0, 2, 3, 1)[:, None]

    def inner(self, value: Tensor) -> Tensor:
        """row . value for every row, (examples, rows)."""
        return (self.values.flatten(2) @ self.seen(value).flatten(1)[..., None]).squeeze(-1)

    def plus(self, other: Phases) -> Phases | None:
        """Rows of two users of one value added up; None where squares differ, or other's begin further out."""
        corner = self.corner[0] - other.corner[0], self.corner[1] - other.corner[1]
        if self.stride != other.stride or min(corner) < 0:
            return None
        stride, shape = self.stride, self.values.shape
        height, width = (-(-(corner[i] + stride - 1) // stride) + other.values.shape[2 + i] for i in (0, 1))
        below, beside = max(0, height - shape[2]), max(0, width - shape[3])
        whole = F.pad(self.values, (0, 0, 0, beside, 0, below)) if below or beside else self.values.clone()
        phases = whole.unflatten(4, (-1, stride, stride))
        added = other.values.unflatten(4, (-1, stride, stride))
        # Pixel i lies in square (i + corner) // stride, so a further corner moves it to another phase and square.
        for above in range(stride):
            down, row = divmod(above + corner[0], stride)
            for left in range(stride):
                right, column = divmod(left + corner[1], stride)
                part = phases[:, :, down : down + added.shape[2], right : right + added.shape[3], :, row, column]
                part += added[..., above, left]
        return replace(self, values=whole)

    def dense(self) -> Tensor:
        """The same as ordinary rows, (examples, rows, 1, channels, *plane)."""
        (top, left), (height, width) = self.corner, self.plane
        image = F.pixel_shuffle(self.values.flatten(0, 1).permute(0, 3, 1, 2), self.stride)
        rows, columns = image.shape[-2:]
        whole = F.pad(image, (-left, left + width - columns, -top, top + height - rows))
        return whole.reshape(*self.values.shape[:2], 1, *whole.shape[1:])


def _offsets(corner: Tensor, size: int, extent: int) -> Tensor:
    """For every window (flat) and place along an axis, which entry of the window lies there; `size` where none does."""
    offset = torch.arange(extent, device=corner.device) - corner.flatten()[:, None]
    return torch.where((offset < 0) | (offset >= size), size, offset)


def _placed(values: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    rows, columns = values.shape[-2:]
    return F.pad(values, (left, width - left - columns, top, height - top - rows))
