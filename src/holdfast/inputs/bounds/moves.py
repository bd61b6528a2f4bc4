"""Moves and sums with adjoints of their own, choices by constant masks, and masks of infinities.

Automatic differentiation gives every one of these adjoints, at a cost per call that small networks feel.

Attention hides positions by scores of minus infinity.  Bounds need finite numbers, and exp(-1e30) is zero as well; a
model whose *result* is infinite is refused where bounds are checked.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx.node import map_aggregate
from torch.nn import functional as F

from holdfast.inputs.bounds.affine import Average, Move, Pick, Sum, Targets
from holdfast.inputs.bounds.operator import Call, Operand
from holdfast.inputs.bounds.rows import Rows

aten = torch.ops.aten

#: Stands for infinity.
LARGE = 1e30


def finite(call: Call) -> Call:
    """The call with infinite constants replaced by large ones."""

    def changed(part: Any) -> Any:
        if isinstance(part, Tensor) and part.is_floating_point():
            return part.clamp(-LARGE, LARGE)
        return max(-LARGE, min(LARGE, part)) if isinstance(part, float) and math.isinf(part) else part

    return replace(call, args=map_aggregate(call.args, changed), kwargs=map_aggregate(call.kwargs, changed))


class Choice(Move):
    """where(mask, x, y) with a constant mask; either value may be constant."""

    targets: ClassVar[Targets] = (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)

    def __init__(self, call: Call) -> None:
        super().__init__(finite(call))

    @classmethod
    def objection(cls, call: Call) -> str | None:
        return "a choice that depends on the input" if isinstance(call.args[0], Operand) else None


class MaskedSum(Sum):
    """A sum, one part of which may be a mask of infinities."""

    def __init__(self, call: Call) -> None:
        super().__init__(finite(call))


class Windows(Move):
    """Windows of an image as columns, so that a convolution is a product of matrices."""

    targets: ClassVar[Targets] = (aten.im2col.default,)
    has_offset: ClassVar[bool] = False


class Permutation(Pick):
    """Axes in another order."""

    targets: ClassVar[Targets] = (aten.permute.default, aten.transpose.int, aten.t.default)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        rank = len(call.in_shapes[0])
        if call.target is aten.permute.default:
            order = [axis % rank for axis in call.argument("dims")]
        else:
            order = list(range(rank))
            pair = (0, rank - 1) if call.target is aten.t.default else (call.argument("dim0"), call.argument("dim1"))
            first, second = (axis % rank for axis in pair)
            order[first], order[second] = second, first
        self.order, self.inverse = order, [order.index(axis) for axis in range(rank)]

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0].permute(0, *(1 + axis for axis in self.order))

    def adjoint(self, rows: Tensor) -> tuple[Rows, ...]:
        return (rows.permute(0, 1, *(2 + axis for axis in self.inverse)),)


class Part(Pick):
    """A run of entries along one axis."""

    targets: ClassVar[Targets] = (aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        shape = call.in_shapes[0]
        self.axis = int(call.argument("dim", 0)) % len(shape)
        # Which places along the axis: the call itself on their numbers.
        numbers = torch.arange(shape[self.axis]).reshape(
            *(-1 if axis == self.axis else 1 for axis in range(len(shape)))
        )
        places = call(numbers).flatten()
        first = int(places[0]) if len(places) else 0
        #: Where a run without gaps begins.
        self.run = first if torch.equal(places, torch.arange(first, first + len(places))) else None
        self.places = places.to(call.device)

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0].index_select(1 + self.axis, self.places).reshape(len(inputs[0]), *self.call.out_shape)

    def adjoint(self, rows: Tensor) -> tuple[Rows, ...]:
        shape = self.call.in_shapes[0]
        part = [len(self.places) if axis == self.axis else size for axis, size in enumerate(shape)]
        rows = rows.reshape(*rows.shape[:2], *part)
        if self.run is not None:
            around = (self.run, shape[self.axis] - self.run - part[self.axis])
            return (F.pad(rows, (*(0,) * (2 * (len(shape) - 1 - self.axis)), *around)),)
        whole = rows.new_zeros(*rows.shape[:2], *shape)
        return (whole.index_copy(2 + self.axis, self.places, rows),)


class Total(Average):
    """Sums and means along axes."""

    targets: ClassVar[Targets] = (aten.sum.dim_IntList, aten.mean.dim)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        shape = call.in_shapes[0]
        axes = call.argument("dim") or range(len(shape))
        self.axes = sorted(axis % len(shape) for axis in axes)
        self.share = 1.0
        if call.target is aten.mean.dim:
            self.share = 1 / math.prod(shape[axis] for axis in self.axes)

    def value(self, *inputs: Tensor) -> Tensor:
        kept = len(self.call.out_shape) == len(self.call.in_shapes[0])
        return inputs[0].sum([1 + axis for axis in self.axes], keepdim=kept) * self.share

    def adjoint(self, rows: Tensor) -> tuple[Rows, ...]:
        shape = self.call.in_shapes[0]
        kept = [1 if axis in self.axes else size for axis, size in enumerate(shape)]
        spread = (rows * self.share).reshape(*rows.shape[:2], *kept)
        return (spread.expand(*rows.shape[:2], *shape),)
