"""Which input coordinate makes the bounds of a region loose.

A backward bound loses, at every entry z_j that a nonlinear operator relaxes, at most |row_j| times the distance between
the two lines on [l_j, u_j].  That distance shrinks with u_j - l_j, of which coordinate i contributes |A_ji| times its
width, A_j being the linear function of the input that bounds z_j.  So the coordinate is charged

    sum over j of |row_j| gap_j |A_ji| width_i / (u_j - l_j),

the part of the loss that goes away when it is split, to first order.  The slope of the output's own linear function
says nothing about this: a coordinate with slope 0 can be what keeps every neuron undecided.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.inputs.bounds.backward import Pass, Units
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Box, Lines


@dataclass
class Reach:
    """Collects, while a region's values are bounded, how far every input coordinate moves them."""

    state: Propagation
    _slopes: dict[int, Tensor] = field(default_factory=dict)

    def units(self, position: int) -> Units:
        """Bounds of entries of the value by one backward pass, remembering the linear functions behind them."""
        box = self.state.boxes[position].lower.flatten(1)
        inputs = self.state.boxes[0].lower[0].numel()
        store = self._slopes.setdefault(position, box.new_zeros(*box.shape, inputs))

        def bounded(examples: slice, index: Tensor) -> Box:
            carried = Pass(self.state, examples, both=True, keep=True).run_units(position, index)
            assert carried.upper is not None
            assert carried.rows is not None
            below, above = carried.rows.flatten(2).abs().chunk(2, 1)
            place = torch.arange(len(box), device=index.device)[examples][:, None].expand_as(index)
            store[place, index] = torch.maximum(below, above)
            return Box(carried.lower, carried.upper)

        return bounded

    def charges(
        self, recorded: dict[int, Tensor], weights: Float[Tensor, "examples rows"]
    ) -> Float[Tensor, "examples inputs"]:
        """The charge of every coordinate.

        `recorded` are the rows (examples, rows, *event) that arrived at the values made by nonlinear operators, and
        `weights` how much each row counts.
        """
        inputs = self.state.boxes[0]
        width = (inputs.upper - inputs.lower).flatten(1)
        total = torch.zeros_like(width)
        for position, rows in recorded.items():
            node = self.state.nodes[position - 1]
            relaxation = self.state.relaxation(position)
            parent = node.inputs[0]
            if not isinstance(relaxation, Lines) or parent not in self._slopes:
                continue
            box = self.state.boxes[parent]
            share = _gap(relaxation, box) / (box.upper - box.lower).clamp(min=torch.finfo(width.dtype).tiny)
            size = (weights[..., None] * rows.flatten(2).abs()).sum(1)
            total = total + ((size * share.flatten(1))[:, None] @ self._slopes[parent]).squeeze(1)
        return total * width


def _gap(lines: Lines, box: Box) -> Tensor:
    """Largest distance between the two lines on the box."""
    slope = lines.upper_slope - lines.lower_slope
    bias = torch.zeros_like(slope)
    bias = bias if lines.upper_bias is None else bias + lines.upper_bias
    bias = bias if lines.lower_bias is None else bias - lines.lower_bias
    return torch.maximum(slope * box.lower + bias, slope * box.upper + bias).clamp(min=0)
