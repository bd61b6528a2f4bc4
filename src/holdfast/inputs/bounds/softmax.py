"""Softmax, its logarithm, and the logarithm of a sum of exponentials, over one axis.

    p_i = 1 / S_i,   S_i = sum_j exp(x_j - x_i)

On a box the interval of p_i is exact: e^{l_i} / (e^{l_i} + sum_{j != i} e^{u_j}) is the lower end, and likewise the
upper.  Lines come from the differences d_j = x_j - x_i, so that no product is needed.  With chords above and tangents
below the exponentials, T(x) <= S_i <= C(x), both affine in x,

    p_i >= 2 / s - C(x) / s^2                          for any s > 0; s = C(centre) makes it highest there
    p_i <= 1 / S_l + 1 / S_u - T(x) / (S_l S_u)        on S_i in [S_l, S_u]

log sum_j e^{x_j} is convex: a tangent plane from below; from above  log s + (C(x) - s) / s  with chords around the
largest upper end.  log p_i = x_i - log sum_j e^{x_j}.

Paper: Shi et al., 2020 (Transformers); bounds through differences: Wei et al., 2023 ("ER").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from holdfast.inputs.bounds.affine import Targets
from holdfast.inputs.bounds.curves import lines
from holdfast.inputs.bounds.operator import Box, Call, Operator, Pulled, Relaxation
from holdfast.inputs.bounds.patches import Patches
from holdfast.inputs.bounds.smooth import EXP

aten = torch.ops.aten

#: Relative error of a sum of exponentials and what is made of it, in units of eps and of the axis' length.
_ULPS = 16.0


@dataclass(frozen=True)
class Mixed:
    """lower . x + b_l <= y <= upper . x + b_u along the last axis.

    Slopes are (examples, *others, outputs, inputs), biases (examples, *others, outputs), with the axis moved last.
    """

    lower: Tensor
    upper: Tensor
    lower_bias: Tensor
    upper_bias: Tensor
    axis: int
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    def pull(self, rows: Tensor, examples: slice) -> Pulled:
        kept = len(self.out_shape) == len(self.in_shape)
        shaped = rows.movedim(2 + self.axis, -1) if kept else rows.unsqueeze(-1)
        positive, negative = shaped.clamp(min=0).unsqueeze(-2), shaped.clamp(max=0).unsqueeze(-2)
        below, above = self.lower[examples][:, None], self.upper[examples][:, None]
        pulled = (positive @ below + negative @ above).squeeze(-2)
        bias = positive.squeeze(-2).flatten(2) @ self.lower_bias[examples].flatten(1)[..., None]
        bias = bias + negative.squeeze(-2).flatten(2) @ self.upper_bias[examples].flatten(1)[..., None]
        return (pulled.movedim(-1, 2 + self.axis),), bias.squeeze(-1)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        size = sizes[0].movedim(1 + self.axis, -1).unsqueeze(-1)
        steep = torch.maximum(self.lower.abs(), self.upper.abs())
        whole = (steep @ size).squeeze(-1) + torch.maximum(self.lower_bias.abs(), self.upper_bias.abs())
        return 2 * whole.movedim(-1, 1 + self.axis).reshape(-1, *self.out_shape)

    def pull_patches(self, patches: Patches, examples: slice) -> Pulled | None:
        return None


class Softmax(Operator):
    """exp(x_i) / sum_j exp(x_j)."""

    targets: ClassVar[Targets] = (aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.axis = int(call.argument("dim")) % len(call.in_shapes[0])

    @property
    def terms(self) -> int:
        return 16 + self.call.in_shapes[0][self.axis]

    def value(self, *inputs: Tensor) -> Tensor:
        return torch.softmax(inputs[0], 1 + self.axis)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return torch.zeros_like(sizes[0])  # charged in the interval

    def wanted(self, *boxes: Box) -> Sequence[Tensor | None]:
        return [boxes[0].lower < boxes[0].upper]

    def interval(self, *boxes: Box) -> Box:
        low, high, _ = _differences(boxes[0], self.axis)
        least, most = _totals(low, high)
        return Box(*((1 / total).clamp(max=1).movedim(-1, 1 + self.axis) for total in (most, least)))

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        low, high, itself = _differences(boxes[0], self.axis)
        below, above, below_bias, above_bias = _reciprocal_sum(low, high)
        return Mixed(
            _through_differences(below, itself),
            _through_differences(above, itself),
            below_bias.squeeze(-1),
            above_bias.squeeze(-1),
            self.axis,
            self.call.in_shapes[0],
            self.call.out_shape,
        )


def share(differences: Tensor) -> Tensor:
    """1 / sum_j exp(d_j) along the last axis."""
    return torch.exp(-torch.logsumexp(differences, -1))


def shared_differences(node: Node) -> Node | None:
    """The differences d of which `node` is exp(-log sum_j exp(d_j)) along the last axis."""
    if node.target is not aten.exp.default:
        return None
    negated = node.args[0]
    if not isinstance(negated, Node) or negated.target is not aten.neg.default:
        return None
    total = negated.args[0]
    if not isinstance(total, Node) or total.target is not aten.logsumexp.default or len(total.args) > 2:
        return None
    differences, axes = total.args[:2]
    if not isinstance(differences, Node) or list(axes) not in ([-1], [differences.meta["val"].ndim - 1]):  # type: ignore[arg-type]
        return None
    return differences


class Share(Operator):
    """1 / sum_j exp(d_j) along the last axis: one entry of a softmax, from its differences.

    The upper line is the lower at the centre of the chord of 1 / S and the chord of exp(-log S).
    """

    targets = (share,)

    @property
    def terms(self) -> int:
        return 16 + self.call.in_shapes[0][-1]

    def value(self, *inputs: Tensor) -> Tensor:
        return share(inputs[0])

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return torch.zeros_like(sizes[0][..., 0])  # charged in the interval

    def wanted(self, *boxes: Box) -> Sequence[Tensor | None]:
        return [boxes[0].lower < boxes[0].upper]

    def interval(self, *boxes: Box) -> Box:
        least, most = _totals(*boxes[0])
        return Box((1 / most), 1 / least)

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        below, above, below_bias, above_bias = _reciprocal_sum(*boxes[0])
        shapes = (self.call.in_shapes[0], self.call.out_shape)
        return Mixed(below.unsqueeze(-2), above.unsqueeze(-2), below_bias, above_bias, len(shapes[0]) - 1, *shapes)


def _reciprocal_sum(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slopes on d below and above 1 / sum exp(d), (..., inputs), and biases (..., 1)."""
    least, most = (total.unsqueeze(-1) for total in _totals(low, high))
    # Where exponentials may overflow nothing is claimed but 0 <= p <= 1 / S_l.
    top = math.log(torch.finfo(low.dtype).max) / 2.2
    lost = (high > top).any(-1, keepdim=True)
    tangent, chord = lines(EXP, low.clamp(max=top), high.clamp(max=top))
    middle = (low + high) / 2
    total = (chord.slope * middle + chord.bias).sum(-1, keepdim=True).clamp(max=math.exp(top))
    below, below_bias = -chord.slope / total.square(), 2 / total - chord.bias.sum(-1, keepdim=True) / total**2
    product = least * most.clamp(max=math.exp(top))
    above, above_bias = -tangent.slope / product, 1 / least + 1 / most - tangent.bias.sum(-1, keepdim=True) / product
    plane, constant = _through_logarithm(low, high, least, most)
    better = (plane * middle).sum(-1, keepdim=True) + constant < (above * middle).sum(-1, keepdim=True) + above_bias
    above, above_bias = torch.where(better, plane, above), torch.where(better, constant, above_bias)
    with torch.no_grad():
        reach, error = torch.maximum(low.abs(), high.abs()), _error(low)
        size = 2 / total + ((chord.slope * reach).abs() + chord.bias.abs()).sum(-1, keepdim=True) / total**2
        slack = error * size
        size = 2 / least + ((tangent.slope * reach).abs() + tangent.bias.abs()).sum(-1, keepdim=True) / product
        slack_ = error * (size + constant.abs() + (plane * reach).abs().sum(-1, keepdim=True))
    return (
        torch.where(lost, 0.0, below),
        torch.where(lost, 0.0, above),
        torch.where(lost, 0.0, below_bias - slack),
        torch.where(lost, 1 / least, above_bias + slack_),
    )


def _through_logarithm(low: Tensor, high: Tensor, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """Chord of exp(-L) on [log S_l, log S_u], with L above its tangent plane at the centre."""
    middle = (low + high) / 2
    weights = torch.softmax(middle, -1)
    constant = torch.logsumexp(middle, -1, keepdim=True) - (weights * middle).sum(-1, keepdim=True)
    _, chord = lines(EXP, -most.log(), -least.log())
    return -chord.slope * weights, chord.bias - chord.slope * constant


def _error(low: Tensor) -> float:
    """Relative error of sums of exponentials along the last axis."""
    return _ULPS * (1 + math.log2(1 + low.shape[-1])) * torch.finfo(low.dtype).eps


def _differences(box: Box, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of d_j = x_j - x_i, (..., outputs i, inputs j), rounded outwards, and where j is i."""
    lower, upper = (end.movedim(1 + axis, -1) for end in box)
    itself = torch.eye(lower.shape[-1], dtype=torch.bool, device=lower.device)
    low = (lower.unsqueeze(-2) - upper.unsqueeze(-1)).masked_fill(itself, 0.0)
    high = (upper.unsqueeze(-2) - lower.unsqueeze(-1)).masked_fill(itself, 0.0)
    eps = torch.finfo(low.dtype).eps
    return low - eps * low.abs().detach(), high + eps * high.abs().detach(), itself


def _totals(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest S_i, (..., outputs), rounded outwards; no larger than what can be represented."""
    largest = torch.finfo(low.dtype).max
    top = math.log(largest) / 1.2
    # The last term is for the rounding of the differences themselves.
    error = _error(low) + torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs()).clamp(max=top).amax(-1)
    least, most = (end.clamp(max=top).exp().sum(-1) for end in (low, high))
    return least * (1 - error), torch.where((high > top).any(-1), largest, most * (1 + error))


def _through_differences(slopes: Tensor, itself: Tensor) -> Tensor:
    """Slopes on d_j = x_j - x_i to slopes on x."""
    others = slopes.masked_fill(itself, 0.0)
    return others - torch.diag_embed(others.sum(-1))


class LogSumExp(Operator):
    """log sum_j exp(x_j)."""

    targets = (aten.logsumexp.default,)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.axis = int(call.argument("dim")[0]) % len(call.in_shapes[0])
        self.kept = len(call.out_shape) == len(call.in_shapes[0])

    @classmethod
    def objection(cls, call: Call) -> str | None:
        return None if len(call.argument("dim")) == 1 else "a log-sum-exp over several axes"

    @property
    def terms(self) -> int:
        return 16 + self.call.in_shapes[0][self.axis]

    def value(self, *inputs: Tensor) -> Tensor:
        return torch.logsumexp(inputs[0], 1 + self.axis, keepdim=self.kept)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        # The largest exponent comes back after the rounding of the rest.
        return torch.logsumexp(sizes[0], 1 + self.axis, keepdim=self.kept) + 1

    def wanted(self, *boxes: Box) -> Sequence[Tensor | None]:
        return [boxes[0].lower < boxes[0].upper]

    def interval(self, *boxes: Box) -> Box:
        return Box(self.value(boxes[0].lower), self.value(boxes[0].upper))

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        lower, upper = (end.movedim(1 + self.axis, -1) for end in boxes[0])
        below, above, below_bias, above_bias = _log_sum_exp(lower, upper)
        slopes, shapes = (below.unsqueeze(-2), above.unsqueeze(-2)), (self.call.in_shapes[0], self.call.out_shape)
        return Mixed(*slopes, below_bias, above_bias, self.axis, *shapes)


def _log_sum_exp(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slopes below and above (..., inputs) and biases (..., 1)."""
    n, eps = lower.shape[-1], torch.finfo(lower.dtype).eps
    centre = (lower + upper) / 2
    share = torch.softmax(centre, -1)
    tangent = torch.logsumexp(centre, -1, keepdim=True) - (share * centre).sum(-1, keepdim=True)
    top = upper.amax(-1, keepdim=True)
    _, chord = lines(EXP, lower - top, upper - top)
    total = (chord.slope * (centre - top) + chord.bias).sum(-1, keepdim=True)
    slope = chord.slope / total
    bias = total.log() - 1 + (chord.bias.sum(-1, keepdim=True)) / total - (slope * top).sum(-1, keepdim=True) + top
    size = 1 + torch.maximum(lower.abs(), upper.abs()).amax(-1, keepdim=True)
    charge = (_ULPS * (2 + math.log2(1 + n)) * eps * size).detach()
    return share, slope, tangent - charge, bias + charge


class LogSoftmax(Softmax):
    """x_i - log sum_j exp(x_j)."""

    targets: ClassVar[Targets] = (aten.log_softmax.int, aten._log_softmax.default)

    def value(self, *inputs: Tensor) -> Tensor:
        return torch.log_softmax(inputs[0], 1 + self.axis)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return 2 * torch.logsumexp(sizes[0], 1 + self.axis, keepdim=True) + 1 + sizes[0]

    def interval(self, *boxes: Box) -> Box:
        low, high, _ = _differences(boxes[0], self.axis)
        ends = (-torch.logsumexp(end, -1).movedim(-1, 1 + self.axis) for end in (high, low))
        return Box(*(end.clamp(max=0) for end in ends))

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        lower, upper = (end.movedim(1 + self.axis, -1) for end in boxes[0])
        below, above, below_bias, above_bias = _log_sum_exp(lower, upper)
        n = lower.shape[-1]
        unit = torch.eye(n, dtype=lower.dtype, device=lower.device)
        shape = lower.shape
        return Mixed(
            unit - above.unsqueeze(-2),
            unit - below.unsqueeze(-2),
            -above_bias.expand(shape),
            -below_bias.expand(shape),
            self.axis,
            self.call.in_shapes[0],
            self.call.out_shape,
        )
