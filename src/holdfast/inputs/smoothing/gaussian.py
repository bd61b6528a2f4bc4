"""Randomized smoothing with Gaussian noise (Cohen, Rosenfeld & Kolter, 2019).

The smoothed classifier answers what the base classifier f answers most often under noise,

    g(x) = argmax_c P(f(x + e) = c),    e ~ N(0, sigma^2 I),

and if p_lower <= P(f(x + e) = A) then g is A on the whole L2 ball of radius

    R = sigma Phi^-1(p_lower)      (p_lower > 1/2; otherwise the certificate abstains).

The label is chosen from n0 draws and the bound comes from fresh ones, so it holds with probability 1 - alpha for each
input. The guarantee is about g, not about f, and about L2 changes only.  Nothing is assumed about f: it may be any
callable batch -> scores.  Stopping rules (`stopping`) save draws where the answer is clear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson
from holdfast.core.seeds import torch_generator
from holdfast.core.sequences import anytime_mean
from holdfast.inputs.smoothing.stopping import FixedN, Stopping, radius_of

#: First look of a sequential rule, in draws; each further look doubles what was drawn, up to a batch at a time.
FIRST_LOOK = 16


@dataclass(frozen=True)
class SmoothedCertificate:
    """Per input: label, certified L2 radius (0 where abstained), the bound it came from, and its cost in draws."""

    label: Int[Tensor, " batch"]
    radius: Float[Tensor, " batch"]
    p_lower: Float[Tensor, " batch"]
    n_used: Int[Tensor, " batch"]
    abstained: Bool[Tensor, " batch"]


@dataclass(frozen=True)
class Smoothed:
    """The smoothed version of `base`.

    Parameters
    ----------
    base : batch -> scores of shape (batch, classes); only the largest counts.
    sigma : standard deviation of the noise, in input units.
    classes : number of classes.
    batch : noisy copies a call of `base`.
    """

    base: Callable[[Tensor], Tensor]
    sigma: float
    classes: int
    batch: int = 1000

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and np.isfinite(self.sigma)):
            raise InputError(f"sigma must be positive and finite, got {self.sigma}")
        if self.classes < 2 or self.batch < 1:
            raise InputError(
                f"smoothing needs at least 2 classes and a batch of 1, got {self.classes} and {self.batch}"
            )

    def certify(
        self,
        x: Float[Tensor, "batch *shape"],
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 1e-3,
        stop: Stopping | None = None,
        generator: torch.Generator | None = None,
    ) -> SmoothedCertificate:
        """A certificate for every input, each of which is wrong with probability at most `alpha`.

        `n0` draws choose the label, at most `n` fresh ones bound its probability, `stop` (`FixedN()` when None) says
        when they suffice.  Without a generator the stream of seed 0 is used.

        Raises InputError for counts below one, alpha outside (0, 1), inputs that are not finite, or a base whose scores
        do not have shape (batch, classes).
        """
        if n0 < 1 or n < 1 or not 0 < alpha < 1:
            raise InputError(f"certify needs n0 >= 1, n >= 1 and 0 < alpha < 1, got {n0}, {n} and {alpha}")
        if not bool(torch.isfinite(x).all()):
            raise InputError("the inputs to certify must be finite, got NaN or infinity")
        rule: Stopping = FixedN() if stop is None else stop
        stream = torch_generator(0, "smoothing") if generator is None else generator
        found = [self._certify_one(one, n0, n, alpha, rule, stream) for one in x]
        label, p_lower, used = (list(column) for column in zip(*found))
        bound = torch.tensor(p_lower, dtype=torch.float64)
        radius = torch.tensor([max(0.0, radius_of(p, self.sigma)) for p in p_lower], dtype=torch.float64)
        return SmoothedCertificate(torch.tensor(label), radius, bound, torch.tensor(used), bound <= 0.5)

    def _certify_one(
        self, x: Tensor, n0: int, n: int, alpha: float, rule: Stopping, generator: torch.Generator
    ) -> tuple[int, float, int]:
        label = int(self.votes(x, n0, generator).argmax())
        successes, draws, p_lower = 0, 0, 0.0
        while True:
            step = max(draws, FIRST_LOOK) if rule.sequential else self.batch
            step = min(step, self.batch, n - draws)
            successes += int(self.votes(x, step, generator)[label])
            draws += step
            look = rule.look(successes, draws, n, alpha, self.sigma)
            p_lower = max(p_lower, look.p_lower)
            if look.stop or draws == n:
                return label, p_lower, n0 + draws

    def predict(
        self,
        x: Float[Tensor, "batch *shape"],
        n: int = 1000,
        alpha: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, " batch"]:
        """The smoothed label of every input, wrong with probability at most `alpha`; -1 where two are too close."""
        stream = torch_generator(0, "smoothing") if generator is None else generator
        labels = []
        for one in x:
            counts, order = self.votes(one, n, stream).sort(descending=True)
            first, second = int(counts[0]), int(counts[1])
            clear = binomtest(first, first + second, 0.5).pvalue <= alpha
            labels.append(int(order[0]) if clear else -1)
        return torch.tensor(labels)

    @torch.no_grad()
    def votes(self, x: Float[Tensor, " *shape"], n: int, generator: torch.Generator) -> Int[Tensor, " classes"]:
        """How often `base` answers each class on `n` noisy copies of one input."""
        counts = torch.zeros(self.classes, dtype=torch.long)
        for first in range(0, n, self.batch):
            size = min(self.batch, n - first)
            noise = torch.randn((size, *x.shape), generator=generator, device=generator.device, dtype=x.dtype)
            scores = self.base(x + self.sigma * noise.to(x.device))
            if scores.shape != (size, self.classes):
                raise InputError(
                    f"the base model must give scores of shape ({size}, {self.classes}), got {tuple(scores.shape)}"
                )
            counts += torch.bincount(scores.argmax(1).cpu(), minlength=self.classes)
        return counts


def certified_accuracy(
    radius: Float[np.ndarray, " examples"],
    correct: Bool[np.ndarray, " examples"],
    radii: Sequence[float],
    level: float = 0.95,
) -> list[Estimate]:
    """Share of examples that are right and certified at each of `radii`, with exact intervals over examples."""
    n = len(radius)
    return [clopper_pearson(int((correct & (radius >= r) & (radius > 0)).sum()), n, level) for r in radii]


def average_certified_radius(
    radius: Float[np.ndarray, " examples"],
    correct: Bool[np.ndarray, " examples"],
    largest: float,
    level: float = 0.95,
) -> Estimate:
    """Mean certified radius, wrong or abstained examples counting 0; no certificate may exceed `largest`."""
    return anytime_mean(np.where(correct, radius, 0.0), level=level, bounds=(0.0, largest))
