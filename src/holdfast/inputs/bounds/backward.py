"""Backward linear bounds (CROWN; Zhang et al., 2018, on general graphs: Xu et al., 2020).

Rows Lambda on a node's value are carried back to the input.  Through z -> phi(z) with lines s_l z + b_l <= phi(z) <=
s_u z + b_u

    A <- A+ s_l + A- s_u,    bias += A+ b_l + A- b_u,        A+ = max(A, 0), A- = min(A, 0)

through an affine node A <- A J, bias += A b; a value used several times collects the rows of all its users before it is
carried further.  At the input  lower = A x0 + bias + min over the region of A (x' - x0).  Upper bounds are the lower
bounds of the negated rows; up to the first nonlinear node the two share one pass.

A pass takes two extensions (module `optimize` uses both): the free parameters of the relaxations, a set of its own for
every row (`choices`), and rows to be added on values (`extra`).  If g . v <= 0 holds for the value v at some node, then
rows . v >= (rows + beta g) . v for every beta >= 0, so adding beta g to rows that arrive there keeps a lower bound one.

Only rows that some relaxation would use are formed (a ReLU that intervals already show to be stable needs none), a
block of rows at a time, and the result is intersected with the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from holdfast.inputs.bounds.affine import Linear
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Affine, Box, Lines, Pulled, Relaxation
from holdfast.inputs.bounds.patches import Patches, Phases
from holdfast.inputs.bounds.rows import (
    Active,
    Columns,
    Rows,
    added,
    aligned,
    dense,
    dot,
    inner,
    mirrored,
    spread,
    units,
)

#: Rows, their successor, and the temporaries of one relaxation are alive at once.
_COPIES = 6
#: What differentiation keeps of the rows on every value, and the free parameters with their gradients and moments.
_HELD = 4


@dataclass(frozen=True)
class Carried:
    """Lower and upper bounds (examples, rows), and the rows and biases they came from where they reached the input."""

    lower: Tensor
    upper: Tensor | None
    rows: Tensor | None
    bias: Tensor


@runtime_checkable
class Choices(Protocol):
    """Relaxations chosen row by row."""

    def relaxation(self, position: int, rows: Rows) -> Relaxation:
        """The relaxation of the operator that makes the value, for these rows on it; entrywise lines are `seen`."""
        ...


@dataclass
class Pass:
    """One backward pass for some of the examples, from the value at `start`.

    through : carry rows through nonlinear nodes by their relaxation; otherwise they stop there and meet the box.
    keep : also hand out the rows that reach the input.
    choices : where relaxations with free parameters come from; None takes their defaults.
    extra : rows to add on the values at these positions, (examples, rows, *event); of a pass for both sides the second
        half acts on the negated rows.  A value that no row of the pass reaches ignores what is to be added there.
    record : keep, in `recorded`, the rows that arrive at every value made by a nonlinear operator.
    """

    state: Propagation
    examples: slice
    both: bool
    through: bool = True
    keep: bool = False
    choices: Choices | None = None
    extra: Mapping[int, Tensor] = field(default_factory=dict)
    record: bool = False

    pending: dict[int, Rows] = field(init=False, default_factory=dict)
    bias: Tensor = field(init=False)
    charge: Tensor = field(init=False)
    mirrored: bool = field(init=False, default=False)
    recorded: dict[int, Tensor] = field(init=False, default_factory=dict)

    def run(self, start: int, rows: Tensor) -> Carried:
        """Bounds of rows . value, `rows` of shape (examples, rows, *event)."""
        self._begin(rows.shape[:2], rows)
        self.pending[start] = rows
        return self._finish(start)

    def run_units(self, start: int, index: Tensor) -> Carried:
        """Bounds of the entries at flat positions `index` (examples, rows) of the value at `start`."""
        like = self.state.boxes[start].lower
        self._begin(index.shape, like)
        node = self.state.nodes[start - 1] if start else None
        operator = node.operator if node is not None and isinstance(node.operator, Affine) else None
        shortcut = None if operator is None else operator.unit_rows(index)
        if node is None or operator is None or shortcut is None:
            self.pending[start] = units(index, like)
            return self._finish(start)
        self.pending[node.inputs[0]] = shortcut
        if self.state.rounding.deployed is not None:
            # The rows are exact, so nothing else is charged here; the deployed program rounds this value all the same.
            self.charge = self.charge + self.state.size(start)[self.examples].flatten(1).gather(1, index)
        if operator.has_offset:
            self.bias = self.bias + operator.offset().flatten()[index]
        return self._finish(node.inputs[0])

    def _begin(self, shape: torch.Size, like: Tensor) -> None:
        self.bias = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.charge = self.bias

    def _finish(self, start: int) -> Carried:
        for position in range(start, 0, -1):
            if position in self.pending:
                self._carry(position)
        self._mirror()
        self._add_extra(0)
        rows = self.pending.get(0)
        lower = self.bias if rows is None else self.bias + self._at_input(rows)
        rows = None if rows is None or not self.keep else dense(rows)
        if self.state.rounding.outward:
            lower = lower - self.state.rounding.gamma(lower.dtype) * self.charge - torch.finfo(lower.dtype).tiny
        if not self.both:
            return Carried(lower, None, rows, self.bias)
        half = lower.shape[1] // 2
        return Carried(lower[:, :half], -lower[:, half:], rows, self.bias)

    def _carry(self, position: int) -> None:
        """Replace the rows on one value by rows on the inputs of the operator that makes it."""
        node = self.state.nodes[position - 1]
        if not node.operator.affine:
            self._mirror()
        self._add_extra(position)
        rows = self.pending.pop(position)
        if not node.operator.affine and self.record:
            self.recorded[position] = dense(rows)
        if not node.operator.affine and not self.through:
            self._charge(position, rows)
            box = self.state.boxes[position]
            self.bias = self.bias + least(rows, Box(box.lower[self.examples], box.upper[self.examples]))
            return
        if self.choices is not None and node.operator.freedoms:
            parts, bias = self._pull_chosen(position, rows)
        else:
            self._charge(position, rows)
            parts, bias = self._pull(position, rows)
        if bias is not None:
            self.bias = self.bias + bias
        for parent, part in zip(node.inputs, parts):
            self.pending[parent] = added(self.pending[parent], part) if parent in self.pending else part

    def _add_extra(self, position: int) -> None:
        if position in self.extra and position in self.pending:
            self._mirror()
            self.pending[position] = added(self.pending[position], self.extra[position])

    def _pull(self, position: int, rows: Rows) -> Pulled:
        """Rows on the inputs, as windows or chosen columns for as long as that pays."""
        relaxation = self.state.relaxation(position)
        if isinstance(rows, Patches):
            pulled = None if rows.large else relaxation.pull_patches(rows, self.examples)
            if pulled is not None:
                return pulled
        if isinstance(rows, (Phases, Columns)) and isinstance(relaxation, Lines):
            return relaxation.pull_any(rows, self.examples)
        if isinstance(relaxation, Linear):
            return relaxation.pull_columns(rows, self._active(self.state.nodes[position - 1].inputs[0]))
        return relaxation.pull(dense(rows), self.examples)

    def _pull_chosen(self, position: int, rows: Rows) -> Pulled:
        """`_pull` by the relaxation that was chosen for these rows."""
        assert self.choices is not None
        node = self.state.nodes[position - 1]
        if not node.operator.diagonal or (isinstance(rows, Patches) and rows.large):
            rows = dense(rows)
        relaxation = self.choices.relaxation(position, rows)
        if self.state.rounding.outward:
            sizes = [self.state.boxes[i].magnitude[self.examples] for i in node.inputs]
            seen = (aligned(rows, size) if node.operator.diagonal else size[:, None] for size in sizes)
            self.charge = self.charge + dot(_values(rows).abs(), relaxation.magnitude(*seen))
        if isinstance(relaxation, Lines):
            return relaxation.act(rows)
        return relaxation.pull(dense(rows), slice(None))

    def _active(self, position: int) -> Active | None:
        """The entries of the value that can be other than zero, where they are few and no rows wait there."""
        if position == 0 or position in self.pending or not self.through:
            return None
        node = self.state.nodes[position - 1]
        if node.operator.affine or any(parent in self.extra for parent in node.inputs):
            return None
        relaxation = self.state.relaxation(position)
        return relaxation.active(self.examples) if isinstance(relaxation, Lines) else None

    def _mirror(self) -> None:
        """From here on rows and negated rows go separate ways."""
        if self.both and not self.mirrored:
            self.pending = {position: mirrored(rows) for position, rows in self.pending.items()}
            self.bias = torch.cat([self.bias, -self.bias], 1)
            self.charge = torch.cat([self.charge, self.charge], 1)
            self.mirrored = True

    def _charge(self, position: int, rows: Rows) -> None:
        if self.state.rounding.outward:
            self.charge = self.charge + spread(rows, self.state.size(position)[self.examples])

    def _at_input(self, rows: Rows) -> Tensor:
        self._charge(0, rows)
        region = self.state.region
        if self.state.separable:
            box = self.state.boxes[0]
            return least(rows, Box(box.lower[self.examples], box.upper[self.examples]))
        x = region.x[self.examples]
        rows = dense(rows).squeeze(2)
        moved = region.threat.part(self.examples).worst(rows, x, region.valid)
        return (rows.flatten(2) @ x.flatten(1)[..., None]).squeeze(-1) + moved


def _values(rows: Rows) -> Tensor:
    return rows if isinstance(rows, Tensor) else rows.values


def least(rows: Rows, box: Box) -> Tensor:
    """min over the box of rows . value, (examples, rows)."""
    return inner(rows, (box.upper + box.lower) / 2) - spread(rows, (box.upper - box.lower) / 2)


Units = Callable[[slice, Tensor], Box]


def refine(
    state: Propagation,
    position: int,
    wanted: Tensor,
    memory: int,
    intersect: bool = True,
    bound: Units | None = None,
    passes: type[Pass] = Pass,
) -> None:
    """Improve the box at `position` where `wanted`, by backward passes that hold at most about `memory` bytes.

    An entry that is not wanted keeps its interval, which is sound as well.  `bound` gives bounds of the entries at flat
    positions (examples, rows) of some examples, and is taken to keep what differentiation needs; the default is one
    pass of the kind `passes`.
    """
    box = state.boxes[position]
    flat = wanted.flatten(1)
    lower, upper = box.lower.flatten(1), box.upper.flatten(1)
    if not bool(flat.any()):
        return
    new_lower, new_upper = lower, upper
    limit = rows_at_once(state, position, memory, differentiated=bound is not None)
    for examples, index, padded in _blocks(flat, limit):
        fresh = (
            _by_pass(passes(state, examples, both=True), position, index) if bound is None else bound(examples, index)
        )
        if intersect or padded:
            old = Box(lower[examples].gather(1, index), upper[examples].gather(1, index))
            fresh = fresh.intersect(old) if intersect else fresh
        if padded:
            # Entries that only pad a block stay: no example's bounds depend on its neighbours in the batch.
            asked = flat[examples].gather(1, index)
            fresh = Box(torch.where(asked, fresh.lower, old.lower), torch.where(asked, fresh.upper, old.upper))
        if len(index) == len(flat):
            new_lower, new_upper = (end.scatter(1, index, part) for end, part in zip((new_lower, new_upper), fresh))
            continue
        place = (torch.arange(len(box.lower), device=index.device)[examples][:, None].expand_as(index), index)
        new_lower = new_lower.index_put(place, fresh.lower)
        new_upper = new_upper.index_put(place, fresh.upper)
    state.improve(position, Box(new_lower.reshape(box.lower.shape), new_upper.reshape(box.upper.shape)))


def _by_pass(one: Pass, position: int, index: Tensor) -> Box:
    carried = one.run_units(position, index)
    assert carried.upper is not None
    return Box(carried.lower, carried.upper)


def rows_at_once(state: Propagation, position: int, memory: int, differentiated: bool = False) -> int:
    """How many (example, row) pairs a backward pass from `position` may hold."""
    box = state.boxes[position].lower
    sizes = [state.boxes[i].lower[0].numel() for i in range(position + 1)]
    held = _HELD * sum(sizes) if differentiated else _COPIES * max(sizes)
    return max(1, memory // (2 * held * box.element_size()))


def _blocks(wanted: Tensor, limit: int) -> Iterator[tuple[slice, Tensor, bool]]:
    """Runs of examples with the positions wanted of each, padded to the run's largest count with other positions, and
    whether there are such others.
    """
    if len(wanted) == 1:
        for index in wanted[0].nonzero().T.split(limit, 1):
            yield slice(0, 1), index, False
        return
    counts = wanted.sum(1).tolist()
    order = torch.argsort(wanted.to(torch.int8), dim=1, descending=True, stable=True)
    start = 0
    while start < len(counts):
        stop, most = start + 1, counts[start]
        while stop < len(counts) and (stop + 1 - start) * max(most, counts[stop]) <= limit:
            most = max(most, counts[stop])
            stop += 1
        for first in range(0, most, limit):
            last = min(most, first + limit)
            yield slice(start, stop), order[start:stop, first:last], min(counts[start:stop]) < last
        start = stop
