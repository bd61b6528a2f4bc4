"""Smoothing by means: probabilities averaged under Gaussian noise (Salman et al., 2019; Levine et al., 2020).

    h(x)_i = E softmax(T f(x + e))_i,    e ~ N(0, s^2 I)

Phi^-1(h_i) is 1/s-Lipschitz in L2, so h can be certified, and attacked: unlike votes it has gradients.  h itself cannot
be computed, only estimated; a forward pass answers for the estimate, `interval` bounds the truth.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.intervals import empirical_bernstein_width
from holdfast.inputs.smoothing.noise import noise_named
from holdfast.inputs.smoothing.sampling import Sampler, require_inputs, streams_of

#: Copies whose noise is made at a time.
_BLOCK = 16


class SmoothedProbabilities(nn.Module):
    """log of the mean of softmax(scale * base) over `copies` noisy copies of each input, (batch, classes).

    The noise is drawn from `seed` anew at every pass and is the same for every input and every pass, so the module is
    a function of its input, with gradients.

    Parameters
    ----------
    base : maps inputs to logits (batch, classes).
    sigma : standard deviation of the noise, in input units.
    copies : noisy copies an input in a forward pass.
    scale : factor on the logits inside the mean.
    batch : noisy copies a call of `base`.

    Raises InputError for sigma or scale that are not positive and finite, or fewer than one copy.
    """

    def __init__(
        self,
        base: nn.Module,
        sigma: float,
        copies: int = 1000,
        scale: float = 1.0,
        *,
        seed: int = 0,
        batch: int = 4096,
    ) -> None:
        super().__init__()
        self.noise = noise_named("gaussian", sigma)
        if not 0 < scale < float("inf") or copies < 1 or batch < 1:
            raise InputError(
                f"a positive scale, at least one copy and a batch of one are wanted, got {scale}, {copies}, {batch}"
            )
        self.base, self.copies, self.scale, self.seed, self.batch = base, copies, float(scale), seed, batch

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise."""
        return self.noise.sigma

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        """log of the estimated mean."""
        generator = torch.Generator(x.device).manual_seed(self.seed)
        total: Tensor | None = None
        together = max(1, self.batch // max(1, len(x) * _BLOCK)) * _BLOCK
        for first in range(0, self.copies, together):
            noise = self._noise(x, min(together, self.copies - first), generator)
            probabilities = self._probabilities((x + noise).flatten(0, 1))
            part = probabilities.unflatten(0, (len(noise), len(x))).sum(0)
            total = part if total is None else total + part
        assert total is not None
        return (total / self.copies).clamp(min=torch.finfo(x.dtype).tiny).log()

    @torch.no_grad()
    def interval(
        self,
        x: Float[Tensor, "batch *shape"],
        n: int = 10_000,
        alpha: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Bounds p_lower <= h(x) <= p_upper, float64, that hold for all classes of an input with probability 1 - alpha.

        Empirical Bernstein bounds from `n` fresh draws, alpha shared among the 2 x classes sides.  Every input has its
        own stream, seeded from `generator`.  Raises InputError for n below two, alpha outside (0, 1), inputs that are
        not finite, or a base in training mode.
        """
        require_inputs(x, 2, n, alpha, self.base, least=2)
        sampler = Sampler(self._probabilities, self.noise, self.batch)
        sums: np.ndarray | None = None
        for copies, scores in sampler.draw(x, [n] * len(x), streams_of(x, generator)):
            values = scores.double().cpu()
            if sums is None:
                sums = np.zeros((2, len(x), values.shape[1]))
            for part in copies:
                mine = values[part.place]
                sums[:, part.row] += torch.stack([mine.sum(0), mine.square().sum(0)]).numpy()
        if sums is None:
            raise InputError("there is no input to bound")
        mean = sums[0] / n
        variance = np.maximum(sums[1] - n * mean**2, 0.0) / (n - 1)
        share = alpha / (2 * mean.shape[1])
        half = empirical_bernstein_width(variance, n, share)
        lower, upper = np.clip(mean - half, 0.0, 1.0), np.clip(mean + half, 0.0, 1.0)
        return torch.from_numpy(lower).to(x.device), torch.from_numpy(upper).to(x.device)

    def _noise(self, x: Tensor, copies: int, generator: torch.Generator) -> Tensor:
        """Noise (copies, 1, *shape), made in blocks of one size: how many inputs share a call must not change it."""
        noise = x.new_empty(-(-copies // _BLOCK) * _BLOCK, 1, *x.shape[1:])
        for block in noise.split(_BLOCK):
            self.noise.fill(block, generator)
        return noise[:copies]

    def _probabilities(self, x: Tensor) -> Tensor:
        return torch.softmax(self.scale * cast(Tensor, self.base(x)), 1)
