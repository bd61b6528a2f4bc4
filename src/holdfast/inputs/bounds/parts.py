"""Bounds on parts of a box: those where chosen neurons have imposed signs.

Precision.  Slopes and multipliers are searched for in float32.  Every bound that counts is then one pass in float64
with outward rounding with the numbers found, on boxes that were computed so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from holdfast.inputs.bounds.activation import LeakyReLU
from holdfast.inputs.bounds.backward import Carried, Pass
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Box
from holdfast.inputs.bounds.optimize import Multipliers, Search, minimise
from holdfast.inputs.bounds.rounding import Rounding
from holdfast.inputs.bounds.search import Query, Setting, TimedPropagation
from holdfast.inputs.bounds.signs import Signs, clamped


@dataclass(frozen=True)
class Proof:
    """What is proven of a batch of parts.

    `values` bounds every row less its offset; `corner` is where the linear function below the best row is smallest;
    `loss` says what the relaxation of every neuron costs that row.
    """

    values: Float[Tensor, "parts rows"]
    corner: Float[Tensor, "parts inputs"]
    loss: Float[Tensor, "parts neurons"]

    @property
    def bound(self) -> Float[Tensor, " parts"]:
        """A disjunct is infeasible when one of its rows is."""
        return self.values.amax(1)


class Parts:
    """Bounds on the parts of the box that `root` (float64, one example) encloses."""

    def __init__(self, setting: Setting, query: Query, root: Propagation) -> None:
        self.setting, self.query, self.root = setting, query, root
        self.signs = Signs(root.nodes)
        self.output = setting.graph.output
        #: Whether a part with all signs decided is one linear function.
        self.piecewise_linear = all(node.operator.affine or isinstance(node.operator, LeakyReLU) for node in root.nodes)
        coarse = [Box(box.lower.float(), box.upper.float()) for box in root.boxes]
        self._boxes = {torch.float64: root.boxes, torch.float32: coarse}

    def state(
        self, splits: Int8[Tensor, "parts neurons"], dtype: torch.dtype, consequences: bool = True
    ) -> Propagation:
        """Boxes of every value where the splits hold: the root's, cut by the splits and by what intervals make of that
        (`consequences`).
        """
        known = self.signs.split(splits)
        boxes = [Box(*(end.expand(len(splits), *end.shape[1:]) for end in box)) for box in self._boxes[dtype]]
        rounding = self.root.rounding if dtype == torch.float64 else Rounding(False, 0)
        state = Propagation.resume(self.setting.nodes(dtype), self.root.region, rounding, boxes[:1])
        if not consequences:
            cut = [clamped(box, known[k]) if k in known else box for k, box in enumerate(boxes)]
            state = Propagation.resume(self.setting.nodes(dtype), self.root.region, rounding, cut)
            return TimedPropagation.timed(state, self.setting.deadline)
        for position, box in enumerate(boxes[1:], 1):
            found = state.boxes[state.advance()].intersect(box)
            state.boxes[position] = clamped(found, known[position]) if position in known else found
        return TimedPropagation.timed(state, self.setting.deadline)

    def rows(self, disjunct: Int[Tensor, " parts"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rows (parts, rows, outputs) and offsets (parts, rows) of the disjuncts."""
        return self.query.matrix[disjunct].to(dtype), self.query.offset[disjunct].to(dtype)

    def search(
        self, splits: Tensor, disjunct: Tensor, start: Multipliers | None, iterations: int
    ) -> tuple[Float[Tensor, " parts"], Multipliers]:
        """Best bounds found in float32, not proven, and the multipliers that give them."""
        state = self.state(splits, torch.float32, consequences=iterations > 0)
        rows, offset = self.rows(disjunct, torch.float32)
        enough = offset + self.setting.incumbent.threshold
        enough = enough + 1e-6 * enough.abs() + 1e-6
        lower, found = minimise(
            state,
            self.output,
            rows,
            iterations=iterations,
            splits=self.signs.shaped(splits, state),
            start=start,
            stop_at=enough,
        )
        return (lower - offset).amax(1), found

    @torch.no_grad()
    def prove(self, splits: Tensor, rows: Tensor, offset: Tensor, multipliers: Multipliers) -> Proof:
        """One pass in float64 with outward rounding: rows (parts, rows, outputs) less offsets (parts, rows)."""
        state = self.state(splits, torch.float64)
        carried, backward = evaluated(state, self.output, rows, self.signs.shaped(splits, state), multipliers)
        assert carried.rows is not None
        unit = torch.finfo(torch.float64).eps
        values = carried.lower - offset
        values = values - unit * (values.abs() + offset.abs())
        part, best = torch.arange(len(values), device=values.device), values.argmax(1)
        slope = carried.rows.flatten(2)[part, best]
        box = state.boxes[0]
        corner = torch.where(slope > 0, box.lower.flatten(1), box.upper.flatten(1))
        chosen = torch.nn.functional.one_hot(best, values.shape[1]).to(values)
        return Proof(values, corner, self.signs.losses(state, backward.recorded, chosen))


def evaluated(
    state: Propagation, output: int, rows: Tensor, imposed: Mapping[int, Tensor], multipliers: Multipliers
) -> tuple[Carried, Pass]:
    """One pass with given multipliers, keeping the rows at the input and at every nonlinear value."""
    signs = {position: sign for position, sign in imposed.items() if position in multipliers.beta}
    search = Search(state, slice(0, len(rows)), rows.shape[1], signs, multipliers.to(rows))
    backward = search.backward(both=False, keep=True)
    backward.record = True
    return backward.run(output, rows.reshape(*rows.shape[:2], *state.boxes[output].lower.shape[1:])), backward
