"""Tweedie's formula for exponential families, and denoising without clean images (Kim and Ye, 2021).

For noise p(y | η) = b(y) exp(η T(y) - A(η)) the posterior mean of the natural parameter needs only the score of the
*noisy* data, l'(y) = d/dy log p(y):

    E[η | y] = (l'(y) - (log b)'(y)) / T'(y)

    Gaussian(σ)      y = x + σ n              x̂ = y + σ² l'(y)                          = E[x | y]
    Poisson(ζ)       y = ζ Pois(x / ζ)        x̂ = ζ exp(ψ(c + 1) + l'(c)),  c = y / ζ   = exp E[log x | y]
    Gamma(k)         y ~ Gamma(k, mean x)     x̂ = k y / (k - 1 - y l'(y))               = 1 / E[1 / x | y]

The Poisson score is with respect to the count c, not to y; c + ½ stands for exp ψ(c + 1) unless `digamma` is asked
(they differ by less than 1/(24 (c + ½)²), relatively).  Noisy data must not be clipped before the score is learnt:
clipping changes the noise family and the formula no longer applies.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.noise.matching import AmortizedResidual, fit

ScoreFunction = Callable[[Tensor], Tensor]


@runtime_checkable
class NoiseFamily(Protocol):
    """A noise law with its Tweedie estimate; `sigmas` are AR-DAE levels (first, last) in units of the statistic."""

    @property
    def sigmas(self) -> tuple[float, float]: ...

    def sample(
        self, x: Float[Tensor, "*shape"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*shape"]: ...

    def check(self, y: Float[Tensor, "*shape"]) -> None: ...

    def statistic(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]: ...

    def estimate(self, y: Float[Tensor, "*shape"], score: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]: ...


@dataclass(frozen=True)
class Gaussian:
    """Additive noise of standard deviation `sigma` in the units of the data."""

    sigma: float
    sigmas: tuple[float, float] = (0.1, 0.02)

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise InputError(f"Gaussian noise needs a positive sigma, got {self.sigma}")

    def sample(self, x: Float[Tensor, "*shape"], generator: torch.Generator | None = None) -> Float[Tensor, "*shape"]:
        """x + sigma n."""
        return x + self.sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    def check(self, y: Float[Tensor, "*shape"]) -> None:
        """Raise InputError when `y` cannot come from this noise."""
        _finite(y)

    def statistic(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What the score is taken with respect to: y itself."""
        return y

    def estimate(self, y: Float[Tensor, "*shape"], score: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """y + sigma² score."""
        return y + self.sigma**2 * score


@dataclass(frozen=True)
class Poisson:
    """Shot noise: y / `scale` is a Poisson count of mean x / `scale`."""

    scale: float
    digamma: bool = False
    sigmas: tuple[float, float] = (1.0, 0.5)

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise InputError(f"Poisson noise needs a positive scale, got {self.scale}")

    def sample(self, x: Float[Tensor, "*shape"], generator: torch.Generator | None = None) -> Float[Tensor, "*shape"]:
        """scale · Poisson(x / scale), for x >= 0."""
        _not_negative(x, "clean intensities of Poisson noise")
        return self.scale * torch.poisson(x / self.scale, generator=generator)

    def check(self, y: Float[Tensor, "*shape"]) -> None:
        """Raise InputError on negative data; warn when y is not made of whole counts, so `scale` is likely wrong."""
        _finite(y)
        _not_negative(y, "data under Poisson noise")
        counts = y / self.scale
        broken = ((counts - counts.round()).abs() > 0.05).double().mean().item()
        if broken > 0.01:
            warnings.warn(
                f"{broken:.0%} of the values are not whole multiples of scale {self.scale:g}; Poisson noise of this "
                "scale cannot have made them (another scale, or clipped or rescaled data)",
                stacklevel=3,
            )

    def statistic(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What the score is taken with respect to: the count y / scale."""
        return y / self.scale

    def estimate(self, y: Float[Tensor, "*shape"], score: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """scale · (c + ½) exp(score), or with exp ψ(c + 1) for c + ½; score with respect to c = y / scale."""
        counts = y / self.scale
        base = torch.digamma(counts + 1).exp() if self.digamma else counts + 0.5
        return self.scale * base * score.exp()


@dataclass(frozen=True)
class Gamma:
    """Multiplicative noise: y is Gamma distributed with this `shape` and mean x (speckle of `shape` looks).

    The estimate is at most `largest_ratio` times y: where a learnt score drives the denominator to zero or below, it is
    clamped there.  `clamped` tells how often that happened.
    """

    shape: float
    largest_ratio: float = 10.0
    sigmas: tuple[float, float] = (0.1, 0.02)

    def __post_init__(self) -> None:
        if not self.shape > 1:
            raise InputError(f"Gamma noise needs a shape above 1 for its formula, got {self.shape}")
        if not self.largest_ratio > 1:
            raise InputError(f"largest_ratio must exceed 1, got {self.largest_ratio}")

    def sample(self, x: Float[Tensor, "*shape"], generator: torch.Generator | None = None) -> Float[Tensor, "*shape"]:
        """x / shape times a standard Gamma variable, for x >= 0."""
        _not_negative(x, "clean intensities of Gamma noise")
        # torch.distributions.Gamma draws by the same function but takes no generator.
        return x * torch._standard_gamma(torch.full_like(x, self.shape), generator=generator) / self.shape

    def check(self, y: Float[Tensor, "*shape"]) -> None:
        """Raise InputError when `y` cannot come from this noise."""
        _finite(y)
        _not_negative(y, "data under Gamma noise")

    def statistic(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What the score is taken with respect to: y itself."""
        return y

    def estimate(self, y: Float[Tensor, "*shape"], score: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """shape · y / (shape - 1 - y score)."""
        return self.shape * y / self._denominator(y, score).clamp_min(self.shape / self.largest_ratio)

    def clamped(self, y: Float[Tensor, "*shape"], score: Float[Tensor, "*shape"]) -> float:
        """Share of the values whose denominator had to be clamped."""
        return (self._denominator(y, score) < self.shape / self.largest_ratio).double().mean().item()

    def _denominator(self, y: Tensor, score: Tensor) -> Tensor:
        return self.shape - 1 - y * score


def tweedie(
    y: Float[Tensor, "*shape"], score: ScoreFunction | Float[Tensor, "*shape"], family: NoiseFamily
) -> Float[Tensor, "*shape"]:
    """Denoise `y` by the formula of `family`; `score` is l' at family.statistic(y), or a function that gives it.

    Raises InputError when y cannot come from the family or the score has another shape.
    """
    family.check(y)
    value = score if isinstance(score, Tensor) else score(family.statistic(y))
    if value.shape != y.shape:
        raise InputError(f"the score has shape {tuple(value.shape)}, the data {tuple(y.shape)}; they must be the same")
    return family.estimate(y, value)


@dataclass(frozen=True)
class LevelCurve:
    """The no-reference criterion of every candidate family, and the candidate that minimises it."""

    families: tuple[NoiseFamily, ...]
    criterion: tuple[float, ...]

    @property
    def best(self) -> NoiseFamily:
        return self.families[min(range(len(self.families)), key=self.criterion.__getitem__)]


class Noise2Score:
    """Learn the score of noisy images alone, then denoise them under any level of the family.

    `net` maps statistics (n, channels, height, width) to scores of the same shape.  `fit` trains it by AR-DAE; the same
    trained net serves every level of one family, since the level enters only in Tweedie's formula.
    """

    def __init__(
        self,
        net: nn.Module,
        family: NoiseFamily | None = None,
        *,
        steps: int = 2000,
        batch: int = 16,
        lr: float = 2e-4,
        sigmas: tuple[float, float] | None = None,
    ):
        self.net = net
        self.family = family
        self.steps = steps
        self.batch = batch
        self.lr = lr
        self.sigmas = sigmas

    def fit(self, noisy: Float[Tensor, "n *shape"], generator: torch.Generator | None = None) -> Noise2Score:
        """Train on noisy data; without a family the data are the statistic (Gaussian noise of unknown level)."""
        family = self.family or Gaussian(1.0)
        family.check(noisy)
        first, last = self.sigmas or family.sigmas
        loss = AmortizedResidual(first, last)
        self.losses_ = fit(
            self.net, loss, family.statistic(noisy), steps=self.steps, batch=self.batch, lr=self.lr, generator=generator
        )
        return self

    @torch.no_grad()
    def score(self, noisy: Float[Tensor, "n *shape"], family: NoiseFamily | None = None) -> Float[Tensor, "n *shape"]:
        """The learnt score at the statistic of `noisy`."""
        statistic = self._family(family).statistic(noisy)
        return torch.cat([self.net(part) for part in statistic.split(256)])

    def transform(
        self, noisy: Float[Tensor, "n *shape"], family: NoiseFamily | None = None
    ) -> Float[Tensor, "n *shape"]:
        """Denoised data under `family` (default: the one it was built with)."""
        family = self._family(family)
        return tweedie(noisy, self.score(noisy, family), family)

    def estimate_level(self, noisy: Float[Tensor, "n *shape"], family_grid: Sequence[NoiseFamily]) -> LevelCurve:
        """Which candidate of one kind made the noise: the one whose result has the least total variation.

        Too small a level leaves noise, too large a one subtracts the noise twice; both make the result rougher.
        """
        if not family_grid:
            raise InputError("the grid of families is empty; give at least one candidate level")
        criterion = []
        statistic = score = None
        for family in family_grid:
            family.check(noisy)
            if statistic is None or score is None or not torch.equal(statistic, family.statistic(noisy)):
                statistic, score = family.statistic(noisy), self.score(noisy, family)
            criterion.append(mean_total_variation(family.estimate(noisy, score)))
        return LevelCurve(tuple(family_grid), tuple(criterion))

    def _family(self, family: NoiseFamily | None) -> NoiseFamily:
        chosen = family or self.family
        if chosen is None:
            raise InputError("the noise level is not known; pass a family, or find it with estimate_level first")
        return chosen


def mean_total_variation(images: Float[Tensor, "... height width"]) -> float:
    """Mean absolute difference between neighbouring pixels, down and across."""
    images = images.double()
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    across = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    return float(down + across)


def _finite(y: Tensor) -> None:
    if not torch.isfinite(y).all():
        raise InputError("the data hold NaN or infinite values; remove or mend them before denoising")


def _not_negative(y: Tensor, what: str) -> None:
    if (y < 0).any():
        raise InputError(f"{what} cannot be negative, got a smallest value of {y.min().item():g}")
