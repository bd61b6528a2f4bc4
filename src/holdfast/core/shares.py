"""Shares per class or group, with intervals that hold for all groups and at every look at once.

Picking the worst of many groups flatters no one only if the intervals allow for the choice: with G groups each is made
at level 1 - (1 - level)/G, so that all hold together.  Then the true worst share lies in [min low, min high], and the
true gap between best and worst in [max low - min high (at least 0), max high - min low].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped

from holdfast.core.estimate import Estimate
from holdfast.core.sequences import anytime_mean


@dataclass(frozen=True)
class Shares:
    """Share of True in every group that occurs: `groups` (their values), `estimates`, `counts`, in one order."""

    groups: tuple[str | int, ...]
    estimates: tuple[Estimate, ...]
    counts: tuple[int, ...]
    level: float

    @property
    def worst(self) -> int:
        """Position of the group with the lowest observed share."""
        return min(range(len(self.groups)), key=lambda k: self.estimates[k].value)

    @property
    def best(self) -> int:
        return max(range(len(self.groups)), key=lambda k: self.estimates[k].value)

    @property
    def worst_share(self) -> Estimate:
        """The lowest share of any group."""
        value = self.estimates[self.worst].value
        low, high = (min(getattr(estimate, end) for estimate in self.estimates) for end in ("low", "high"))
        return Estimate(value, low, max(high, value), self.level, sum(self.counts), "simultaneous sequences")

    @property
    def gap(self) -> Estimate:
        """Highest share minus lowest."""
        lows = [estimate.low for estimate in self.estimates]
        highs = [estimate.high for estimate in self.estimates]
        value = self.estimates[self.best].value - self.estimates[self.worst].value
        low = max(0.0, max(lows) - min(highs))
        return Estimate(
            value, min(low, value), max(highs) - min(lows), self.level, sum(self.counts), "simultaneous sequences"
        )


def shares(
    held: Bool[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"] | Shaped[np.ndarray, " n"],
    level: float,
    of: int | None = None,
) -> Shares:
    """Share of True per value of `groups`, n >= 1 examples in random order.

    `of`: how many groups there are in all, when that is known beforehand (classes); intervals must allow for as many as
    will ever be seen.
    """
    found, member = np.unique(groups, return_inverse=True)
    each = 1 - (1 - level) / max(len(found), of or 1)
    return Shares(
        tuple(value.item() if hasattr(value, "item") else value for value in found),
        tuple(anytime_mean(held[member == k], level=each) for k in range(len(found))),
        tuple(int(count) for count in np.bincount(member)),
        level,
    )
