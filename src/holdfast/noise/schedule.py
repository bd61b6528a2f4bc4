"""How data and Gaussian noise are mixed as a function of time.

One convention for every path:  x_t = s(t) (x_0 + σ(t) ε),  ε ~ N(0, I),  with t in (0, 1] one number an example.

    VP      dx = -½ β x dt + √β dw,   β(t) = β_min + t (β_max - β_min)
            s = exp(-½ ∫_0^t β),   σ² = exp(∫_0^t β) - 1,   so that  s² (1 + σ²) = 1

The VP path keeps the variance of data of unit variance; `deviation` is s σ = sqrt(1 - s²), what some papers call σ_t.
(Ho, Jain and Abbeel, 2020; Song et al., 2021; the convention is that of Karras et al., 2022.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.errors import InputError

Times = Float[Tensor, " batch"]


@runtime_checkable
class Schedule(Protocol):
    """A path from data at t = 0 to noise at t = 1."""

    def scale(self, t: Times) -> Times: ...

    def sigma(self, t: Times) -> Times: ...

    def inverse_sigma(self, sigma: Times) -> Times: ...


@dataclass(frozen=True)
class VP:
    """The variance-preserving path of the module; a linear β from `beta_min` to `beta_max`."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise InputError(f"a VP path needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    def scale(self, t: Times) -> Times:
        """s(t), from 1 down."""
        return torch.exp(-self._integral(t) / 2)

    def sigma(self, t: Times) -> Times:
        """σ(t), the standard deviation of the noise before scaling."""
        return torch.expm1(self._integral(t)).sqrt()

    def deviation(self, t: Times) -> Times:
        """s(t) σ(t), the standard deviation of the noise in x_t."""
        return (-torch.expm1(-self._integral(t))).sqrt()

    def inverse_sigma(self, sigma: Times) -> Times:
        """The time at which σ(t) is `sigma`."""
        integral = torch.log1p(sigma.square())
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return 2 * integral / (self.beta_min + root)  # no difference of near-equal numbers, unlike the usual root

    def drift(self, x: Float[Tensor, "batch *shape"], t: Times) -> Float[Tensor, "batch *shape"]:
        """-½ β(t) x."""
        return -per_example(self._beta(t), x) * x / 2

    def diffusion(self, t: Times) -> Times:
        """sqrt β(t)."""
        return self._beta(t).sqrt()

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)


def perturb(
    schedule: Schedule, x: Float[Tensor, "batch *shape"], t: Times, *, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
    """x_t and the ε in it, drawn afresh for every example.  Raises InputError when times are no numbers in (0, 1]."""
    if not bool(((t > 0) & (t <= 1)).all()):
        raise InputError(f"times must lie in (0, 1], got {float(t.min())} to {float(t.max())}")
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    scale, sigma = (per_example(part.to(x), x) for part in (schedule.scale(t), schedule.sigma(t)))
    return scale * (x + sigma * noise), noise


def per_example(values: Float[Tensor, " batch"], like: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch ..."]:
    """`values` with trailing axes of length one, so that they multiply examples of the shape of `like`."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
