"""A number that knows its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from holdfast.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Estimate:
    """`value` with an interval [`low`, `high`] that covers the truth with probability `level`.

    `n` counts the independent observations behind it; `method` names how the interval was made ("betting",
    "clopper-pearson", "bootstrap", ...).  A number without sampling error has `low == value == high`, method "exact".

    Raises InputError when the interval does not contain the value or a part is NaN.
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    n: int = 0
    method: str = "exact"

    def __post_init__(self) -> None:
        for name in ("value", "low", "high", "level"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "n", int(self.n))
        slack = 1e-9 * max(1.0, abs(self.value) if math.isfinite(self.value) else 1.0)
        if any(math.isnan(part) for part in (self.value, self.low, self.high)):
            raise InputError(f"an Estimate got NaN: value {self.value}, interval [{self.low}, {self.high}]")
        if not (self.low - slack <= self.value <= self.high + slack):
            raise InputError(f"an Estimate's interval [{self.low}, {self.high}] must contain its value {self.value}")
        if not 0.0 < self.level < 1.0:
            raise InputError(f"an Estimate's level must lie strictly between 0 and 1, got {self.level}")

    @classmethod
    def exact(cls, value: float, n: int = 0) -> Estimate:
        """A number without sampling error."""
        return cls(value, value, value, n=n, method="exact")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Estimate:
        return cls(**{name: data[name] for name in ("value", "low", "high", "level", "n", "method")})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def width(self) -> float:
        """Length of the interval."""
        return self.high - self.low

    def scaled(self, factor: float) -> Estimate:
        """The estimate of `factor` times the quantity."""
        ends = sorted((self.low * factor, self.high * factor))
        return Estimate(self.value * factor, ends[0], ends[1], self.level, self.n, self.method)

    def complement(self) -> Estimate:
        """The estimate of one minus the quantity."""
        return Estimate(1 - self.value, 1 - self.high, 1 - self.low, self.level, self.n, self.method)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.4g}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
