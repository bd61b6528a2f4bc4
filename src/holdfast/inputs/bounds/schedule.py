"""Ramps: a quantity of training that moves from one value to another over a range of steps.

    linear   s(u) = u
    smooth   s(u) = c u^4                                    for u <= 1/4,
             c (1/4)^4 + 4 c (1/4)^3 (u - 1/4)               after it,    c such that s(1) = 1

with u the share of the ramp that has passed; the value is first + (last - first) s(u), constant outside the ramp.  The
smooth one starts without a jolt and joins its straight part without a kink (Xu et al., 2020, section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from holdfast.core.errors import InputError

#: Where the smooth ramp turns straight, and the power before.
_TURN, _POWER = 0.25, 4


@dataclass(frozen=True)
class Ramp:
    """From `first`, held until step `begin`, to `last`, held from step `end` on.

    Raises InputError for ends that are not finite or a ramp that does not move forward.
    """

    first: float | int
    last: float | int
    begin: int
    end: int
    shape: Literal["linear", "smooth"] = "linear"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.first) and math.isfinite(self.last)):
            raise InputError(f"a ramp needs finite ends, got {self.first} and {self.last}")
        if not 0 <= self.begin < self.end:
            raise InputError(f"a ramp must end after it begins, got steps {self.begin} to {self.end}")
        if self.shape not in ("linear", "smooth"):
            raise InputError(f"a ramp is 'linear' or 'smooth', got {self.shape!r}")

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        share = min(1.0, max(0.0, (step - self.begin) / (self.end - self.begin)))
        if share == 1:
            return float(self.last)
        return float(self.first + (self.last - self.first) * self._progress(share))

    def _progress(self, share: float) -> float:
        if self.shape == "linear":
            return share
        slope = _POWER * _TURN ** (_POWER - 1)
        whole = _TURN**_POWER + slope * (1 - _TURN)
        return (share**_POWER if share <= _TURN else _TURN**_POWER + slope * (share - _TURN)) / whole


#: A constant, or one that changes with the step.
Scheduled = float | int | Ramp


def value_at(scheduled: Scheduled, step: int) -> float:
    """What is asked for at `step`."""
    return scheduled(step) if isinstance(scheduled, Ramp) else float(scheduled)


def extremes(scheduled: Scheduled) -> tuple[float, float]:
    """Smallest and largest value it ever takes."""
    ends = (scheduled.first, scheduled.last) if isinstance(scheduled, Ramp) else (scheduled, scheduled)
    return float(min(ends)), float(max(ends))
