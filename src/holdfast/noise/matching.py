"""Losses that learn a score from samples, and the one training loop they share.

A loss is an `nn.Module` called as `loss(model, x, progress=..., generator=...) -> (batch,)`; `progress` runs from 0
to 1 over training, for schedules.

AmortizedResidual (AR-DAE; Lim et al., 2020): with u ~ N(0, I)

    E || u + σ s(x + σ u) ||²

is least for the score of the data smoothed by σ; it stays well scaled as σ → 0, where denoising losses blow up. σ
falls linearly from `sigma_first` to `sigma_last` during training.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.progress import track

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
        sigma = self.sigma_first + progress * (self.sigma_last - self.sigma_first)
        u = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return (u + sigma * model(x + sigma * u)).square().flatten(1).mean(1)


def fit(
    model: nn.Module,
    loss: nn.Module,
    data: Float[Tensor, "n *shape"],
    *,
    steps: int,
    batch: int = 16,
    lr: float = 2e-4,
    ema: float = 0.999,
    generator: torch.Generator | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> Float[np.ndarray, " steps"]:
    """Train `model` in place by Adam and leave it with the exponential moving average of its weights, in eval mode.

    Batches are drawn with replacement.  The average's decay warms up as (1 + t) / (10 + t) so that short runs are not
    dominated by the initial weights.  Returns the loss of every step.  Raises InputError when the loss becomes NaN.
    """
    if steps < 1 or batch < 1 or len(data) == 0:
        raise InputError(f"training needs data, steps and a batch of at least 1, got {len(data)}, {steps} and {batch}")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    losses = np.empty(steps)
    model.train()
    for step in track(range(steps), "training", steps):
        index = torch.randint(len(data), (batch,), generator=generator, device=generator.device if generator else "cpu")
        value = loss(model, data[index.to(data.device)], progress=step / max(steps - 1, 1), generator=generator).mean()
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
