"""Products of two perturbed values: entrywise products, quotients and matrix products.

On a box the products (x - x_l)(y - y_l) and (x_u - x)(y_u - y) are not negative, nor are (x - x_l)(y_u - y) and
(x_u - x)(y - y_l).  Mixed in any ratio r, q in [0, 1] that gives the planes of McCormick (1976)

    x y >= r (y_l x + x_l y - x_l y_l) + (1 - r) (y_u x + x_u y - x_u y_u)
    x y <= q (y_u x + x_l y - x_l y_u) + (1 - q) (y_l x + x_u y - x_u y_l)

At the centre of the box all of them have the same height, so none is better on average.  What matters is that a slope
multiplies the looseness of its factor's own enclosure: by default every term takes the corners for which

    |slope of x| * width of x + |slope of y| * width of y

is the smaller; where x keeps its sign (gates, attention weights) both planes take the end of x that is nearer to zero,
and so have one slope for y.  A sum of products B(x, y) takes the planes of its terms; the ratios may differ from one
entry of x to another, and are what optimised bounds are free to choose.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from holdfast.inputs.bounds.affine import Targets, operands
from holdfast.inputs.bounds.operator import Box, Call, Lines, Operand, Operator, Pulled, Relaxation
from holdfast.inputs.bounds.patches import Patches
from holdfast.inputs.bounds.smooth import RECIPROCAL, SQUARE, Smooth, check_not_zero

aten = torch.ops.aten

#: Entries of a cube of products held at once.
_CUBE = 1 << 23


class Bilinear(Operator):
    """B(x, y): sums of products of an entry of x with an entry of y, without signs or other factors."""

    freedoms = 2

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.positions = tuple(part.position for part in call.args if isinstance(part, Operand))

    @abstractmethod
    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """B; both with the same leading axes, or axes of length one there, before the events."""

    @abstractmethod
    def left(self, rows: Tensor, y: Tensor) -> Tensor:
        """rows . B( . , y) as rows on x; leading axes as in `product`."""

    @abstractmethod
    def right(self, rows: Tensor, x: Tensor) -> Tensor:
        """rows . B(x, . ) as rows on y."""

    def value(self, *inputs: Tensor) -> Tensor:
        x, y = (inputs[position] for position in self.positions)
        return self.product(x, y)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        x, y = (sizes[position] for position in self.positions)
        return self.product(x, y)

    def wanted(self, *boxes: Box) -> Sequence[Tensor | None]:
        return [box.lower < box.upper for box in boxes]

    def start(self, *boxes: Box) -> Tensor:
        x, y = (boxes[position] for position in self.positions)
        return torch.stack(self._ratios(x, y))

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        x, y = (boxes[position] for position in self.positions)
        if free is not None:
            return Planes(self, x, y, free[0], free[1], rowwise=True)
        x, y = (Box(box.lower.unsqueeze(1), box.upper.unsqueeze(1)) for box in (x, y))
        return Planes(self, x, y, *self._ratios(x, y), rowwise=False)

    @torch.no_grad()
    def _ratios(self, x: Box, y: Box) -> tuple[Tensor, Tensor]:
        """The default ratios, all 0 or 1 (see the module's text); boxes with a rows axis."""
        every = torch.ones(1, 1, *self.call.out_shape, dtype=x.lower.dtype, device=x.lower.device)
        width, theirs = x.upper - x.lower, self.left(every, y.upper - y.lower)
        low, high = (self.left(every, end.abs()) * width for end in y)
        below, above = (end.abs() * theirs for end in x)
        one_sign = (x.lower >= 0) | (x.upper <= 0)
        nearer = below <= above
        first = torch.where(one_sign, nearer, below + low <= above + high)
        second = torch.where(one_sign, nearer, below + high <= above + low)
        return first.to(width), second.to(width)


@dataclass(frozen=True)
class Planes:
    """McCormick's planes of a bilinear operator, mixed by `below` and `above`; everything has a rows axis."""

    operator: Bilinear
    x: Box
    y: Box
    below: Tensor
    above: Tensor
    rowwise: bool

    def pull(self, rows: Tensor, examples: slice) -> Pulled:
        on_x, on_y, bias = self.split(rows, examples)
        parts: list[Any] = [None] * (max(self.operator.positions) + 1)
        for position, part in zip(self.operator.positions, (on_x, on_y)):
            parts[position] = part if parts[position] is None else parts[position] + part
        return tuple(parts), bias

    def split(self, rows: Tensor, examples: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Rows on x, rows on y, and the bias."""
        operator = self.operator
        (xl, xu), (yl, yu) = ((end[examples] for end in box) for box in (self.x, self.y))
        r, q = self.below[examples], self.above[examples]
        positive, negative = rows.clamp(min=0), rows.clamp(max=0)
        low, high = operator.left(positive, yl), operator.left(positive, yu)
        low_, high_ = operator.left(negative, yl), operator.left(negative, yu)
        on_x = high + r * (low - high) + low_ + q * (high_ - low_)
        mixed, mixed_ = xu + r * (xl - xu), xu + q * (xl - xu)
        on_y = operator.right(positive, mixed) + operator.right(negative, mixed_)
        constant = operator.product(r * xl, yl) + operator.product((1 - r) * xu, yu)
        constant_ = operator.product(q * xl, yu) + operator.product((1 - q) * xu, yl)
        return on_x, on_y, -_dot(positive, constant) - _dot(negative, constant_)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        """Twice for the slopes of either factor, and for the constants."""
        size = self.operator.product(self.x.magnitude, self.y.magnitude)
        return 6 * (size if self.rowwise else size.squeeze(1))

    def pull_patches(self, patches: Patches, examples: slice) -> Pulled | None:
        return None


def _dot(rows: Tensor, value: Tensor) -> Tensor:
    """row . value, (examples, rows); `value` may have a rows axis of length one."""
    if value.shape[1] == 1:
        return (rows.flatten(2) @ value.flatten(2).mT).squeeze(-1)
    return (rows * value).flatten(2).sum(-1)


def summed_to(value: Tensor, event: tuple[int, ...]) -> Tensor:
    """Sum over the axes along which `event` was broadcast; two leading axes stay."""
    extra = value.ndim - 2 - len(event)
    value = value.flatten(2, 1 + extra).sum(2) if extra else value
    stretched = [2 + axis for axis, size in enumerate(event) if size == 1 and value.shape[2 + axis] != 1]
    return value.sum(stretched, keepdim=True) if stretched else value


def lifted(value: Tensor, leading: int, rank: int) -> Tensor:
    """With axes of length one between the leading axes and an event of lower rank than `rank`."""
    missing = rank - (value.ndim - leading)
    return value.reshape(*value.shape[:leading], *(1,) * missing, *value.shape[leading:])


class EntryProduct(Bilinear):
    """x * y of two perturbed values, with broadcasting."""

    targets: ClassVar[Targets] = (aten.mul.Tensor,)

    @classmethod
    def objection(cls, call: Call) -> str | None:
        return None if operands(call) == 2 and len(call.in_shapes) == 2 else "a product with a constant"

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        rank = len(self.call.out_shape)
        shapes = [self.call.in_shapes[position] for position in self.positions]
        x, y = (lifted(v, v.ndim - len(shape), rank) for v, shape in zip((x, y), shapes))
        return x * y

    def left(self, rows: Tensor, y: Tensor) -> Tensor:
        rank = len(self.call.out_shape)
        return summed_to(rows * lifted(y, 2, rank), self.call.in_shapes[self.positions[0]])

    def right(self, rows: Tensor, x: Tensor) -> Tensor:
        rank = len(self.call.out_shape)
        return summed_to(rows * lifted(x, 2, rank), self.call.in_shapes[self.positions[1]])

    @property
    def terms(self) -> int:
        return 8 + math.prod(self.call.out_shape)

    def interval(self, *boxes: Box) -> Box:
        x, y = (boxes[position] for position in self.positions)
        ends = [self.product(a, b) for a in x for b in y]
        return Box(torch.stack(ends).amin(0), torch.stack(ends).amax(0))


class Square(Smooth):
    """x * x."""

    targets: ClassVar[Targets] = (aten.mul.Tensor,)

    def __init__(self, call: Call) -> None:
        Operator.__init__(self, call)
        self.curve = SQUARE

    @classmethod
    def objection(cls, call: Call) -> str | None:
        return None if operands(call) == 2 and len(call.in_shapes) == 1 else "a product with a constant"


class MatrixProductOfTwo(Bilinear):
    """x @ y of two perturbed matrices or stacks of matrices (attention scores; weights times values)."""

    targets = (aten.mm.default, aten.bmm.default, aten.matmul.default)

    @classmethod
    def objection(cls, call: Call) -> str | None:
        shapes = [call.in_shapes[part.position] for part in call.args if isinstance(part, Operand)]
        if len(shapes) != 2:
            return "a matrix product with a constant factor"
        if any(len(shape) < 2 for shape in shapes):
            return "a matrix product of two perturbed values of which one is a vector"
        return None

    @property
    def terms(self) -> int:
        return 8 + sum(math.prod(shape) for shape in self.call.in_shapes)

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        rank = len(self.call.out_shape)
        shapes = [self.call.in_shapes[position] for position in self.positions]
        x, y = (lifted(v, v.ndim - len(shape), rank) for v, shape in zip((x, y), shapes))
        return x @ y

    def left(self, rows: Tensor, y: Tensor) -> Tensor:
        rank = len(self.call.out_shape)
        return summed_to(rows @ lifted(y, 2, rank).mT, self.call.in_shapes[self.positions[0]])

    def right(self, rows: Tensor, x: Tensor) -> Tensor:
        rank = len(self.call.out_shape)
        return summed_to(lifted(x, 2, rank).mT @ rows, self.call.in_shapes[self.positions[1]])

    def interval(self, *boxes: Box) -> Box:
        x, y = (boxes[position] for position in self.positions)
        cube = math.prod(self.call.out_shape) * x.lower.shape[-1]
        at_once = max(1, _CUBE // cube)
        parts = [
            self._interval(*(Box(*(end[first : first + at_once] for end in box)) for box in (x, y)))
            for first in range(0, len(x.lower), at_once)
        ]
        return Box(*(torch.cat(ends) for ends in zip(*parts)))

    def _interval(self, x: Box, y: Box) -> Box:
        """Sums of the ranges of the single products, which is exact."""
        rank = len(self.call.out_shape)
        shapes = [self.call.in_shapes[position] for position in self.positions]
        (xl, xu), (yl, yu) = (tuple(lifted(end, 1, rank) for end in box) for box, shape in zip((x, y), shapes))
        products = [a[..., :, :, None] * b[..., None, :, :] for a in (xl, xu) for b in (yl, yu)]
        lower, upper = products[0], products[0]
        for part in products[1:]:
            lower, upper = torch.minimum(lower, part), torch.maximum(upper, part)
        return Box(lower.sum(-2), upper.sum(-2))


class Quotient(Operator):
    """a / b with a perturbed denominator that keeps its sign: a times the reciprocal of b."""

    targets = (aten.div.Tensor, aten.reciprocal.default)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        top, bottom = call.args[0], call.args[1]
        self.top = top.position if isinstance(top, Operand) else None
        self.bottom: int = bottom.position
        self.constant = None if isinstance(top, Operand) else torch.as_tensor(top, dtype=call.dtype, device=call.device)
        shapes = (call.out_shape if self.top is None else call.in_shapes[self.top], call.in_shapes[self.bottom])
        factors = Call(aten.mul.Tensor, (Operand(0), Operand(1)), {}, shapes, call.out_shape, call.dtype, call.device)
        self.times = EntryProduct(factors)

    @classmethod
    def objection(cls, call: Call) -> str | None:
        if call.target is not aten.div.Tensor or not isinstance(call.args[1], Operand):
            return "a division by a constant"
        if len(call.in_shapes) == 1 and operands(call) == 2:
            return "a value divided by itself"
        return None

    @property
    def terms(self) -> int:
        return 16 + math.prod(self.call.out_shape)

    def _boxes(self, boxes: tuple[Box, ...]) -> tuple[Box, Box]:
        """Of the numerator and of the reciprocal."""
        below = boxes[self.bottom]
        check_not_zero(below, "div", self.call.place)
        if self.top is not None:
            return boxes[self.top], Box(*RECIPROCAL.interval(*below))
        assert self.constant is not None
        whole = self.constant.expand(len(below.lower), *self.call.out_shape)
        return Box(whole, whole), Box(*RECIPROCAL.interval(*below))

    def value(self, *inputs: Tensor) -> Tensor:
        reciprocal = inputs[self.bottom].reciprocal()
        if self.top is not None:
            return self.times.value(inputs[self.top], reciprocal)
        assert self.constant is not None
        return self.times.value(self.constant.expand(len(reciprocal), *self.call.out_shape), reciprocal)

    def interval(self, *boxes: Box) -> Box:
        found = self.times.interval(*self._boxes(boxes))
        charge = 2 * torch.finfo(found.lower.dtype).eps * found.magnitude
        return Box(found.lower - charge, found.upper + charge)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        """Zero: the interval is widened where it is made."""
        return torch.zeros(len(sizes[0]), *self.call.out_shape, dtype=sizes[0].dtype, device=sizes[0].device)

    def wanted(self, *boxes: Box) -> Sequence[Tensor | None]:
        return [box.lower < box.upper for box in boxes]

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        top, reciprocal = self._boxes(boxes)
        planes = self.times.relax(top, reciprocal)
        assert isinstance(planes, Planes)
        operator = Smooth.of(RECIPROCAL, self.call)
        lines = operator.relax(boxes[self.bottom])
        assert isinstance(lines, Lines)
        return Divided(planes, lines, self.top, self.bottom)


@dataclass(frozen=True)
class Divided:
    """Planes of numerator times reciprocal, and lines of the reciprocal."""

    planes: Planes
    lines: Lines
    top: int | None
    bottom: int

    def pull(self, rows: Tensor, examples: slice) -> Pulled:
        on_top, on_reciprocal, bias = self.planes.split(rows, examples)
        (on_bottom,), more = self.lines.pull(on_reciprocal, examples)
        bias = bias if more is None else bias + more
        if self.top is None:
            held = self.planes.x.lower[examples]
            return (on_bottom,), bias + _dot(on_top, held)
        return (on_top, on_bottom) if self.top < self.bottom else (on_bottom, on_top), bias

    def magnitude(self, *sizes: Tensor) -> Tensor:
        steep = self.lines.magnitude(sizes[self.bottom]).unsqueeze(1)
        return self.planes.magnitude() + 4 * self.planes.operator.product(self.planes.x.magnitude, steep).squeeze(1)

    def pull_patches(self, patches: Patches, examples: slice) -> Pulled | None:
        return None
