"""Noises that a model can be smoothed with, and the radius that each makes of a probability.

If a class has probability p > 1/2 under the noise, the smoothed answer is that class on a whole ball:

    Gaussian    N(0, s^2) in every coordinate             L2   R = s Phi^-1(p)              Cohen et al. (2019)
    Laplace     density exp(-|e| / b) / 2b, b = s/sqrt 2  L1   R = -b log(2 (1 - p))        Teng et al. (2019)
    Uniform     on [-h, h], h = s sqrt 3                  L1   R = 2 h (p - 1/2)            Yang et al. (2020)

All are attained by half-spaces, so none can be improved for votes alone.  `sigma` is the standard deviation of every
coordinate, whatever the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtri
from torch import Tensor

from holdfast.core.errors import InputError

Probability = Float[np.ndarray, " _"]
Name = Literal["gaussian", "laplace", "uniform"]


@runtime_checkable
class Noise(Protocol):
    """What smoothing asks of a noise."""

    @property
    def sigma(self) -> float: ...

    @property
    def norm(self) -> float:
        """Which ball it certifies: 1 or 2."""
        ...

    def fill(self, out: Tensor, generator: torch.Generator) -> None:
        """Overwrite `out` with noise."""
        ...

    def radius(self, p: Probability) -> Probability:
        """Radius of a probability; negative below one half."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """N(0, sigma^2): L2 balls."""

    sigma: float
    norm: float = 2.0

    def fill(self, out: Tensor, generator: torch.Generator) -> None:
        out.normal_(0, self.sigma, generator=generator)

    def radius(self, p: Probability) -> Probability:
        return self.sigma * ndtri(p)


@dataclass(frozen=True)
class Laplace:
    """Double exponential: L1 balls."""

    sigma: float
    norm: float = 1.0

    def fill(self, out: Tensor, generator: torch.Generator) -> None:
        out.exponential_(math.sqrt(2) / self.sigma, generator=generator)
        heads = torch.rand(out.shape, generator=generator, device=out.device) < 0.5
        out.mul_(torch.where(heads, 1.0, -1.0))

    def radius(self, p: Probability) -> Probability:
        # The other side mirrors it: below one half the distance to the ball in which the class could win.
        farther = np.maximum(p, 1 - p)
        with np.errstate(divide="ignore"):
            distance = -self.sigma / math.sqrt(2) * np.log(2 * (1 - farther))
        return np.where(p >= 0.5, distance, -distance)


@dataclass(frozen=True)
class Uniform:
    """The same on an interval: L1 balls, no larger than the interval's half width."""

    sigma: float
    norm: float = 1.0

    def fill(self, out: Tensor, generator: torch.Generator) -> None:
        half = math.sqrt(3) * self.sigma
        out.uniform_(-half, half, generator=generator)

    def radius(self, p: Probability) -> Probability:
        return 2 * math.sqrt(3) * self.sigma * (p - 0.5)


def noise_named(name: str, sigma: float) -> Noise:
    """A noise by name.  Raises InputError on an unknown name, or unless sigma is positive and finite."""
    kinds: dict[str, type[Gaussian] | type[Laplace] | type[Uniform]] = {
        "gaussian": Gaussian,
        "laplace": Laplace,
        "uniform": Uniform,
    }
    if name not in kinds:
        raise InputError(f"no noise is called {name!r}; there are {', '.join(kinds)}")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise InputError(f"sigma must be positive and finite, got {sigma}")
    return kinds[name](float(sigma))
