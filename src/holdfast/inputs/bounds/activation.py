"""Piecewise-linear activations, entry by entry.

For a ReLU with l < 0 < u the upper line is the chord, slope u / (u - l); the lower line goes through the origin with
slope alpha in [0, 1], by default 1 where u > -l and 0 elsewhere (Zhang et al., 2018).  Outside that case the function
is linear on [l, u] and both lines are the function itself.  The bias of the chord is recomputed from both ends for
the slope as it was rounded, so the line is above the function for *any* slope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from holdfast.inputs.bounds.operator import Box, Call, Lines, Operator

aten = torch.ops.aten


class LeakyReLU(Operator):
    """max(z, slope z) with 0 <= slope <= 1; ReLU is slope 0."""

    targets = (aten.leaky_relu.default, aten.relu.default)
    diagonal = True
    by_sign = True
    freedoms = 1

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.slope = 0.0 if call.target is aten.relu.default else float(call.argument("negative_slope"))

    @classmethod
    def objection(cls, call: Call) -> str | None:
        if call.target is aten.leaky_relu.default and not 0 <= call.argument("negative_slope") <= 1:
            return f"leaky ReLU with negative slope {call.argument('negative_slope')} (0..1 is covered)"
        return None

    @property
    def terms(self) -> int:
        return 8

    def value(self, *inputs: Tensor) -> Tensor:
        z = inputs[0]
        return z.clamp(min=0) if self.slope == 0 else torch.maximum(z, self.slope * z)

    def interval(self, *boxes: Box) -> Box:
        return Box(self.value(boxes[0].lower), self.value(boxes[0].upper))

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return sizes[0] if self.slope else torch.zeros_like(sizes[0])  # clamping is exact, scaling is not

    def wanted(self, *boxes: Box) -> Sequence[Tensor | None]:
        return [(boxes[0].lower < 0) & (boxes[0].upper > 0)]

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Lines:
        """`free` 0 makes the lower line of an open entry as flat as `slope`, 1 the identity; the default is as in the
        module's description.
        """
        lower, upper = boxes[0]
        unstable = (lower < 0) & (upper > 0)
        low, high = lower.clamp(max=0), upper.clamp(min=0)
        # Scaled before subtracting so that neither a huge nor a denormal width breaks the quotient.
        reach = torch.maximum(-low, high).clamp(min=torch.finfo(low.dtype).tiny)
        share = (high / reach) / (high / reach - low / reach).clamp(min=torch.finfo(low.dtype).tiny)
        chord = (self.slope + (1 - self.slope) * share).clamp(self.slope, 1)
        # As tensors: two bare numbers in `where` would come out in the default dtype, and 0.2 in float32 is not 0.2.
        steep, flat = low.new_tensor(1.0), low.new_tensor(self.slope)
        line = torch.where(lower >= 0, steep, flat)
        below = torch.where(high > -low, steep, flat) if free is None else self._below(free)
        above = torch.maximum(high - chord * high, (self.slope - chord) * low)
        bias = torch.where(unstable, above * (1 + 8 * torch.finfo(low.dtype).eps), 0.0)
        return Lines(torch.where(unstable, below, line), torch.where(unstable, chord, line), None, bias)

    def _below(self, free: Tensor) -> Tensor:
        return free[0] if self.slope == 0 else (self.slope + (1 - self.slope) * free[0]).clamp(self.slope, 1)

    def start(self, *boxes: Box) -> Tensor:
        lower, upper = boxes[0]
        return (upper > -lower).to(lower)[None]

    def choices(self, *boxes: Box) -> Callable[[Tensor], Lines]:
        fixed = self.relax(*boxes)
        unstable = (boxes[0].lower < 0) & (boxes[0].upper > 0)

        def chosen(free: Tensor) -> Lines:
            return replace(fixed, lower_slope=torch.where(unstable, self._below(free), fixed.lower_slope))

        return chosen
