"""Stacks of rows on a value, and what every kind of them can do.

Rows are ordinary tensors (examples, rows, *event), windows of an image (`Patches`), images in another order (`Phases`),
or a choice of columns (`Columns`): entries of a value that is zero over the whole region, such as a ReLU that is never
active, need no column.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from holdfast.inputs.bounds.patches import Patches, Phases

Kept = TypeVar("Kept", bound=tuple[Tensor | None, ...])


#: Entries up to which what was taken of a weight is kept for the next rows.
_KEPT = 1 << 20


@dataclass(frozen=True, eq=False)
class Active:
    """The flat positions of an event that rows need columns for, and what was taken there of weights and lines."""

    index: Tensor  # (chosen,) long
    shape: tuple[int, ...]
    _taken: dict[tuple[object, object], Any] = field(default_factory=dict)

    def once(self, owner: object, other: object, make: Callable[[], Kept]) -> Kept:
        """What `make` gives, made once for these two objects where it is small; `make` depends on nothing else."""
        key = (owner, other)
        if key in self._taken:
            kept: Kept = self._taken[key]
            return kept
        made = make()
        small = sum(part.numel() for part in made if isinstance(part, Tensor)) <= _KEPT
        if small and not torch.is_grad_enabled():
            self._taken[key] = made
        return made


@dataclass(frozen=True)
class Columns:
    """Rows that are zero outside the `active` entries of an event."""

    values: Tensor  # (examples, rows, chosen)
    active: Active

    @property
    def index(self) -> Tensor:
        return self.active.index

    @property
    def shape(self) -> tuple[int, ...]:
        return self.active.shape

    def dense(self) -> Tensor:
        """The same as an ordinary tensor."""
        whole = self.values.new_zeros(*self.values.shape[:2], math.prod(self.shape))
        return whole.index_copy(2, self.index, self.values).reshape(*self.values.shape[:2], *self.shape)


Rows = Tensor | Patches | Phases | Columns


def inner(rows: Rows, value: Tensor) -> Tensor:
    """row . value for every row, (examples, rows); `value` is (examples, *event)."""
    if isinstance(rows, (Patches, Phases)):
        return rows.inner(value.squeeze(1))
    flat = value.flatten(1)
    if isinstance(rows, Columns):
        return (rows.values @ flat[:, rows.index, None]).squeeze(-1)
    return (rows.flatten(2) @ flat[..., None]).squeeze(-1)


def aligned(rows: Rows, value: Tensor) -> Tensor:
    """What every entry of the rows' values meets in `value`, (examples, *event); broadcasts to the values.

    Beyond the edge of an image there is 0.
    """
    if isinstance(rows, (Patches, Phases)):
        return rows.seen(value.squeeze(1))
    if isinstance(rows, Columns):
        return value.flatten(1)[:, None, rows.index]
    return value[:, None]


def dot(values: Tensor, line: Tensor) -> Tensor:
    """Sum of products for every row, (examples, rows); `line` is `aligned` with the values."""
    if line.shape[1] == 1:
        return (values.flatten(2) @ line.flatten(2).mT).squeeze(-1)
    return (values * line).flatten(2).sum(-1)


#: Entries of |rows| that are formed at once: few enough to stay in a processor's cache.
_AT_ONCE = 1 << 16


def spread(rows: Rows, value: Tensor) -> Tensor:
    """|row| . value for every row, (examples, rows)."""
    line, values = aligned(rows, value), rows if isinstance(rows, Tensor) else rows.values
    examples, count = values.shape[:2]
    step = max(1, _AT_ONCE // max(1, examples * values[0, 0].numel()))
    if step >= count or (torch.is_grad_enabled() and (values.requires_grad or line.requires_grad)):
        return dot(values.abs(), line)
    # Piece by piece into one buffer: most of the time of |rows| as a whole goes into fresh memory.
    found, buffer = values.new_empty(examples, count), torch.empty_like(values[:, :step])
    for first in range(0, count, step):
        piece = values[:, first : first + step]
        size = torch.abs(piece, out=buffer[:, : piece.shape[1]])
        found[:, first : first + step] = dot(size, line if line.shape[1] == 1 else line[:, first : first + step])
    return found


def dense(rows: Rows) -> Tensor:
    """Any rows as an ordinary tensor."""
    return rows if isinstance(rows, Tensor) else rows.dense()


def mirrored(rows: Rows) -> Rows:
    """The rows followed by their negatives."""
    if isinstance(rows, (Patches, Phases)):
        return rows.mirrored()
    if isinstance(rows, Columns):
        return replace(rows, values=torch.cat([rows.values, -rows.values], 1))
    return torch.cat([rows, -rows], 1)


def taken(rows: Rows, picks: Tensor) -> Rows:
    """Some of the rows of every example, `picks` (examples, kept)."""

    def pick(part: Tensor) -> Tensor:
        if len(picks) == 1:
            return part.index_select(1, picks[0])
        return part[torch.arange(len(picks), device=picks.device)[:, None], picks]

    if isinstance(rows, Tensor):
        return pick(rows)
    if isinstance(rows, Patches):
        return replace(rows, values=pick(rows.values), top=pick(rows.top), left=pick(rows.left))
    return replace(rows, values=pick(rows.values))


def added(first: Rows, second: Rows) -> Rows:
    """Rows of two users of one value."""
    together: Rows | None = None
    if isinstance(first, Patches) and isinstance(second, Patches):
        together = first.plus(second)
    if isinstance(first, Phases) and isinstance(second, Phases):
        together = first.plus(second)
        together = second.plus(first) if together is None else together
    return dense(first) + dense(second) if together is None else together


def units(index: Tensor, like: Tensor) -> Rows:
    """One-hot rows at the flat positions `index` (examples, rows) of a value shaped like `like`."""
    shape = like.shape[1:]
    if len(shape) == 4 and shape[0] == 1 and shape[-2] * shape[-1] > 1:
        plane = shape[-2] * shape[-1]
        channel, place = index // plane, index % plane
        values = torch.zeros(*index.shape, shape[1], dtype=like.dtype, device=like.device)
        values = values.scatter(2, channel[..., None], 1.0)[..., None, None]
        return Patches(values, place // shape[-1], place % shape[-1], (shape[-2], shape[-1]))
    flat = torch.zeros(*index.shape, shape.numel(), dtype=like.dtype, device=like.device)
    return flat.scatter(2, index[..., None], 1.0).reshape(*index.shape, *shape)
