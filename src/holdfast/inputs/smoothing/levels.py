"""Noise levels of a diffusion path (Karras et al., 2022), and the units they are in.

    t_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,    i = 0 .. N-1

Levels are in units in which the data fill [-1, 1]; an encoder sees x / sqrt(t^2 + sigma_data^2) and log t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.errors import InputError


@dataclass(frozen=True)
class LevelSchedule:
    """Noise levels, their number doubling from `first` to `last` over training.  Raises InputError out of range."""

    first: int = 20
    last: int = 80
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 2 <= self.first <= self.last:
            raise InputError(f"a schedule needs 2 <= first <= last levels, got {self.first} and {self.last}")
        if not (0 < self.sigma_min < self.sigma_max < math.inf) or not self.rho > 0:
            raise InputError(
                f"levels need 0 < sigma_min < sigma_max and rho > 0, got {self.sigma_min}, {self.sigma_max}, {self.rho}"
            )

    def count(self, progress: float = 1.0) -> int:
        """N after this share of training: first, 2 first, 4 first ... for equal shares, never above last."""
        stages = math.ceil(math.log2(self.last / self.first)) + 1
        return min(self.first * 2 ** min(stages - 1, int(progress * stages)), self.last)

    def levels(self, progress: float = 1.0) -> Float[Tensor, " levels"]:
        """t_0 = sigma_max down to t_{N-1} = sigma_min, float64."""
        ends = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return torch.linspace(*ends, self.count(progress), dtype=torch.float64) ** self.rho

    def nearest(self, level: float) -> float:
        """The level of the full schedule that is nearest.  Raises InputError outside [sigma_min, sigma_max]."""
        if not self.sigma_min <= level <= self.sigma_max:
            raise InputError(
                f"the level {level:g} lies outside the trained levels, [{self.sigma_min:g}, {self.sigma_max:g}] (in "
                "units in which the data fill [-1, 1]); choose another sigma, or check data_range"
            )
        levels = self.levels()
        return float(levels[(levels - level).abs().argmin()])


@dataclass(frozen=True)
class Units:
    """The interval of the data that becomes [-1, 1], and the encoder's view of a noisy input.

    Raises InputError unless low < high and sigma_data > 0.
    """

    low: float = 0.0
    high: float = 1.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf or not self.sigma_data > 0:
            raise InputError(
                f"data_range must be an interval and sigma_data positive, got [{self.low}, {self.high}] and "
                f"{self.sigma_data}"
            )

    def level(self, sigma: float) -> float:
        """Noise of `sigma` in units of the data, as a level."""
        return 2 * sigma / (self.high - self.low)

    def inward(self, x: Tensor) -> Tensor:
        return (x - self.low) * (2 / (self.high - self.low)) - 1

    def checked(self, x: Tensor) -> Tensor:
        """Clean data in units of the levels.  Raises InputError when they leave the declared range."""
        slack = 1e-4 * (self.high - self.low)
        if not bool(((x >= self.low - slack) & (x <= self.high + slack)).all()):
            raise InputError(
                f"the data lie in [{x.min().item():g}, {x.max().item():g}], outside the declared data_range "
                f"[{self.low:g}, {self.high:g}] (or are NaN); scale them, or declare their range"
            )
        return self.inward(x)

    def encode(self, encoder: nn.Module, x: Tensor, level: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
        """Features of x (in units of the levels) that carries noise of `level`."""
        narrow = level.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return encoder(x / (narrow.square() + self.sigma_data**2).sqrt(), level.log().to(x.dtype)).flatten(1)
