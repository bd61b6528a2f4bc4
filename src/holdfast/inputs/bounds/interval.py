"""Interval bound propagation (Gowal et al., 2018): a box at every node, from the input to the output.

    affine      c' = J c + b,   r' = |J| r          (centre c, radius r)
    monotone    [phi(l), phi(u)]

`Propagation` holds the boxes and is what the backward methods refine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from holdfast.inputs.bounds.graph import Bound
from holdfast.inputs.bounds.operator import Box, Relaxation
from holdfast.inputs.bounds.region import Region
from holdfast.inputs.bounds.rounding import Rounding
from holdfast.threats.balls import Box as BoxThreat
from holdfast.threats.balls import Linf


class Propagation:
    """Boxes of every value of a network over a region; value 0 is the input, `nodes[k]` makes value k + 1.

    `tight[k]`: the box is already the smallest one (no bounding method can improve it).
    """

    def __init__(self, nodes: Sequence[Bound], region: Region, rounding: Rounding) -> None:
        self.nodes, self.region, self.rounding = nodes, region, rounding
        #: Whether the region is a product of intervals, so that boxes lose nothing at the input.
        self.separable = isinstance(region.threat, (Linf, BoxThreat))
        lower, upper = (end.unsqueeze(1) for end in region.interval())
        if rounding.outward:
            # The ends of the region were computed too, from a radius that its dtype may have rounded.
            x, unit, tiny = region.x.unsqueeze(1).abs(), torch.finfo(lower.dtype).eps, torch.finfo(lower.dtype).tiny
            lower, upper = lower - unit * (x + lower.abs()) - tiny, upper + unit * (x + upper.abs()) + tiny
        self._begin(Box(lower, upper))

    def _begin(self, box: Box) -> None:
        self.boxes = [box]
        self.tight = [True]
        self._independent = [self.separable]
        self._affine = [True]
        self._relaxations: dict[int, Relaxation] = {}
        self._sizes: dict[int, Tensor] = {}

    @classmethod
    def resume(cls, nodes: Sequence[Bound], region: Region, rounding: Rounding, boxes: Sequence[Box]) -> Propagation:
        """A propagation whose boxes are known already, for instance those of the parts of a region that was split.

        Nothing is computed.  `boxes[k]` (examples, *event) encloses value k over the part that its example stands for;
        box 0 is the input's.  Where the region is a product of intervals (L-infinity balls, boxes) the boxes say it
        all and `region` may have any number of examples; otherwise `region.x` has one for every example.
        """
        state = cls.__new__(cls)
        state.nodes, state.region, state.rounding = nodes, region, rounding
        state.separable = isinstance(region.threat, (Linf, BoxThreat))
        state._begin(boxes[0])
        for box in boxes[1:]:
            state._append(box)
        return state

    def part(self, examples: Tensor | slice) -> Propagation:
        """The same for some of the examples."""
        boxes = [Box(box.lower[examples], box.upper[examples]) for box in self.boxes]
        region = self.region if self.separable else self.region.part(examples)
        return Propagation.resume(self.nodes, region, self.rounding, boxes)

    def detached(self, nearest: bool = False) -> Propagation:
        """The same without a way back to what the boxes were computed from; `nearest`: and without outward rounding."""
        boxes = [Box(box.lower.detach(), box.upper.detach()) for box in self.boxes]
        rounding = Rounding(False, 0) if nearest else self.rounding
        return Propagation.resume(self.nodes, self.region, rounding, boxes)

    def advance(self) -> int:
        """Add the next value's box; returns its position."""
        self._append(self._image(self.nodes[len(self.boxes) - 1]))
        return len(self.boxes) - 1

    def _image(self, node: Bound) -> Box:
        operator = node.operator
        box = operator.interval(*(self.boxes[i] for i in node.inputs))
        if self.rounding.outward and operator.terms:
            size = operator.magnitude(*(self.boxes[i].magnitude for i in node.inputs))
            box = Box(*self.rounding.widen(box.lower, box.upper, size))
        return box

    def demands(self) -> Iterator[tuple[int, Tensor]]:
        """What the relaxation of the next value depends on: positions, and which entries' bounds would tighten it.

        For a value made of another one entry by entry (an activation's) the other one stands: the image of its bounds
        is at least as tight as what any linear enclosure of the activation gives.
        """
        node = self.nodes[len(self.boxes) - 1]
        for parent, wanted in zip(node.inputs, node.operator.wanted(*(self.boxes[i] for i in node.inputs))):
            if wanted is not None:
                yield self._source(parent), wanted

    def _source(self, position: int) -> int:
        while position and self.nodes[position - 1].entrywise:
            position = self.nodes[position - 1].inputs[0]
        return position

    def improve(self, position: int, box: Box) -> None:
        """Put a tighter box in place, and its images where they exist already."""
        self.boxes[position] = box
        fresh = {position}
        for later, node in enumerate(self.nodes[position : len(self.boxes) - 1], position + 1):
            if node.entrywise and node.inputs[0] in fresh:
                self.boxes[later] = self._image(node).intersect(self.boxes[later])
                self._relaxations.pop(later, None)
                fresh.add(later)

    def _append(self, box: Box) -> None:
        node = self.nodes[len(self.boxes) - 1]
        operator = node.operator
        alone = len(node.inputs) == 1 and self._independent[node.inputs[0]]
        self.boxes.append(box)
        # The image of an interval is exact: so is what one entry alone makes of a range that is.
        exact = len(node.inputs) == 1 and self.tight[node.inputs[0]] and operator.diagonal
        self.tight.append(exact or (alone and operator.affine))
        self._independent.append(alone and operator.diagonal)
        self._affine.append(operator.affine and all(self._affine[i] for i in node.inputs))

    def affine(self, position: int) -> bool:
        """Whether the value is an affine function of the input."""
        return self._affine[position]

    def relaxation(self, position: int) -> Relaxation:
        """The linear enclosure of the operator that makes the value, on the boxes known when first asked."""
        if position not in self._relaxations:
            node = self.nodes[position - 1]
            self._relaxations[position] = node.operator.relax(*(self.boxes[i] for i in node.inputs))
        return self._relaxations[position]

    def size(self, position: int) -> Tensor:
        """Bound on the absolute terms that make up the value at `position` (see `rounding`)."""
        if position not in self._sizes:
            self._sizes[position] = self._size(position) + self.rounding.floor
        return self._sizes[position]

    def _size(self, position: int) -> Tensor:
        if position == 0:
            if self.separable:
                return self.boxes[0].magnitude
            # Eight times the size covers the sums inside a ball's support function (squares, and their square root).
            x = self.region.x.unsqueeze(1)
            return 8 * (x.abs() + torch.maximum(x - self.boxes[0].lower, self.boxes[0].upper - x))
        node = self.nodes[position - 1]
        sizes = [self.boxes[i].magnitude for i in node.inputs]
        return node.operator.magnitude(*sizes) if node.operator.affine else self.relaxation(position).magnitude(*sizes)
