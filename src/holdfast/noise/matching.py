"""Losses that learn a score from samples, and the one training loop they share.

A loss is an `nn.Module` called as `loss(model, x, progress=..., generator=...) -> (batch,)`; `progress` runs from 0
to 1 over training, for schedules.

AmortizedResidual (AR-DAE; Lim et al., 2020): with u ~ N(0, I)

    E || u + σ s(x + σ u) ||²

is least for the score of the data smoothed by σ; it stays well scaled as σ → 0, where denoising losses blow up. σ
falls linearly from `sigma_first` to `sigma_last` during training.

DenoisingScoreMatching (Vincent, 2011; Ho, Jain and Abbeel, 2020; Karras et al., 2022), for a denoiser D and σ = σ(t):

    w(σ) E || D(x + σ ε; σ) - x ||²,   "epsilon": w = 1 / σ²,   "edm": w = (σ² + σ_d²) / (σ σ_d)²

"epsilon" is the squared error of the predicted noise; "edm" has size one at every σ for an EDM-preconditioned network.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.progress import track
from holdfast.noise.schedule import Schedule, per_example

#: Below this σ, float32 loses the difference between x and x + σ u for x of order one.
SMALLEST_SIGMA = 1e-5


class AmortizedResidual(nn.Module):
    """AR-DAE loss per example (mean over coordinates), for a model s(x) that returns a score of the shape of x."""

    def __init__(self, sigma_first: float, sigma_last: float):
        super().__init__()
        if not sigma_first >= sigma_last >= SMALLEST_SIGMA:
            raise InputError(
                f"sigma must fall from sigma_first to sigma_last >= {SMALLEST_SIGMA:g} (float32 sees no smaller step), "
                f"got {sigma_first} and {sigma_last}"
            )
        self.sigma_first = sigma_first
        self.sigma_last = sigma_last

    def forward(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *shape"],
        *,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """Losses of the examples; `progress` from 0 to 1 moves the level from the first to the last."""
        sigma = self.sigma_first + progress * (self.sigma_last - self.sigma_first)
        u = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return (u + sigma * model(x + sigma * u)).square().flatten(1).mean(1)


class DenoisingScoreMatching(nn.Module):
    """Denoising loss per example (mean over coordinates), for a denoiser `model(x, sigma, condition=...)`.

    Times are uniform on `times`; `sigma_data` is the standard deviation of the data and matters for "edm" only.
    """

    def __init__(
        self,
        schedule: Schedule,
        weighting: str = "epsilon",
        times: tuple[float, float] = (1e-3, 1.0),
        sigma_data: float = 0.5,
    ):
        super().__init__()
        if weighting not in ("epsilon", "edm"):
            raise InputError(f'the weighting must be "epsilon" or "edm", got {weighting!r}')
        if not (0 < times[0] < times[1] <= 1 and sigma_data > 0):
            raise InputError(
                f"times must rise within (0, 1] and sigma_data be positive, got {times} and sigma_data {sigma_data}"
            )
        self.schedule = schedule
        self.weighting = weighting
        self.times = times
        self.sigma_data = sigma_data

    def forward(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *shape"],
        *,
        condition: Tensor | None = None,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """Losses of the examples at times of their own; `progress` is not used."""
        first, last = self.times
        t = first + (last - first) * torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)
        sigma = self.schedule.sigma(t)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        error = (model(x + per_example(sigma, x) * noise, sigma, condition=condition) - x).square().flatten(1).mean(1)
        if self.weighting == "epsilon":
            return error / sigma.square()
        return error * (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()


def fit(
    model: nn.Module,
    loss: nn.Module,
    data: Float[Tensor, "n *shape"],
    *,
    steps: int,
    batch: int = 16,
    lr: float = 2e-4,
    ema: float = 0.999,
    condition: Shaped[Tensor, "_ ..."] | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> Float[np.ndarray, " steps"]:
    """Train `model` in place by Adam and leave it with the exponential moving average of its weights, in eval mode.

    Batches are drawn with replacement; rows of `condition`, if any, go with those of `data`.  The average's decay warms
    up as (1 + t) / (10 + t) so that short runs are not dominated by the initial weights.  Returns the loss of every
    step.  Raises InputError when the loss becomes NaN.
    """
    if steps < 1 or batch < 1 or len(data) == 0:
        raise InputError(f"training needs data, steps and a batch of at least 1, got {len(data)}, {steps} and {batch}")
    if condition is not None and len(condition) != len(data):
        raise InputError(f"every example needs its condition, got {len(condition)} for {len(data)} examples")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    losses = np.empty(steps)
    model.train()
    for step in track(range(steps), "training", steps):
        index = torch.randint(len(data), (batch,), generator=generator, device=generator.device if generator else "cpu")
        index = index.to(data.device)
        with_condition = {} if condition is None else {"condition": condition[index]}
        progress = step / max(steps - 1, 1)
        value = loss(model, data[index], progress=progress, generator=generator, **with_condition).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses[step] = value.item()
        if not np.isfinite(losses[step]):
            raise InputError(f"training diverged at step {step} (loss {losses[step]}); use a smaller lr than {lr:g}")
        decay = min(ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [parameter.detach() for parameter in model.parameters()], 1 - decay)
        if callback is not None:
            callback(step, float(losses[step]))
    with torch.no_grad():
        for parameter, mean in zip(model.parameters(), average, strict=True):
            parameter.copy_(mean)
    model.eval()
    return losses
