"""Linear enclosures of a smooth function of one variable, from the pieces on which its derivative is monotone.

For any slope s the line  s z + min_{[l,u]} (phi(z) - s z)  is below phi on [l, u].  The minimum lies at an end of the
interval or, on a piece where phi is convex, where phi'(z) = s; on a concave piece it lies at an end of the piece.  So
the line is below phi *whatever* s is, and s only decides how tight it is:

    phi concave on [l, u]       the chord
    one convex piece [p, q]     the tangent at the point of [t1, t2] nearest to (l + u) / 2, where the tangent at t1
                                goes through (l, phi(l)) (t1 = l if p = l) and the one at t2 through (u, phi(u)); the
                                chord where t1 > t2.  Of all lines below phi this is the one that is highest at the
                                middle, which makes the enclosed area smallest.
    several convex pieces       the chord, lowered as far as it has to be

Points of tangency are found by bisection.  A tangent at *any* t in [t1, t2] is below phi, which is the freedom that
optimised bounds have.  Upper lines are the lower lines of -phi.

Rounding.  torch evaluates elementary functions within 4 units in the last place, and every curve here is a handful of
them; `ULPS` * eps times the curve's absolute terms is subtracted from every line, together with the rounding of s l,
and of the slope (as a tangent's slope over the width of the interval).  Where bisection stops at a bracket [a, b]
around the point where phi' = s, the minimum is lowered by (b - a) max |phi' - s|, which bounds what it can miss.

Paper: Zhang et al., 2018 (CROWN) for chords and tangents; the general pieces are described above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

#: Units in the last place, of a curve's absolute terms, that its evaluation may be off.
ULPS = 8.0

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Curve:
    """phi, its derivative, and where either turns.

    `bends` are the points where phi'' changes its sign (a kink counts), ascending; `convex` says whether phi is convex
    left of the first.  At a bend `slope` is the derivative towards the convex side.  `turns` are the points where phi'
    changes its sign.  `terms(z)` and `slope_terms(z)` bound the absolute terms of evaluating phi and phi' up to |z|.
    `deviation(l, u)` is how far the traced program's function may be from `value` on [l, u] apart from rounding.
    """

    value: Function
    slope: Function
    bends: tuple[float, ...] = ()
    convex: bool = True
    turns: tuple[float, ...] = ()
    low: float = -torch.inf
    high: float = torch.inf
    terms: Function | None = None
    slope_terms: Function | None = None
    tangent: Callable[[Tensor, Tensor], Tensor] | None = None
    deviation: Callable[[Tensor, Tensor], Tensor] | None = None

    def edges(self, lower: Tensor, upper: Tensor) -> list[Tensor]:
        """Ends of the pieces, cut to [lower, upper]; pieces outside are empty."""
        inner = [torch.minimum(torch.maximum(torch.full_like(lower, bend), lower), upper) for bend in self.bends]
        return [lower, *inner, upper]

    def starts_convex(self, lower: Tensor) -> Tensor:
        """Whether phi is convex on the first of `edges`' pieces."""
        return torch.full_like(lower, self.convex, dtype=torch.bool)

    def extremes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value on [lower, upper], before rounding is charged."""
        low, high = self.value(lower), self.value(upper)
        least, most = torch.minimum(low, high), torch.maximum(low, high)
        for turn in self.turns:
            there = self.value(torch.full_like(lower, turn))
            inside = (lower < turn) & (turn < upper)
            least = torch.where(inside, torch.minimum(least, there), least)
            most = torch.where(inside, torch.maximum(most, there), most)
        return least, most

    def error(self, z: Tensor) -> Tensor:
        """Bound on the rounding error of `value` at z."""
        size = self.value(z).abs() if self.terms is None else self.terms(z)
        return ULPS * torch.finfo(z.dtype).eps * size

    def slope_error(self, z: Tensor) -> Tensor:
        """Bound on the rounding error of `slope` at z."""
        size = self.slope(z).abs() if self.slope_terms is None else self.slope_terms(z)
        return ULPS * torch.finfo(z.dtype).eps * size

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Enclosure of phi over [lower, upper], rounding charged, cut to phi's range."""
        least, most = self.extremes(lower, upper)
        with torch.no_grad():
            charge = torch.maximum(self.error(lower), self.error(upper)) + self.beyond(lower, upper)
        return (least - charge).clamp(min=self.low), (most + charge).clamp(max=self.high)

    def beyond(self, lower: Tensor, upper: Tensor) -> Tensor:
        """`deviation`, and what underflow may have dropped."""
        smallest = torch.full_like(lower, torch.finfo(lower.dtype).tiny)
        return smallest if self.deviation is None else smallest + self.deviation(lower, upper)


class Line(NamedTuple):
    """slope z + bias."""

    slope: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Tangents:
    """Lower side of sign * phi on boxes: where tangents below it may touch, and the line where none may.

    `first` <= t <= `last` wherever `touches`; elsewhere `chord` is the line.  All shaped like the box.
    """

    curve: Curve
    sign: float
    lower: Tensor
    upper: Tensor
    first: Tensor
    last: Tensor
    touches: Tensor
    chord: Line

    def line(self, point: Tensor) -> Line:
        """The line that touches at `point` (clamped to where it may), broadcast against the box."""
        lower, upper = self.lower, self.upper
        point = torch.minimum(torch.maximum(point, self.first), self.last)
        slope = self.sign * self.curve.slope(point.detach())
        slope = slope + self._follow(point)
        bias = _bias(self.curve, self.sign, lower, upper, slope, (lower, upper, point))
        with torch.no_grad():
            bias_error = self.curve.slope_error(point) * (upper - lower)
        bias = bias - bias_error
        return Line(
            torch.where(self.touches, slope, self.chord.slope), torch.where(self.touches, bias, self.chord.bias)
        )

    def preferred(self) -> Tensor:
        """The point of tangency whose line is highest at the middle of the box (unless the curve knows better)."""
        if self.curve.tangent is not None and self.sign > 0:
            return self.curve.tangent(self.lower, self.upper)
        return (self.lower + self.upper) / 2

    def middle(self) -> Line:
        """The line through the preferred point."""
        return self.line(self.preferred())

    def chosen(self, share: Tensor) -> Line:
        """The line that touches at `share` in [0, 1] of the way along where it may."""
        return self.line(self.first + share * (self.last - self.first))

    def share(self, point: Tensor) -> Tensor:
        """The share that gives `point`, or the nearest point where a line may touch."""
        length = self.last - self.first
        return torch.where(length > 0, (point - self.first) / torch.where(length > 0, length, 1.0), 0.5).clamp(0, 1)

    def _follow(self, point: Tensor) -> Tensor:
        """Zero, with the derivative of the slope with respect to the box.

        Where the point of tangency is free it is phi'' dt.  Where the tangent goes through an end e of the graph, the
        slope of the chord from there is stationary in t, so  d slope / d e = (phi'(e) - phi'(t)) / (e - t).
        """
        if not (self.lower.requires_grad or self.upper.requires_grad or point.requires_grad):
            return torch.zeros_like(point)
        follow = self.sign * self.curve.slope(point)
        for end, touch in ((self.lower, self.first), (self.upper, self.last)):
            bound = (point == touch) & (end != touch)
            with torch.no_grad():
                gap = torch.where(bound, end - touch, 1.0)
                rate = self.sign * (self.curve.slope(end) - self.curve.slope(touch)) / gap
            follow = torch.where(bound, rate * end, follow)
        return follow - follow.detach()


def _gap(curve: Curve, sign: Tensor | float, slope: Tensor, z: Tensor) -> Tensor:
    """sign * phi(z) - slope z, less what rounding may have added."""
    gap = sign * curve.value(z) - slope * z
    with torch.no_grad():
        rounding = curve.error(z) + 4 * torch.finfo(slope.dtype).eps * (slope * z).abs()
    return gap - rounding


def _bias(
    curve: Curve, sign: Tensor | float, lower: Tensor, upper: Tensor, slope: Tensor, points: tuple[Tensor, ...]
) -> Tensor:
    """min over `points` of sign * phi - slope z, less what rounding may have added."""
    least = _gap(curve, sign, slope, points[0])
    for point in points[1:]:
        least = torch.minimum(least, _gap(curve, sign, slope, point))
    with torch.no_grad():
        beyond = curve.beyond(lower, upper)
    return least - beyond


def tangents(curve: Curve, lower: Tensor, upper: Tensor) -> tuple[Tangents, Tangents]:
    """Where lines below phi, and lines below -phi, may touch it on [lower, upper]; the two are searched for at once."""
    sign = torch.stack([torch.ones_like(lower), -torch.ones_like(lower)]).detach()
    low, high = (end.expand(2, *end.shape) for end in (lower, upper))
    with torch.no_grad():
        edges = curve.edges(low.detach(), high.detach())
        first, last, convex, bent = _convex_part(curve, edges, sign)
        touches = convex == 1
        mixed = touches & bent
        if bool(mixed.any()):
            parts = (part[mixed] for part in (sign, low.detach(), high.detach(), first, last))
            found = _touching(curve, *parts)
            first, last, touches = first.clone(), last.clone(), touches.clone()
            first[mixed], last[mixed], touches[mixed] = found
    chord = _chord(curve, sign, low, high, edges, (convex > 0) & ~touches)

    def side(k: int, signed: float) -> Tangents:
        line = Line(chord.slope[k], chord.bias[k])
        return Tangents(curve, signed, lower, upper, first[k], last[k], touches[k], line)

    return side(0, 1.0), side(1, -1.0)


def lines(curve: Curve, lower: Tensor, upper: Tensor) -> tuple[Line, Line]:
    """Lower and upper line of phi on [lower, upper]."""
    below, above = (side.middle() for side in tangents(curve, lower, upper))
    return below, Line(-above.slope, -above.bias)


def _convex_part(curve: Curve, edges: list[Tensor], sign: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and last point of convex pieces that are not empty, how many there are, and whether others exist."""
    lower, upper = edges[0], edges[-1]
    first, last = upper, lower
    count, bent = torch.zeros_like(lower, dtype=torch.long), torch.zeros_like(lower, dtype=torch.bool)
    convex = curve.starts_convex(lower) ^ (sign < 0)
    for start, end in pairwise(edges):
        present = start < end
        chosen = present & convex
        first = torch.where(chosen, torch.minimum(first, start), first)
        last = torch.where(chosen, torch.maximum(last, end), last)
        count, bent, convex = count + chosen, bent | (present & ~convex), ~convex
    none = count == 0
    return torch.where(none, lower, first), torch.where(none, lower, last), count, bent


def _steps(like: Tensor) -> int:
    """Halvings until nothing is gained: errors of the point enter squared."""
    return 52 if like.dtype == torch.float64 else 28


def _touching(
    curve: Curve, sign: Tensor, lower: Tensor, upper: Tensor, first: Tensor, last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Within the convex piece [first, last]: where tangents stay below both ends of the graph, and whether any do."""
    point, fails = torch.stack([first, last]), torch.zeros_like(torch.stack([first, last]), dtype=torch.bool)
    ends, near = torch.stack([lower, upper]), torch.stack([last, first])
    beyond = ends != point  # an end of the box that is the piece's own needs no search
    if bool(beyond.any()):
        signs = sign.expand_as(point)[beyond]
        point[beyond], fails[beyond] = _through_end(curve, signs, ends[beyond], near[beyond], point[beyond])
    start, stop = point
    return start, stop, ~fails.any(0) & (start <= stop)


def _through_end(curve: Curve, sign: Tensor, end: Tensor, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """The point between `near` and `far`, nearest to `far`, whose tangent is below the graph at `end`, which lies
    beyond `far`; and whether there is none.
    """
    height = curve.value(end)

    def above(t: Tensor) -> Tensor:
        return sign * (curve.value(t) + curve.slope(t) * (end - t) - height) > 0

    good, bad = near, far
    for _ in range(_steps(end)):
        middle = (good + bad) / 2
        over = above(middle)
        good, bad = torch.where(over, good, middle), torch.where(over, middle, bad)
    return good, above(near)


def _chord(curve: Curve, sign: Tensor, lower: Tensor, upper: Tensor, edges: list[Tensor], lowered: Tensor) -> Line:
    """The chord, moved below the graph where `lowered` says that it may cross it; constant on a single point."""
    width = upper - lower
    reach = torch.maximum(lower.detach().abs(), upper.detach().abs()).clamp(min=1.0)
    narrow = width.detach() <= torch.finfo(lower.dtype).eps ** (1 / 3) * reach
    safe = torch.where(narrow, 1.0, width)
    quotient = sign * (curve.value(upper) - curve.value(lower)) / safe
    # On a narrow interval the quotient is mostly rounding; the slope in the middle differs from it by less.
    centre = torch.where(narrow, (lower + upper) / 2, lower.detach())
    slope = torch.where(narrow, sign * curve.slope(centre), quotient)
    slope = torch.where(torch.isfinite(slope) & (width.detach() > 0), slope, 0.0)
    bias = _bias(curve, sign, lower, upper, slope, (lower, upper))
    if bool(lowered.any()):
        with torch.no_grad():
            kept, signs = [edge[lowered] for edge in edges], sign[lowered]
            point, missed = _stationary(curve, signs, kept, slope.detach()[lowered])
            beyond = curve.beyond(kept[0], kept[-1])
        there = _gap(curve, signs, slope[lowered], point) - missed - beyond
        # The ends were looked at, with their derivatives.
        known = ((point == kept[0]) | (point == kept[-1])) & (missed == 0)
        there = torch.where(known, torch.inf, there)
        bias = bias.masked_scatter(lowered, torch.minimum(bias[lowered], there))
    return Line(slope, bias)


def _stationary(curve: Curve, sign: Tensor, edges: list[Tensor], slope: Tensor) -> tuple[Tensor, Tensor]:
    """Where sign * phi - slope z is smallest on its convex pieces, and how much lower it may still be near there."""
    convex = curve.starts_convex(edges[0]) ^ (sign < 0)
    best, where, missed = torch.full_like(slope, torch.inf), edges[0], torch.zeros_like(slope)
    for start, end in pairwise(edges):
        # Where the slope is not met inside the piece, its end is the exact answer.
        low = torch.where(sign * curve.slope(end) <= slope, end, start)
        high = torch.where(sign * curve.slope(start) >= slope, start, end)
        low = torch.minimum(low, high)
        for _ in range(_steps(slope) // 2 if bool((low < high).any()) else 0):
            middle = (low + high) / 2
            falling = sign * curve.slope(middle) < slope
            low, high = torch.where(falling, middle, low), torch.where(falling, high, middle)
        steep = torch.maximum(*((sign * curve.slope(z) - slope).abs() for z in (low, high)))
        missable = torch.where(low < high, steep * (high - low), 0.0)
        for point in (low, high):
            gap = sign * curve.value(point) - slope * point
            better = convex & (start < end) & (gap - missable < best)
            best, where = torch.where(better, gap - missable, best), torch.where(better, point, where)
            missed = torch.where(better, missable, missed)
        convex = ~convex
    return where, missed
