"""Smooth functions of one variable, entry by entry: which traced call is which `Curve`.

Derivatives are written so that they keep their relative precision in the tails (tanh' = 4 sigma(2z) sigma(-2z), not
1 - tanh^2).  Inflection points that have no closed form are given to double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.inputs.bounds.curves import Curve, Line, Tangents, tangents
from holdfast.inputs.bounds.operator import Box, Call, Lines, Operator, Relaxation

aten = torch.ops.aten
Recipe = Callable[[Call], Curve]

_SQRT_HALF, _SQRT_TWO = math.sqrt(0.5), math.sqrt(2.0)
_TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)
_TINY = 1e-37  # positive in float32 too


def _sigmoid_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _tanh_slope(z: Tensor) -> Tensor:
    return 4 * _sigmoid_slope(2 * z)


def _erf_slope(z: Tensor) -> Tensor:
    return _TWO_OVER_ROOT_PI * torch.exp(-z * z)


def _gauss(z: Tensor) -> Tensor:
    return 0.5 * _SQRT_HALF * _erf_slope(_SQRT_HALF * z)


def _gelu_slope(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-_SQRT_HALF * z) + z * _gauss(z)


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    inner = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    growth = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
    # Far out the growth overflows sooner than the tail vanishes.
    return torch.sigmoid(2 * inner) + 0.5 * z.clamp(-20, 20) * _tanh_slope(inner) * growth.clamp(max=1e3)


def _silu_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) + z * _sigmoid_slope(z)


def _softplus(z: Tensor) -> Tensor:
    return torch.logaddexp(z, torch.zeros_like(z))


def _mish_slope(z: Tensor) -> Tensor:
    return torch.tanh(_softplus(z)) + z * _tanh_slope(_softplus(z)) * torch.sigmoid(z)


def _magnitude(z: Tensor) -> Tensor:
    return z.abs()


def _one(z: Tensor) -> Tensor:
    return torch.ones_like(z)


SIGMOID = Curve(torch.sigmoid, _sigmoid_slope, bends=(0.0,), low=0.0, high=1.0)
TANH = Curve(torch.tanh, _tanh_slope, bends=(0.0,), low=-1.0, high=1.0)
ERF = Curve(torch.erf, _erf_slope, bends=(0.0,), low=-1.0, high=1.0, slope_terms=_one)
GELU = Curve(
    F.gelu,
    _gelu_slope,
    bends=(-_SQRT_TWO, _SQRT_TWO),
    convex=False,
    turns=(-0.7517915246935645,),
    terms=_magnitude,
    slope_terms=lambda z: 2 * torch.ones_like(z),
)
GELU_TANH = Curve(
    lambda z: F.gelu(z, approximate="tanh"),
    _gelu_tanh_slope,
    bends=(-1.4185040087908284, 1.4185040087908284),
    convex=False,
    turns=(-0.7524614220710163,),
    terms=_magnitude,
    slope_terms=lambda z: 2 * torch.ones_like(z),
)
SILU = Curve(
    F.silu,
    _silu_slope,
    bends=(-2.3993572805154677, 2.3993572805154677),
    convex=False,
    turns=(-1.2784645427610738,),
    slope_terms=lambda z: 2 * torch.ones_like(z),
)
MISH = Curve(
    lambda z: z * torch.tanh(_softplus(z)),
    _mish_slope,
    bends=(-2.25637639636079312, 1.490571179485428459),
    convex=False,
    turns=(-1.192431214515495,),
    slope_terms=lambda z: 2 * torch.ones_like(z),
    # The program's softplus drops what is below exp(-20).
    deviation=lambda lower, upper: torch.where(upper > 20, 1e-15, 0.0).to(lower),
)
LOG_SIGMOID = Curve(F.logsigmoid, lambda z: torch.sigmoid(-z), convex=False, high=0.0)
ABS = Curve(torch.abs, torch.sign, turns=(0.0,), low=0.0)
SQUARE = Curve(torch.square, lambda z: 2 * z, turns=(0.0,), low=0.0)
HARDSWISH = Curve(
    F.hardswish,
    lambda z: torch.where(z.abs() <= 3, (2 * z + 3) / 6, (z > 3).to(z)),
    bends=(-3.0, 3.0),
    convex=False,
    turns=(-1.5,),
    terms=lambda z: 2 * z.abs(),
    slope_terms=lambda z: 2 * torch.ones_like(z),
)


def _exp_tangent(lower: Tensor, upper: Tensor) -> Tensor:
    """Keeps the tangent positive at the lower end."""
    return torch.minimum((lower + upper) / 2, lower + 0.99)


EXP = Curve(torch.exp, torch.exp, low=0.0, tangent=_exp_tangent)
EXPM1 = Curve(torch.expm1, torch.exp, low=-1.0)
LOG = Curve(torch.log, lambda z: 1 / z.clamp(min=_TINY), convex=False)
LOG1P = Curve(torch.log1p, lambda z: 1 / (1 + z).clamp(min=_TINY), convex=False)
SQRT = Curve(
    lambda z: torch.sqrt(z.clamp(min=0)), lambda z: 0.5 / torch.sqrt(z.clamp(min=_TINY)), convex=False, low=0.0
)
RSQRT = Curve(torch.rsqrt, lambda z: -0.5 * torch.rsqrt(z) / z, low=0.0)


@dataclass(frozen=True)
class _Reciprocal(Curve):
    """1 / z on either side of zero."""

    def starts_convex(self, lower: Tensor) -> Tensor:
        return lower > 0


RECIPROCAL = _Reciprocal(torch.reciprocal, lambda z: -1 / z.square())


@dataclass(frozen=True)
class Sine(Curve):
    """sin(z + phase); bends at every multiple of pi."""

    phase: float = 0.0

    def edges(self, lower: Tensor, upper: Tensor) -> list[Tensor]:
        first = torch.floor((lower + self.phase) / math.pi)
        inner = [(first + k) * math.pi - self.phase for k in range(1, 4)]
        # Over more than one period the last piece stands for all others; `_SineNode` does not ask for lines there.
        return [lower, *(torch.minimum(torch.maximum(edge, lower), upper) for edge in inner), upper]

    def starts_convex(self, lower: Tensor) -> Tensor:
        return torch.remainder(torch.floor((lower + self.phase) / math.pi), 2) == 1

    def extremes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.value(lower), self.value(upper)

        def holds(peak: float) -> Tensor:
            """Whether peak + 2 pi k lies inside for some k; a hair of slack covers the rounding of pi k."""
            turn, slack = 2 * math.pi, 8 * torch.finfo(lower.dtype).eps * (1 + lower.abs())
            start = lower + self.phase - peak - slack
            return torch.ceil(start / turn) * turn <= upper + self.phase - peak + slack

        least = torch.where(holds(-math.pi / 2), -1.0, torch.minimum(low, high))
        return least, torch.where(holds(math.pi / 2), 1.0, torch.maximum(low, high))


SINE = Sine(torch.sin, torch.cos, low=-1.0, high=1.0, terms=lambda z: 1 + z.abs(), slope_terms=lambda z: 1 + z.abs())
COSINE = Sine(
    torch.cos,
    lambda z: -torch.sin(z),
    low=-1.0,
    high=1.0,
    terms=lambda z: 1 + z.abs(),
    slope_terms=lambda z: 1 + z.abs(),
    phase=math.pi / 2,
)


def softplus(call: Call) -> Curve:
    """log(1 + exp(beta z)) / beta; the traced program returns z itself where beta z exceeds its threshold."""
    beta, threshold = float(call.argument("beta")), float(call.argument("threshold"))
    gap = math.log1p(math.exp(-threshold)) / beta
    return Curve(
        lambda z: _softplus(beta * z) / beta,
        lambda z: torch.sigmoid(beta * z),
        low=0.0,
        terms=lambda z: _softplus(beta * z) / beta * (1 - beta * z.clamp(max=0)),
        slope_terms=lambda z: torch.sigmoid(beta * z) * (1 - beta * z.clamp(max=0)),
        deviation=lambda lower, upper: torch.where(1.001 * beta * upper > threshold, gap, 0.0).to(lower),
    )


def elu(call: Call) -> Curve:
    """scale (z if z > 0 else alpha (exp(input_scale z) - 1)); SELU and CELU with their own constants."""
    name = str(call.target)
    if "selu" in name:
        alpha, scale, rate = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0
    elif "celu" in name:
        alpha, scale = float(call.argument("alpha")), 1.0
        rate = 1 / alpha
    else:
        alpha, scale, rate = (float(call.argument(part)) for part in ("alpha", "scale", "input_scale"))
    kink = alpha * rate > 1

    def value(z: Tensor) -> Tensor:
        return scale * torch.where(z > 0, z, alpha * torch.expm1(rate * z.clamp(max=0)))

    def slope(z: Tensor) -> Tensor:
        return scale * torch.where(z > 0, torch.ones_like(z), alpha * rate * torch.exp(rate * z.clamp(max=0)))

    return Curve(value, slope, bends=(0.0,) if kink else ())


def power(call: Call) -> Curve:
    """z ** p for a constant p."""
    exponent = float(call.argument("exponent"))
    if exponent == 2:
        return SQUARE
    if exponent == -1:
        return RECIPROCAL

    def slope(z: Tensor) -> Tensor:
        return exponent * torch.pow(z if exponent >= 1 or exponent < 0 else z.clamp(min=_TINY), exponent - 1)

    def value(z: Tensor) -> Tensor:
        return torch.pow(z if exponent == int(exponent) else z.clamp(min=0), exponent)

    grows = dict[str, Any](terms=lambda z: (1 + abs(exponent)) * value(z).abs())
    if exponent == int(exponent) and exponent > 0:
        even = int(exponent) % 2 == 0
        return Curve(value, slope, bends=() if even else (0.0,), convex=even, turns=(0.0,) if even else (), **grows)
    return Curve(value, slope, convex=exponent > 1 or exponent < 0, low=0.0, **grows)


def exponential(call: Call) -> Curve:
    """base ** z for a constant positive base."""
    rate = math.log(float(call.argument("self")))
    return Curve(
        lambda z: torch.exp(rate * z),
        lambda z: rate * torch.exp(rate * z),
        low=0.0,
        terms=lambda z: (1 + (rate * z).abs()) * torch.exp(rate * z),
        slope_terms=lambda z: abs(rate) * (1 + (rate * z).abs()) * torch.exp(rate * z),
    )


def _gelu(call: Call) -> Curve:
    return GELU_TANH if call.argument("approximate") == "tanh" else GELU


def _fixed(curve: Curve) -> Recipe:
    return lambda call: curve


RECIPES: dict[Callable[..., Any], Recipe] = {
    aten.sigmoid.default: _fixed(SIGMOID),
    aten.tanh.default: _fixed(TANH),
    aten.erf.default: _fixed(ERF),
    aten.gelu.default: _gelu,
    aten.silu.default: _fixed(SILU),
    aten.mish.default: _fixed(MISH),
    aten.softplus.default: softplus,
    aten.log_sigmoid.default: _fixed(LOG_SIGMOID),
    aten.elu.default: elu,
    aten.selu.default: elu,
    aten.celu.default: elu,
    aten.hardswish.default: _fixed(HARDSWISH),
    aten.abs.default: _fixed(ABS),
    aten.square.default: _fixed(SQUARE),
    aten.exp.default: _fixed(EXP),
    aten.expm1.default: _fixed(EXPM1),
    aten.log.default: _fixed(LOG),
    aten.log1p.default: _fixed(LOG1P),
    aten.sqrt.default: _fixed(SQRT),
    aten.rsqrt.default: _fixed(RSQRT),
    aten.reciprocal.default: _fixed(RECIPROCAL),
    aten.sin.default: _fixed(SINE),
    aten.cos.default: _fixed(COSINE),
    aten.pow.Tensor_Scalar: power,
    aten.pow.Scalar: exponential,
}

#: Open or closed lower ends of the domain, for the calls that have one; None: any sign, but not zero.
_DOMAIN: dict[Callable[..., Any], float | None] = {
    aten.log.default: 0.0,
    aten.log1p.default: -1.0,
    aten.sqrt.default: 0.0,
    aten.rsqrt.default: 0.0,
    aten.reciprocal.default: None,
}
_CLOSED = (aten.sqrt.default,)


class Smooth(Operator):
    """phi, entry by entry."""

    targets = tuple(RECIPES)
    diagonal = True
    freedoms = 2  # where the lower and the upper line touch

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.curve = RECIPES[call.target](call)

    @classmethod
    def of(cls, curve: Curve, call: Call) -> Smooth:
        """The entrywise operator of a curve that is a part of another call."""
        operator = cls.__new__(cls)
        Operator.__init__(operator, call)
        operator.curve = curve
        return operator

    @classmethod
    def objection(cls, call: Call) -> str | None:
        if call.target is aten.pow.Scalar and not float(call.argument("self")) > 0:
            return f"powers of {call.argument('self')} (a positive base is covered)"
        if call.target in (aten.elu.default, aten.celu.default) and not float(call.argument("alpha")) > 0:
            return f"an exponential linear unit with alpha {call.argument('alpha')} (a positive one is covered)"
        if call.target is aten.softplus.default and not float(call.argument("beta")) > 0:
            return f"softplus with beta {call.argument('beta')} (a positive one is covered)"
        return None

    @property
    def terms(self) -> int:
        return 8

    def value(self, *inputs: Tensor) -> Tensor:
        return self.curve.value(inputs[0])

    def interval(self, *boxes: Box) -> Box:
        self._check_domain(boxes[0])
        return Box(*self.curve.interval(*boxes[0]))

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return torch.zeros_like(sizes[0])  # the curve charges its own rounding

    def wanted(self, *boxes: Box) -> Sequence[Tensor | None]:
        return [boxes[0].lower < boxes[0].upper]

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        if free is not None:
            return self.choices(*boxes)(free)
        return self._lines(boxes[0], *(side.middle() for side in self._sides(boxes[0])))

    def start(self, *boxes: Box) -> Tensor:
        return torch.stack([side.share(side.preferred()) for side in self._sides(boxes[0])])

    def choices(self, *boxes: Box) -> Callable[[Tensor], Relaxation]:
        sides = self._sides(boxes[0])
        return lambda free: self._lines(boxes[0], *(side.chosen(share) for side, share in zip(sides, free)))

    def _sides(self, box: Box) -> tuple[Tangents, Tangents]:
        """Tangents below phi and below -phi."""
        return tangents(self.curve, *box)

    def _lines(self, box: Box, below: Line, above: Line) -> Lines:
        above = Line(-above.slope, -above.bias)
        if isinstance(self.curve, Sine):
            # Beyond one period nothing but the range is left.
            whole = box.upper - box.lower >= 2 * math.pi
            below, above = (
                Line(torch.where(whole, 0.0, line.slope), torch.where(whole, end, line.bias))
                for line, end in ((below, -1.0), (above, 1.0))
            )
        return Lines(below.slope, above.slope, below.bias, above.bias)

    def _check_domain(self, box: Box) -> None:
        start, closed = self._domain()
        name = str(self.call.target).removeprefix("aten.").split(".")[0]
        if start is None:
            check_not_zero(box, name, self.call.place)
        elif start > -math.inf:
            # An end that rounding alone pushed below zero is taken for zero.
            slack = torch.finfo(box.lower.dtype).eps ** 0.5 * box.magnitude if closed else 0.0
            outside = box.lower < start - slack if closed else box.lower <= start
            _refuse(outside, box, name, f"{'below' if closed else 'at or below'} {start:g}", self.call.place)

    def _domain(self) -> tuple[float | None, bool]:
        if self.call.target is not aten.pow.Tensor_Scalar:
            return _DOMAIN.get(self.call.target, -math.inf), self.call.target in _CLOSED
        exponent = float(self.call.argument("exponent"))
        if exponent == -1:
            return None, False
        if exponent == int(exponent) and exponent > 0:
            return -math.inf, False
        return 0.0, exponent > 0


def check_not_zero(box: Box, name: str, place: str) -> None:
    """InputError where a denominator may vanish."""
    _refuse((box.lower <= 0) & (box.upper >= 0), box, name, "zero", place)


def _refuse(outside: Tensor, box: Box, name: str, where: str, place: str) -> None:
    if bool(outside.any()):
        lowest = float(box.lower.detach()[outside].min())
        raise InputError(
            f"{name}: the bounds of its argument reach {where} (down to {lowest:.3g}){place}; bound a smaller region, "
            "or keep the argument away from there, say by adding a constant"
        )
