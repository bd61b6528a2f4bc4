"""Piecewise-linear operators with kinks: clamping, and the larger or smaller of several values.

Clamping to [a, b] is convex around a and concave around b.  Where l < a < u a lower line goes through the kink (a, a)
with any slope in [0, (phi(u) - a) / (u - a)]; where l >= a it is the chord.  Upper lines mirror that at b.

max(x, y) = y + relu(x - y): with d = x - y in [x_l - y_u, x_u - y_l] the upper plane has the chord of the ReLU; the
lower plane is lambda x + (1 - lambda) y for any lambda in [0, 1].  Along an axis: `pooling.MaxPool` with one window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from holdfast.inputs.bounds.affine import Targets, operands
from holdfast.inputs.bounds.operator import Box, Call, Lines, Operand, Operator, Pulled, Relaxation
from holdfast.inputs.bounds.patches import Patches
from holdfast.inputs.bounds.pooling import MaxPool
from holdfast.inputs.bounds.product import lifted, summed_to

aten = torch.ops.aten


class Clamp(Operator):
    """min(max(z, a), b) with constants, either of which may be missing."""

    targets = (aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.hardtanh.default)
    diagonal = True
    freedoms = 2

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        low, high = (call.argument(name) for name in self._names(call))
        self.low = -math.inf if low is None else float(low)
        self.high = math.inf if high is None else float(high)

    @staticmethod
    def _names(call: Call) -> tuple[str, str]:
        return ("min_val", "max_val") if call.target is aten.hardtanh.default else ("min", "max")

    @classmethod
    def objection(cls, call: Call) -> str | None:
        low, high = (call.argument(name) for name in cls._names(call))
        if low is not None and high is not None and low > high:
            return f"clamping to [{low}, {high}]"
        return None

    @property
    def terms(self) -> int:
        return 8

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp(self.low, self.high)

    def interval(self, *boxes: Box) -> Box:
        return Box(self.value(boxes[0].lower), self.value(boxes[0].upper))

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return torch.zeros_like(sizes[0])

    def _bends(self, box: Box) -> Tensor:
        inside = [(box.lower < kink) & (box.upper > kink) for kink in (self.low, self.high)]
        return inside[0] | inside[1]

    def wanted(self, *boxes: Box) -> Sequence[Tensor | None]:
        return [self._bends(boxes[0])]

    def start(self, *boxes: Box) -> Tensor:
        lower, upper = boxes[0]
        return torch.stack([(upper - self.low > self.low - lower), (self.high - lower > upper - self.high)]).to(lower)

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        if free is None:
            free = self.start(*boxes)
        below = self._side(boxes[0], self.low, self.high, free[0], 1.0)
        mirrored = Box(-boxes[0].upper, -boxes[0].lower)
        above = self._side(mirrored, -self.high, -self.low, free[1], -1.0)
        return Lines(below[0], above[0], below[1], above[1])

    def _side(self, box: Box, low: float, high: float, free: Tensor, sign: float) -> tuple[Tensor, Tensor]:
        """Slope and bias of a line below clamp(z, low, high), or with sign -1 of its mirror image above."""
        lower, upper = box
        bottom, top = lower.clamp(low, high), upper.clamp(low, high)
        across = (lower < low) & (upper > low)
        start = torch.where(across, low, lower) if low > -math.inf else lower
        width = upper - start
        safe = torch.where(width > 0, width, 1.0)
        chord = torch.where(width > 0, (top - bottom) / safe, 0.0).clamp(0, 1)
        linear = (lower >= low) & (upper <= high)
        slope = torch.where(linear, 1.0, torch.where(across, free * chord, chord))
        # The smallest gap over the corners of the graph, whatever rounding did to the slope.
        gaps = torch.minimum(bottom - slope * lower, top - slope * upper)
        if low > -math.inf:
            gaps = torch.where(across, torch.minimum(gaps, low - slope * low), gaps)
        with torch.no_grad():
            size = top.abs() + bottom.abs() + slope * torch.maximum(lower.abs(), upper.abs())
            charge = 4 * torch.finfo(lower.dtype).eps * size
        return slope, sign * torch.where(linear, 0.0, gaps - charge)


@dataclass(frozen=True)
class Weighted:
    """x share + y (1 - share) + bias from below and from above; everything (examples, *out event)."""

    below: Tensor
    above: Tensor
    above_bias: Tensor
    shapes: tuple[tuple[int, ...], ...]
    constant: Tensor | None

    def pull(self, rows: Tensor, examples: slice) -> Pulled:
        positive, negative = rows.clamp(min=0), rows.clamp(max=0)
        below, above = self.below[examples][:, None], self.above[examples][:, None]
        on_x = positive * below + negative * above
        on_y = positive * (1 - below) + negative * (1 - above)
        bias = (negative.flatten(2) @ self.above_bias[examples].flatten(1)[..., None]).squeeze(-1)
        if self.constant is not None:
            return (summed_to(on_x, self.shapes[0]),), bias + on_y.flatten(2) @ self.constant.flatten()
        return (summed_to(on_x, self.shapes[0]), summed_to(on_y, self.shapes[1])), bias

    def magnitude(self, *sizes: Tensor) -> Tensor:
        rank = self.below.ndim - 1
        parts = [lifted(size, 1, rank).expand(self.below.shape) for size in sizes]
        if self.constant is not None:
            parts.append(self.constant.abs().expand(self.below.shape))
        return 2 * (parts[0] + parts[1] + self.above_bias.abs())

    def pull_patches(self, patches: Patches, examples: slice) -> Pulled | None:
        return None


class Larger(Operator):
    """max(x, y) or min(x, y), entry by entry with broadcasting; y may be constant."""

    targets = (aten.maximum.default, aten.minimum.default, aten.clamp.Tensor)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.sign = 1.0 if call.target is aten.maximum.default else -1.0
        fixed = [part for part in call.args if not isinstance(part, Operand)]
        self.constant = fixed[0].expand(call.out_shape) if fixed else None

    @classmethod
    def objection(cls, call: Call) -> str | None:
        if call.target is aten.clamp.Tensor:
            return "clamping between tensors"
        if operands(call) == 2 and len(call.in_shapes) == 1:
            return "the larger of a value and itself"
        return None

    @property
    def terms(self) -> int:
        return 8 + math.prod(self.call.out_shape)

    def _pair(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        rank = len(self.call.out_shape)
        shape = (len(parts[0]), *self.call.out_shape)
        x = lifted(parts[0], 1, rank).expand(shape)
        return x, (
            self.constant.expand(shape) if self.constant is not None else lifted(parts[1], 1, rank).expand(shape)
        )

    def value(self, *inputs: Tensor) -> Tensor:
        pick: Callable[..., Tensor] = torch.maximum if self.sign > 0 else torch.minimum
        return pick(*self._pair(inputs))

    def interval(self, *boxes: Box) -> Box:
        return Box(self.value(*(box.lower for box in boxes)), self.value(*(box.upper for box in boxes)))

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return torch.zeros_like(self._pair(sizes)[0])

    def wanted(self, *boxes: Box) -> Sequence[Tensor | None]:
        return [box.lower < box.upper for box in boxes]

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        (xl, yl), (xu, yu) = self._pair([b.lower for b in boxes]), self._pair([b.upper for b in boxes])
        if self.sign < 0:  # min(x, y) = -max(-x, -y)
            xl, xu, yl, yu = -xu, -xl, -yu, -yl
        low, high = xl - yu, xu - yl
        width = torch.where(high > low, high - low, 1.0)
        share = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, high / width)).clamp(0, 1)
        open_ = (low < 0) & (high > 0)
        raised = torch.maximum((1 - share) * high, -share * low)
        raised = torch.where(open_, raised * (1 + 8 * torch.finfo(low.dtype).eps), 0.0)
        lower_share = torch.where(open_, (high > -low).to(low), share)
        shapes = self.call.in_shapes
        if self.sign > 0:
            return Weighted(lower_share, share, raised, shapes, self.constant)
        return Mirrored(Weighted(lower_share, share, raised, shapes, None if self.constant is None else -self.constant))


@dataclass(frozen=True)
class Mirrored:
    """-f(-x) for an enclosure of f."""

    inner: Weighted

    def pull(self, rows: Tensor, examples: slice) -> Pulled:
        parts, bias = self.inner.pull(-rows, examples)
        return tuple(-part for part in parts), bias  # type: ignore[operator]

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return self.inner.magnitude(*sizes)

    def pull_patches(self, patches: Patches, examples: slice) -> Pulled | None:
        return None


class Largest(MaxPool):
    """The largest entry along some axes (values, not positions)."""

    targets: ClassVar[Targets] = (aten.amax.default, aten.max.dim, aten.max.default)  # type: ignore[assignment]

    def __init__(self, call: Call) -> None:
        Operator.__init__(self, call)
        self.table = self._table().to(call.device)
        self.absent = torch.zeros_like(self.table, dtype=torch.bool)

    @classmethod
    def objection(cls, call: Call) -> str | None:
        return "positions of the largest entries" if call.item == 1 else None

    def _table(self) -> Tensor:
        shape = self.call.in_shapes[0]
        axes: Any = self.call.argument("dim", [])
        axes = [axes] if isinstance(axes, int) else list(axes or range(len(shape)))
        axes = sorted(axis % len(shape) for axis in axes)
        others = [axis for axis in range(len(shape)) if axis not in axes]
        places = torch.arange(math.prod(shape)).reshape(shape).permute(*others, *axes)
        return places.reshape(math.prod(shape[axis] for axis in others), -1)
