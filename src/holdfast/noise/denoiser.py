"""Denoisers: the one interface of everything that knows a noisy distribution.

    denoiser(x, sigma, *, condition=None) -> E[x_0 | x],   x = x_0 + σ ε,  σ one number an example

By Tweedie's formula the score of the noisy data is (D(x; σ) - x) / σ² and the noise is (x - D(x; σ)) / σ.  Networks
enter through a preconditioning, D = c_skip x + c_out F(c_in x, c_noise), which keeps what F sees and has to
say of unit size at every noise level:

    VPPrecond    c_skip = 1                   c_out = -σ                    c_in = 1 / √(1 + σ²)    c_noise = 999 t(σ)
    EDMPrecond   c_skip = σ_d² / (σ² + σ_d²)  c_out = σ σ_d / √(σ² + σ_d²)  c_in = 1 / √(σ² + σ_d²) c_noise = ¼ ln σ

F is called as net(x, noise, condition=...); VPPrecond's F predicts ε.  (Karras et al., 2022, table 1.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.noise.schedule import VP, Schedule, per_example


@runtime_checkable
class Denoiser(Protocol):
    """See the module; any callable of this signature will do."""

    def __call__(
        self, x: Float[Tensor, "batch *shape"], sigma: Float[Tensor, " batch"], *, condition: Tensor | None = None
    ) -> Float[Tensor, "batch *shape"]: ...


class VPPrecond(nn.Module):
    """A denoiser from a network that predicts the noise of a VP path (the DDPM parametrisation)."""

    def __init__(self, net: nn.Module, schedule: VP | None = None):
        super().__init__()
        self.net = net
        self.schedule = VP() if schedule is None else schedule

    def forward(
        self, x: Float[Tensor, "batch *shape"], sigma: Float[Tensor, " batch"], *, condition: Tensor | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """Estimates of x0 from x = x0 + sigma noise, one level an example."""
        shrink = per_example((1 + sigma.square()).rsqrt(), x)
        noise = self.net(shrink * x, 999 * self.schedule.inverse_sigma(sigma), condition=condition)
        return x - per_example(sigma, x) * noise


class EDMPrecond(nn.Module):
    """A denoiser from a network that predicts a mixture of data and noise; `sigma_data` is the data's deviation."""

    def __init__(self, net: nn.Module, sigma_data: float = 0.5):
        super().__init__()
        if not sigma_data > 0:
            raise InputError(f"sigma_data is a standard deviation and must be positive, got {sigma_data}")
        self.net = net
        self.sigma_data = sigma_data

    def forward(
        self, x: Float[Tensor, "batch *shape"], sigma: Float[Tensor, " batch"], *, condition: Tensor | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """Estimates of x0 from x = x0 + sigma noise, one level an example."""
        total = per_example(sigma.square() + self.sigma_data**2, x)
        mixture = self.net(x * total.rsqrt(), sigma.log() / 4, condition=condition)
        return (self.sigma_data**2 / total) * x + per_example(sigma, x) * self.sigma_data * total.rsqrt() * mixture


class EpsilonDenoiser(nn.Module):
    """A denoiser from a pretrained network that predicts ε at discrete steps, as those of diffusers do.

    `net(x_k, k)` gets x_k = √ᾱ_k x_0 + √(1 - ᾱ_k) ε and the step k; between steps k is interpolated linearly in log σ
    and becomes fractional.  A condition is its third argument; a result with an attribute `sample` is unpacked.

    Raises InputError unless `alphas_cumprod` falls strictly within (0, 1), or on a prediction of another shape.
    """

    def __init__(self, net: nn.Module, alphas_cumprod: Float[Tensor, " steps"]):
        super().__init__()
        alphas = alphas_cumprod.double()
        if not bool(((alphas > 0) & (alphas < 1)).all() and (alphas.diff() < 0).all()):
            raise InputError("alphas_cumprod must fall strictly from step to step and lie within (0, 1)")
        self.net = net
        self.register_buffer("log_sigmas", (1 / alphas - 1).log() / 2)

    def forward(
        self, x: Float[Tensor, "batch *shape"], sigma: Float[Tensor, " batch"], *, condition: Tensor | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """Estimates of x0 from x = x0 + sigma noise, one level an example."""
        shrink = per_example((1 + sigma.square()).rsqrt(), x)
        step = self._step(sigma.double().log()).to(x)
        predicted = self.net(shrink * x, step) if condition is None else self.net(shrink * x, step, condition)
        noise = getattr(predicted, "sample", predicted)
        if noise.shape != x.shape:
            raise InputError(
                f"the network gave {tuple(noise.shape)} for inputs {tuple(x.shape)}; a model that also predicts a "
                "variance must be wrapped so that it returns the noise alone"
            )
        return x - per_example(sigma, x) * noise

    def _step(self, log_sigma: Tensor) -> Tensor:
        levels: Tensor = self.log_sigmas  # type: ignore[assignment]  # a buffer
        upper = torch.searchsorted(levels, log_sigma).clamp(1, len(levels) - 1)
        low, high = levels[upper - 1], levels[upper]
        return (upper - 1 + (log_sigma - low) / (high - low)).clamp(0, len(levels) - 1)


@dataclass(frozen=True)
class PathScore:
    """∇ log p_t of x_t along a path, as a function (x_t, t): (D(x_t / s; σ) - x_t / s) / (s σ²)."""

    denoiser: Denoiser
    schedule: Schedule

    def __call__(
        self, x: Float[Tensor, "batch *shape"], t: Float[Tensor, " batch"], *, condition: Tensor | None = None
    ) -> Float[Tensor, "batch *shape"]:
        scale, sigma = self.schedule.scale(t).to(x), self.schedule.sigma(t).to(x)
        clean = x / per_example(scale, x)
        return (self.denoiser(clean, sigma, condition=condition) - clean) / per_example(scale * sigma.square(), x)
