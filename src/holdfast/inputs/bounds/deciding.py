"""Backward passes for the signs of many entries: a row leaves the pass once its sign is known.

A ReLU asks of its input only on which side of zero it stays.  On the way to the input a pass meets values whose boxes
are known already; concretised there, rows have bounds that are looser than those at the input and often good enough.
What is carried on are the rows whose bounds there still have zero between them.  Seen on a residual network of the
VNN-COMP: of 830 rows that intervals leave open, 183 reach the input.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from holdfast.inputs.bounds.backward import Carried, Pass, least
from holdfast.inputs.bounds.operator import Box
from holdfast.inputs.bounds.rows import spread, taken

#: Boxes lose least near the input: looks are taken at this many nonlinear values closest to it.
LOOKS = 2
#: Entries of a value from which a look costs little beside what is left to do.
LARGE_VALUE = 512
#: Where more than this share of a block is still open, all of it is carried on.
_MOST_OPEN = 0.85


@dataclass
class DecidingPass(Pass):
    """A pass for lower and upper bounds of entries (`run_units`), as tight as `Pass` where zero lies between them.

    What an entry gets does not depend on the others of its block: a row that is carried on only because others are
    keeps the bounds of the look that decided it.
    """

    _found: Box = field(init=False)
    _place: Tensor = field(init=False)
    _open: Tensor = field(init=False)
    _looks: frozenset[int] = field(init=False)

    def run_units(self, start: int, index: Tensor) -> Carried:
        known = (end[self.examples].flatten(1).gather(1, index) for end in self.state.boxes[start])
        self._found = Box(*known)
        self._place = torch.arange(index.shape[1], device=index.device).expand(index.shape)
        self._open = torch.ones_like(index, dtype=torch.bool)
        curved = (position for position, node in enumerate(self.state.nodes, 1) if not node.operator.affine)
        first, boxes = islice(curved, LOOKS), self.state.boxes
        self._looks = frozenset(p for p in first if p < start and boxes[p].lower[0].numel() >= LARGE_VALUE)
        last = super().run_units(start, index)
        assert last.upper is not None
        self._note(self._open, Box(last.lower, last.upper))
        return Carried(self._found.lower, self._found.upper, None, last.bias)

    def _carry(self, position: int) -> None:
        # At the first nonlinear value (not mirrored yet) the bounds would be the intervals that are known.
        if self.mirrored and position in self._looks:
            self._look()
        if position in self.pending:
            super()._carry(position)

    def _look(self) -> None:
        """Bounds of all rows from the boxes of the values that they are on; rows with a sign leave."""
        total, charge = self.bias, self.charge
        for position, rows in self.pending.items():
            box = self.state.boxes[position]
            total = total + least(rows, Box(box.lower[self.examples], box.upper[self.examples]))
            if self.state.rounding.outward:
                charge = charge + spread(rows, self.state.size(position)[self.examples])
        if self.state.rounding.outward:
            total = total - self.state.rounding.gamma(total.dtype) * charge - torch.finfo(total.dtype).tiny
        half = self._place.shape[1]
        found = Box(total[:, :half], -total[:, half:])
        decided = self._open & ((found.lower >= 0) | (found.upper <= 0))
        old = Box(*(end.gather(1, self._place) for end in self._found))
        self._note(decided, found.intersect(old))
        self._open = self._open & ~decided
        most = int(self._open.sum(1).max())
        if most <= _MOST_OPEN * half:
            self._keep(torch.argsort(self._open.to(torch.int8), dim=1, descending=True, stable=True)[:, :most])

    def _note(self, rows: Tensor, found: Box) -> None:
        """Take down the bounds of some of the rows."""
        for end, fresh in zip(self._found, found):
            end.scatter_(1, self._place, torch.where(rows, fresh, end.gather(1, self._place)))

    def _keep(self, kept: Tensor) -> None:
        half = self._place.shape[1]
        both = torch.cat([kept, kept + half], 1)
        self.pending = {position: taken(rows, both) for position, rows in self.pending.items()} if kept.numel() else {}
        self.bias, self.charge = self.bias.gather(1, both), self.charge.gather(1, both)
        self._place, self._open = self._place.gather(1, kept), self._open.gather(1, kept)
