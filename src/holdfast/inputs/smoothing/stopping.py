"""When to stop drawing: rules that look at a running count of votes and still keep the certificate's guarantee.

After n fresh draws of which k voted for the label, a rule says whether to go on and what lower bound p_lower on the
label's probability p holds with probability 1 - alpha *whenever it stops*.

`FixedN` looks once, at the end, and uses the exact (Clopper-Pearson) bound.  The others look after every batch and use
the Beta(1/2, 1/2) mixture martingale (Ville's inequality; Robbins, 1970):

    log M_n(p) = log B(k + 1/2, n - k + 1/2) - log B(1/2, 1/2) - k log p - (n - k) log(1 - p),   {p : M_n(p) < 1/alpha}

is an interval that covers p at all n simultaneously, so its highest lower end so far may be reported at any time.
Deciding "radius at least r" this way takes as many draws as the case is hard, not as many as the hardest case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from scipy.special import betaln, ndtr, ndtri

from holdfast.core.errors import InputError
from holdfast.core.intervals import clopper_pearson_lower

_TOLERANCE = 1e-12


def log_wealth(p: float, successes: int, draws: int) -> float:
    """log M_n(p): the evidence so far against the probability being p (0 < p < 1)."""
    failures = draws - successes
    constant = float(betaln(successes + 0.5, failures + 0.5) - betaln(0.5, 0.5))
    return constant - successes * math.log(p) - failures * math.log1p(-p)


def mixture_interval(successes: int, draws: int, alpha: float) -> tuple[float, float]:
    """{p : M_n(p) < 1/alpha}, ends rounded outward; (0, 1) before the first draw."""
    share = successes / draws if draws else 0.5
    lower = _end(0.0, share, successes, draws, alpha) if successes else 0.0
    upper = _end(1.0, share, successes, draws, alpha) if successes < draws else 1.0
    return lower, upper


def _end(outside: float, inside: float, successes: int, draws: int, alpha: float) -> float:
    """The excluded point next to the interval; M_n grows from `inside` (the share, where it is least) outwards."""
    while abs(outside - inside) > _TOLERANCE:
        middle = (outside + inside) / 2
        if log_wealth(middle, successes, draws) >= -math.log(alpha):
            outside = middle
        else:
            inside = middle
    return outside


def radius_of(p: float, sigma: float) -> float:
    """sigma * Phi^-1(p), negative below one half (Cohen et al., 2019, theorem 1 with p_B = 1 - p_A)."""
    return sigma * float(ndtri(p))


@dataclass(frozen=True)
class Look:
    """What is known after `draws` of at most `cap` draws: whether to stop, and the bound valid if we do."""

    stop: bool
    p_lower: float


@runtime_checkable
class Stopping(Protocol):
    """A rule that is asked after every batch."""

    @property
    def sequential(self) -> bool:
        """Whether looking early can help."""
        ...

    def look(self, successes: int, draws: int, cap: int, alpha: float, sigma: float) -> Look: ...


@dataclass(frozen=True)
class FixedN:
    """Draw all n, then look once."""

    sequential: bool = False

    def look(self, successes: int, draws: int, cap: int, alpha: float, sigma: float) -> Look:
        if draws < cap:
            return Look(False, 0.0)
        return Look(True, clopper_pearson_lower(successes, draws, alpha))


@dataclass(frozen=True)
class RadiusTarget:
    """Stop as soon as it is decided whether the certified radius reaches `radius`.

    Raises InputError unless `radius` is at least 0.
    """

    radius: float
    sequential: bool = True

    def __post_init__(self) -> None:
        if not self.radius >= 0:
            raise InputError(f"the radius to decide must be at least 0, got {self.radius}")

    def look(self, successes: int, draws: int, cap: int, alpha: float, sigma: float) -> Look:
        wanted = float(ndtr(self.radius / sigma))
        # Whether `wanted` lies outside the interval; which side it is on is the answer.
        decided = log_wealth(wanted, successes, draws) >= -math.log(alpha)
        return Look(decided, mixture_interval(successes, draws, alpha)[0] if decided or draws == cap else 0.0)


@dataclass(frozen=True)
class Precision:
    """Stop when upper and lower end of the radius are within `width` sigma, or when the label cannot win.

    The upper end is never taken above what all n draws could certify.  Raises InputError unless `width` is positive.
    """

    width: float
    sequential: bool = True

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise InputError(f"the wanted width must be positive, got {self.width}")

    def look(self, successes: int, draws: int, cap: int, alpha: float, sigma: float) -> Look:
        lower, upper = mixture_interval(successes, draws, alpha)
        highest = min(upper, clopper_pearson_lower(cap, cap, alpha))
        narrow = lower > 0.5 and radius_of(highest, 1.0) - radius_of(lower, 1.0) <= self.width
        return Look(narrow or upper < 0.5, lower)
