"""When to stop drawing: rules that look at what is known so far and still keep the certificate's guarantee.

A rule decides only *when* to stop.  What may be claimed then is the business of the bound that is looked at (`votes`):
one exact bound after a number of draws fixed beforehand, or a sequence that holds at every look.  So no rule can make
a certificate wrong, only late or short.

`FixedN` draws all n.  `Planned` fixes a smaller number before the first counted draw, from the draws that chose the
label.  `RadiusTarget` and `Precision` look all the time: deciding "radius at least r" then takes as many draws as the
case is hard, not as many as the hardest case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from holdfast.core.errors import InputError
from holdfast.inputs.smoothing.noise import Noise

#: Numbers of draws that `Planned` weighs against one another, as shares of the most allowed.
_PLANS = 200


#: Expected radius, (plans,), of an input by numbers of draws, (plans,).
Expected = Callable[[Int[np.ndarray, " plans"]], Float[np.ndarray, " plans"]]


@dataclass(frozen=True)
class Reach:
    """What is known of some inputs' radii: the largest certified so far, and the largest that is still in reach.

    `highest` is what all draws together would certify if the label were as probable as the draws so far allow.
    """

    radius: Float[np.ndarray, " inputs"]
    highest: Float[np.ndarray, " inputs"]


@runtime_checkable
class Stopping(Protocol):
    """A rule."""

    @property
    def sequential(self) -> bool:
        """Whether it looks at the bound before the last draw."""
        ...

    def plan(self, expected: Expected, n: int) -> int:
        """The most draws an input may take, when `expected` says what radius some numbers of draws would certify."""
        ...

    def done(self, reach: Reach, noise: Noise) -> Bool[np.ndarray, " inputs"]:
        """Which inputs need no further draw."""
        ...


@dataclass(frozen=True)
class FixedN:
    """Draw all n, then look once."""

    sequential: bool = False

    def plan(self, expected: Expected, n: int) -> int:
        return n

    def done(self, reach: Reach, noise: Noise) -> Bool[np.ndarray, " inputs"]:
        return np.zeros(len(reach.radius), dtype=bool)


@dataclass(frozen=True)
class Planned:
    """Draw no more than it takes to certify `share` of the radius that all n draws are expected to certify.

    The number is fixed from the n0 draws that chose the label, before the draws that count, so the exact bound after
    them needs no correction for looking.  Inputs whose label is not expected to win get the fewest draws, n / 200.

    Raises InputError unless 0 < share <= 1.
    """

    share: float = 0.98
    sequential: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"the share of the radius to keep must lie in (0, 1], got {self.share}")

    def plan(self, expected: Expected, n: int) -> int:
        sizes = np.unique(np.ceil(n * np.geomspace(1 / _PLANS, 1, _PLANS)).astype(np.int64))
        radius = expected(np.maximum(sizes, 2))
        return int(sizes[np.argmax(radius >= self.share * radius[-1])]) if radius[-1] > 0 else int(sizes[0])

    def done(self, reach: Reach, noise: Noise) -> Bool[np.ndarray, " inputs"]:
        return np.zeros(len(reach.radius), dtype=bool)


@dataclass(frozen=True)
class RadiusTarget:
    """Stop as soon as the radius reaches `radius`, or is not going to.

    Raises InputError unless `radius` is at least 0.
    """

    radius: float
    sequential: bool = True

    def __post_init__(self) -> None:
        if not self.radius >= 0:
            raise InputError(f"the radius to decide must be at least 0, got {self.radius}")

    def plan(self, expected: Expected, n: int) -> int:
        return n

    def done(self, reach: Reach, noise: Noise) -> Bool[np.ndarray, " inputs"]:
        # A radius of 0 is asked of labels that win: those with a radius above 0.
        reached = reach.radius >= self.radius if self.radius > 0 else reach.radius > 0
        return reached | (reach.highest < self.radius) | (reach.highest <= 0)


@dataclass(frozen=True)
class Precision:
    """Stop when all the draws still allowed would add at most `width` sigma to the radius, or the label cannot win.

    Raises InputError unless `width` is positive.
    """

    width: float
    sequential: bool = True

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise InputError(f"the wanted width must be positive, got {self.width}")

    def plan(self, expected: Expected, n: int) -> int:
        return n

    def done(self, reach: Reach, noise: Noise) -> Bool[np.ndarray, " inputs"]:
        with np.errstate(invalid="ignore"):  # both ends infinite: not done
            near = reach.highest - reach.radius <= self.width * noise.sigma
        return ((reach.radius > 0) & near) | (reach.highest <= 0)
