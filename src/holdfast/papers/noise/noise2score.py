"""noise2score: denoising without clean images, by the score of noisy images and Tweedie's formula.

Full scale: 2 000 noisy Fashion-MNIST images, a five-layer CNN of width 24, 500 steps of batch 16 for every method;
PSNR on 200 other images, all results clipped to [0, 1] before they are compared (the noisy image too, which raises
its PSNR).  Baselines of equal network and budget: a supervised twin that sees clean images, and Noise2Self, which
predicts masked pixels from their neighbourhood (Batson and Royer, 2019).  Smoke: the exact identities, and one
small net on digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.seeds import torch_generator
from holdfast.noise.matching import fit
from holdfast.noise.networks import ConvScore
from holdfast.noise.tweedie import Gamma, Gaussian, Noise2Score, NoiseFamily, Poisson, tweedie
from holdfast.papers.datasets import digits, fashion_mnist
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="noise2score",
    group="noise",
    title="Noise2Score: Tweedie's Approach to Self-Supervised Image Denoising without Clean Images",
    builds=(
        "holdfast.noise.tweedie.tweedie",
        "holdfast.noise.tweedie.Gaussian",
        "holdfast.noise.tweedie.Poisson",
        "holdfast.noise.tweedie.Gamma",
        "holdfast.noise.tweedie.Noise2Score",
        "holdfast.noise.matching.AmortizedResidual",
    ),
    claim=(
        "The score of noisy images, learnt without a clean one, denoises Gaussian, Poisson and Gamma noise through "
        "Tweedie's formula, near a supervised network, and one network serves noise of an unknown level."
    ),
    reference="Kim and Ye, NeurIPS 2021",
)

SEEDS = (0, 1, 2)
LEARNING_RATE = 1e-3
BLIND_LEVELS = (0.15, 0.2, 0.25)
BLIND_GRID = tuple(round(0.08 + 0.01 * step, 2) for step in range(35))


def check(scale: Scale) -> Outcome:
    """Identities against exact posteriors; at full scale also denoising gains, baselines and the blind noise level."""
    criteria = exact_identities()
    if scale is Scale.SMOKE:
        return Outcome((*criteria, _small_gain()), seeds=(0,))
    return _full(criteria)


def exact_identities() -> tuple[Criterion, ...]:
    """The formulas with analytic scores of conjugate pairs against the posterior quantities they estimate."""
    y = torch.linspace(-3, 3, 61, dtype=torch.float64)
    prior_variance, sigma = 1.7, 0.6
    total = prior_variance + sigma**2
    ours = tweedie(y, -(y - 0.4) / total, Gaussian(sigma))
    gaussian = (ours - (0.4 * sigma**2 + y * prior_variance) / total).abs().max()

    y = torch.linspace(0.05, 6, 61, dtype=torch.float64)
    a, b, k = 3.0, 2.0, 10.0  # 1/x ~ Gamma(a, rate b), so p(y) ∝ y^(k-1) (b + k y)^-(a+k)
    ours = tweedie(y, (k - 1) / y - k * (a + k) / (b + k * y), Gamma(k))
    gamma = (ours - (b + k * y) / (a + k)).abs().max()

    counts = torch.arange(0, 40, dtype=torch.float64)
    a, rate, zeta = 2.5, 0.7, 0.1  # x/ζ ~ Gamma(a, rate): p(c) ∝ Γ(c+a) / Γ(c+1) (1+rate)^-c
    score = torch.digamma(counts + a) - torch.digamma(counts + 1) - np.log(1 + rate)
    log_mean = torch.digamma(counts + a) - np.log(1 + rate) + np.log(zeta)
    exact = tweedie(zeta * counts, score, Poisson(zeta, digamma=True))
    poisson = (exact.log() - log_mean).abs().max()
    short = tweedie(zeta * counts, score, Poisson(zeta))
    surplus = exact / short - 1
    within = bool(((surplus >= 0) & (surplus <= 1 / (24 * (counts + 0.5) ** 2) + 1e-12)).all())
    mean_gap = (exact / (zeta * (counts + a) / (1 + rate)) - 1).abs().max()
    return (
        Criterion(
            "Exact scores: the formula equals the posterior quantity it stands for to 1e-8 (Gaussian mean, Gamma "
            "harmonic mean, Poisson mean of the logarithm)",
            bool(max(gaussian, gamma, poisson) <= 1e-8),
            {"Gaussian": gaussian.item(), "Gamma": gamma.item(), "Poisson log": poisson.item()},
        ),
        Criterion(
            "Exact scores: Poisson with c + ½ is short of exp ψ(c+1) by at most 1/(24 (c+½)²), relatively",
            within,
            {"largest shortfall": surplus.max().item(), "largest gap to the posterior mean": mean_gap.item()},
        ),
    )


def _small_gain() -> Criterion:
    x = torch.from_numpy(digits(1200)[0])
    family = Gaussian(0.3)
    noisy = family.sample(x, torch_generator(0, "noise2score", "digits"))
    denoised = _noise2score(noisy[:1000], family, 150, 0).transform(noisy[1000:])
    gain = _psnr(denoised, x[1000:]) - _psnr(noisy[1000:], x[1000:])
    return Criterion(
        "Digits, Gaussian 0.3, 150 steps: PSNR rises by at least 1 dB",
        bool(gain.mean() >= 1.0),
        {"gain in dB": _mean(gain)},
    )


def _full(identities: tuple[Criterion, ...]) -> Outcome:
    clean = torch.from_numpy(fashion_mnist("train", 2000)[0])
    held = torch.from_numpy(fashion_mnist("test", 200)[0])
    gaussian = [_denoise(Gaussian(0.2), clean, held, seed) for seed in SEEDS]
    poisson, gamma = (_denoise(family, clean, held, SEEDS[0]) for family in (Poisson(0.1), Gamma(10.0)))
    first = gaussian[0]
    behind = _mean(_supervised_psnr(first, clean, held) - first.psnr)
    lead = _mean(first.psnr - _noise2self_psnr(first, held))
    blind = _noise2score(_mixed_levels(clean, SEEDS[0]), None, 500, SEEDS[0])
    levels = {level: _blind_level(blind, held, level, SEEDS[0]) for level in BLIND_LEVELS}
    single = [_blind_level(first.model, held, level, SEEDS[0]) for level in BLIND_LEVELS]
    worst = max(abs(found / level - 1) for level, found in levels.items())
    criteria = (
        *identities,
        _gain("Gaussian noise of 0.2", gaussian, 4.0),
        _gain("Poisson noise of scale 0.1", [poisson], 2.5),
        _gain("Gamma noise of shape 10", [gamma], 1.5),
        Criterion("Gaussian noise: within 2 dB of the supervised twin", behind.value <= 2.0, {"dB behind": behind}),
        Criterion("Gaussian noise: at most 0.7 dB below Noise2Self", lead.value >= -0.7, {"dB ahead": lead}),
        Criterion(
            "Gaussian noise: one net trained on levels from 0.1 to 0.3 finds 0.15, 0.2 and 0.25 blindly to within 20 %",
            worst <= 0.2,
            {f"level found at {level}": found for level, found in levels.items()},
        ),
    )
    rows = [
        (name, run.seed, _mean(run.noisy_psnr), _mean(run.psnr), run.clamped)
        for name, runs in (("Gaussian", gaussian), ("Poisson", [poisson]), ("Gamma", [gamma]))
        for run in runs
    ]
    table = Table(
        "PSNR in dB on 200 held-out images", ("noise", "seed", "noisy", "Noise2Score", "share clamped"), tuple(rows)
    )
    return Outcome(
        criteria,
        ours=_mean(np.concatenate([run.psnr for run in gaussian])),
        baseline=_mean(np.concatenate([run.noisy_psnr for run in gaussian])),
        exhibits=(table,),
        seeds=SEEDS,
        notes="A net trained at one level cannot find another: its score carries its own training level, so the same "
        f"search with the net trained at 0.2 answers {', '.join(map(str, single))} for the three levels.  Blind use "
        "needs training on noise of varied level.",
    )


@dataclass(frozen=True)
class _Run:
    seed: int
    train: Tensor
    test: Tensor
    model: Noise2Score
    psnr: np.ndarray
    noisy_psnr: np.ndarray
    clamped: float


def _denoise(family: NoiseFamily, clean: Tensor, held: Tensor, seed: int) -> _Run:
    name = type(family).__name__
    train = family.sample(clean, torch_generator(seed, "noise2score", name, "train"))
    test = family.sample(held, torch_generator(seed, "noise2score", name, "test"))
    model = _noise2score(train, family, 500, seed)
    clamped = family.clamped(test, model.score(test)) if isinstance(family, Gamma) else 0.0
    return _Run(seed, train, test, model, _psnr(model.transform(test), held), _psnr(test, held), clamped)


def _gain(noise: str, runs: list[_Run], wanted: float) -> Criterion:
    gains = {f"gain in dB, seed {run.seed}": _mean(run.psnr - run.noisy_psnr) for run in runs}
    passed = min(gain.value for gain in gains.values()) >= wanted
    return Criterion(f"{noise}: PSNR at least {wanted} dB above that of the noisy images", passed, gains)


def _mixed_levels(clean: Tensor, seed: int) -> Tensor:
    """Every image under its own noise level, uniform between 0.1 and 0.3."""
    generator = torch_generator(seed, "noise2score", "mixed levels")
    sigma = 0.1 + 0.2 * torch.rand(len(clean), 1, 1, 1, generator=generator)
    return clean + sigma * torch.randn(clean.shape, generator=generator)


def _noise2score(noisy: Tensor, family: NoiseFamily | None, steps: int, seed: int) -> Noise2Score:
    model = Noise2Score(_net(seed), family, steps=steps, lr=LEARNING_RATE)
    return model.fit(noisy, torch_generator(seed, "noise2score", "training"))


def _blind_level(model: Noise2Score, held: Tensor, level: float, seed: int) -> float:
    noisy = Gaussian(level).sample(held[:100], torch_generator(seed, "noise2score", "blind", str(level)))
    curve = model.estimate_level(noisy, [Gaussian(candidate) for candidate in BLIND_GRID])
    return BLIND_GRID[curve.families.index(curve.best)]


class Supervised(nn.Module):
    """Squared error of noisy + net(noisy) against the clean image; a batch holds both, stacked as two channels."""

    def forward(
        self, model: nn.Module, x: Tensor, *, progress: float, generator: torch.Generator | None
    ) -> Float[Tensor, " batch"]:
        noisy, clean = x[:, :1], x[:, 1:]
        return (noisy + model(noisy) - clean).square().flatten(1).mean(1)


class MaskedPixels(nn.Module):
    """Noise2Self: one pixel of every 4x4 cell is hidden behind its neighbours' mean and predicted."""

    cell = 4

    def forward(
        self, model: nn.Module, x: Tensor, *, progress: float, generator: torch.Generator | None
    ) -> Float[Tensor, " batch"]:
        down, across = torch.randint(self.cell, (2,), generator=generator).tolist()
        at = (..., slice(down, None, self.cell), slice(across, None, self.cell))
        return (model(self.hidden(x, down, across))[at] - x[at]).square().flatten(1).mean(1)

    def hidden(self, x: Tensor, down: int, across: int) -> Tensor:
        """`x` with the pixels of one phase replaced by the mean of their eight neighbours."""
        kernel = torch.ones(1, 1, 3, 3)
        kernel[..., 1, 1] = 0
        neighbours = F.conv2d(x, kernel, padding=1) / F.conv2d(torch.ones_like(x), kernel, padding=1)
        at = (..., slice(down, None, self.cell), slice(across, None, self.cell))
        out = x.clone()
        out[at] = neighbours[at]
        return out

    @torch.no_grad()
    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Every pixel predicted from the image in which it was hidden."""
        out = torch.empty_like(x)
        for down in range(self.cell):
            for across in range(self.cell):
                at = (..., slice(down, None, self.cell), slice(across, None, self.cell))
                out[at] = model(self.hidden(x, down, across))[at]
        return out


@torch.no_grad()
def _supervised_psnr(run: _Run, clean: Tensor, held: Tensor) -> np.ndarray:
    net = _trained(Supervised(), torch.cat([run.train, clean], 1), run.seed)
    return _psnr(run.test + net(run.test), held)


def _noise2self_psnr(run: _Run, held: Tensor) -> np.ndarray:
    loss = MaskedPixels()
    return _psnr(loss.predict(_trained(loss, run.train, run.seed), run.test), held)


@torch.enable_grad()
def _trained(loss: nn.Module, data: Tensor, seed: int) -> nn.Module:
    net = _net(seed)
    fit(net, loss, data, steps=500, lr=LEARNING_RATE, generator=torch_generator(seed, "noise2score", "training"))
    return net


def _net(seed: int) -> ConvScore:
    return ConvScore(generator=torch_generator(seed, "noise2score", "weights"))


def _psnr(images: Tensor, clean: Tensor) -> np.ndarray:
    error = (images.clamp(0, 1) - clean).double().square().flatten(1).mean(1)
    return (-10 * torch.log10(error)).numpy()


def _mean(values: np.ndarray) -> Estimate:
    half = 1.96 * float(values.std(ddof=1)) / np.sqrt(len(values))
    mean = float(values.mean())
    return Estimate(mean, mean - half, mean + half, n=len(values), method="normal")
