"""Normalisation layers: d / sqrt(mean_j d_j^2 + eps) knows more than its factors.

As the product of d_i and a reciprocal root the interval of y_i is wide: it lets d_i be large while the root is small.
With Q = sum over j other than i of d_j^2

    y_i = d_i / sqrt((d_i^2 + Q) / n + eps)

grows in d_i, and in Q where d_i < 0; where d_i > 0 it falls in Q.  So its exact range over a box of d lies at ends of
d_i and Q, and is within the root of n.  Layers come as primitive calls (`decompose`); `standardisation` finds them.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from holdfast.inputs.bounds.affine import Targets
from holdfast.inputs.bounds.operator import Box, Call
from holdfast.inputs.bounds.product import EntryProduct

aten = torch.ops.aten


class Standardised(EntryProduct):
    """d times rsqrt(mean over `axes` of d^2 + `eps`)."""

    targets: ClassVar[Targets] = ()

    def __init__(self, call: Call, axes: tuple[int, ...], eps: float) -> None:
        super().__init__(call)
        rank = len(call.out_shape)
        self.axes, self.eps = tuple(1 + axis % rank for axis in axes), eps

    def interval(self, *boxes: Box) -> Box:
        product = super().interval(*boxes)
        lower, upper = boxes[self.positions[0]]
        if lower.shape[1:] != self.call.out_shape:
            return product
        count = math.prod(lower.shape[axis] for axis in self.axes)
        within = torch.maximum(lower, -upper).clamp(min=0).square()
        beyond = torch.maximum(lower.abs(), upper.abs()).square()
        unit = 4 * (count + 8) * torch.finfo(lower.dtype).eps
        least, most = (part.sum(self.axes, keepdim=True) for part in (within, beyond))
        least = ((least - within) - unit * least).clamp(min=0)
        most = (most - beyond) * (1 + unit) + unit * beyond

        def at(d: Tensor, rest: Tensor) -> Tensor:
            return d * torch.rsqrt((d.square() + rest) / count + self.eps)

        low = torch.where(lower > 0, at(lower, most), at(lower, least))
        high = torch.where(upper > 0, at(upper, least), at(upper, most))
        charge = 32 * torch.finfo(low.dtype).eps
        return product.intersect(Box(low - charge * low.abs(), high + charge * high.abs()))


def standardisation(node: Node) -> tuple[tuple[int, ...], float] | None:
    """(axes, eps) when `node` is the product that ends a normalisation, d first."""
    if node.target is not aten.mul.Tensor or not all(isinstance(part, Node) for part in node.args[:2]):
        return None
    centred, root = node.args[:2]
    inner = _argument(root, aten.rsqrt.default)
    inner = _argument(inner, aten.clamp.default) or inner
    total = _argument(inner, aten.add.Tensor)
    squares = _argument(total, aten.mean.dim)
    if inner is None or total is None or squares is None or squares.target is not aten.mul.Tensor:
        return None
    eps, (_, axes, *kept) = inner.args[1], total.args
    if not isinstance(eps, float) or kept != [True] or squares.args != (centred, centred):
        return None
    return tuple(int(axis) for axis in _list(axes)), eps


def _list(value: Any) -> list[Any]:
    return list(value)


def _argument(node: object, target: object) -> Node | None:
    """The first argument of `node` if it is a call of `target`."""
    if not isinstance(node, Node) or node.target is not target or not isinstance(node.args[0], Node):
        return None
    return node.args[0]
