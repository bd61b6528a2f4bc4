"""Moves of entries that need care: choices by a constant mask, masks of infinities, windows of an image as columns.

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

from holdfast.inputs.bounds.affine import Move, Sum, Targets
from holdfast.inputs.bounds.operator import Call, Operand

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
