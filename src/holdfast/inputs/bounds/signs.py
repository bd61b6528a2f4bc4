"""Which neurons are known to keep one sign over a subproblem: +1 (never negative), -1 (never positive), 0 (not known).

The signs of all inputs of piecewise-linear activations lie side by side in one row of int8 a subproblem.  What holds on
a box holds on every part of it, so children inherit them and need no bounds for those neurons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from holdfast.inputs.bounds.activation import LeakyReLU
from holdfast.inputs.bounds.backward import Units, refine
from holdfast.inputs.bounds.graph import Bound
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Box

#: What a positive row pays beside a negative one: the lower line has its slope optimised.
LOWER_LINE = 0.2


class Signs:
    """Reads signs from boxes and imposes them, for the network made of `nodes`."""

    def __init__(self, nodes: Sequence[Bound]) -> None:
        places = {node.inputs[0] for node in nodes if isinstance(node.operator, LeakyReLU)}
        self.positions = sorted(places - {0})
        self.sizes = [math.prod(nodes[position - 1].shape) for position in self.positions]

    def unknown(self, count: int, device: torch.device) -> Int8[Tensor, "subproblems neurons"]:
        """No sign known."""
        return torch.zeros(count, sum(self.sizes), dtype=torch.int8, device=device)

    def split(self, signs: Int8[Tensor, "subproblems neurons"]) -> dict[int, Tensor]:
        """Position -> signs of that value's entries."""
        return dict(zip(self.positions, signs.split(self.sizes, 1)))

    def read(self, state: Propagation) -> Int8[Tensor, "subproblems neurons"]:
        """What the boxes say."""
        found = [state.boxes[position] for position in self.positions]
        parts = [(box.lower >= 0).to(torch.int8) - (box.upper <= 0).to(torch.int8) for box in found]
        if not parts:
            return self.unknown(len(state.boxes[0].lower), state.boxes[0].lower.device)
        return torch.cat([part.flatten(1) for part in parts], 1)

    def shaped(self, signs: Int8[Tensor, "subproblems neurons"], state: Propagation) -> dict[int, Tensor]:
        """Position -> signs like the boxes there, where there are any."""
        parts = self.split(signs).items()
        like = {position: state.boxes[position].lower for position in self.positions}
        return {p: part.reshape(like[p].shape).to(like[p]) for p, part in parts if bool(part.any())}

    def losses(
        self,
        state: Propagation,
        recorded: Mapping[int, Tensor],
        weights: Float[Tensor, "subproblems rows"],
    ) -> Float[Tensor, "subproblems neurons"]:
        """What the relaxation of every undecided neuron costs rows (subproblems, rows, *event) that arrive at it.

        The height of its triangle times the row; a positive row pays for the lower line, whose slope is chosen, and is
        charged `LOWER_LINE` of it.  Zero where a neuron is decided and only there.
        """
        losses = {position: torch.zeros_like(state.boxes[position].lower.flatten(1)) for position in self.positions}
        for place, node in enumerate(state.nodes, 1):
            if place not in recorded or not isinstance(node.operator, LeakyReLU) or node.inputs[0] not in losses:
                continue
            lower, upper = (end.flatten(1) for end in state.boxes[node.inputs[0]])
            tiny = torch.finfo(lower.dtype).tiny
            height = -lower * upper / (upper - lower).clamp(min=tiny)
            rows = recorded[place].flatten(2)
            size = (weights[..., None] * torch.where(rows < 0, -rows, LOWER_LINE * rows)).sum(1)
            loss = torch.where((lower < 0) & (upper > 0), (size * height).clamp(min=tiny), 0.0)
            losses[node.inputs[0]] = losses[node.inputs[0]] + loss
        return torch.cat(list(losses.values()), 1) if losses else torch.zeros(len(state.boxes[0].lower), 0)

    def propagate(
        self,
        state: Propagation,
        signs: Int8[Tensor, "subproblems neurons"],
        memory: int,
        units: Callable[[int], Units] | None = None,
    ) -> None:
        """CROWN for every value a relaxation depends on, sparing the neurons whose sign is known.

        `units`, given a position, says how its entries are to be bounded instead (also where intervals are exact).
        """
        known = self.split(signs)
        for node in state.nodes:
            for parent in node.inputs:
                if parent in known:
                    state.boxes[parent] = clamped(state.boxes[parent], known[parent])
            for position, wanted in state.demands():
                if units is not None:
                    refine(state, position, wanted, memory, bound=units(position))
                elif not state.tight[position]:
                    refine(state, position, wanted, memory)
            state.advance()


def clamped(box: Box, signs: Tensor) -> Box:
    """The box with the ends that the signs allow."""
    signs = signs.reshape(box.lower.shape)
    lower = torch.where(signs > 0, box.lower.clamp(min=0), box.lower)
    upper = torch.where(signs < 0, box.upper.clamp(max=0), box.upper)
    # Rounding may leave an end on the wrong side of the other; the known sign wins.
    return Box(torch.minimum(lower, upper.clamp(min=0)), torch.maximum(upper, lower.clamp(max=0)))
