"""Check of `dual-smoothing`: two halves against the whole at equal draws, and the radius in print against the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Table
from holdfast.core.intervals import bootstrap, clopper_pearson
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.smoothing.dual import (
    DualCertificate,
    DualSmoothed,
    checkerboard,
    dual_radius,
    partition_noise,
    published_radius,
)
from holdfast.inputs.smoothing.gaussian import Smoothed, SmoothedCertificate, certified_curve
from holdfast.papers import datasets
from holdfast.papers.bench_models.fitting import fit, perceptron
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="dual-smoothing",
    group="inputs",
    title="Mitigating the curse of dimensionality for certified robustness via dual randomized smoothing",
    builds=(
        "holdfast.inputs.smoothing.dual.DualSmoothed",
        "holdfast.inputs.smoothing.dual.dual_radius",
        "holdfast.inputs.smoothing.dual.partition_noise",
    ),
    claim=(
        "Splitting an image into two interleaved halves, smoothing a classifier on each in its lower dimension and "
        "adding their probabilities certifies larger L2 radii than smoothing one classifier on all pixels."
    ),
)

TRAINED_ON = 6000
IMAGES, DRAWS, DRAWS_FOR_LABEL, ERROR = 200, 2000, 100, 1e-3
SEEDS = (0, 1, 2)
#: Noise and the seeds it is run with; the claim is decided at the first, the others are shown with it.
SIGMAS = {0.25: SEEDS, 0.12: SEEDS, 0.5: SEEDS[:1]}
MASK = checkerboard(28, 28)


def check(scale: Scale) -> Outcome:
    """(a) linear halves, (b) the radius in print, (c) coverage, and in full (d) certified radii on Fashion-MNIST."""
    full = scale is Scale.FULL
    criteria = [_identity(), _counterexample(), _coverage(2000 if full else 300)]
    if not full:
        return Outcome(tuple(criteria), seeds=(0,))
    trials = {sigma: [_trial(sigma, seed) for seed in seeds] for sigma, seeds in SIGMAS.items()}
    gains = {sigma: _gain(found) for sigma, found in trials.items()}
    criteria.append(
        Criterion(
            "sigma 0.25: average certified radius at least 1.1 times that of plain smoothing at equal draws, and the "
            "interval of the ratio (paired, over images) above 1",
            gains[0.25].value >= 1.1 and gains[0.25].low > 1,
            {f"ratio at sigma {sigma:g}": gain for sigma, gain in gains.items()},
        )
    )
    means = {name: _mean(trials[0.25], name) for name in ("dual", "plain")}
    notes = (
        f"Fashion-MNIST, {IMAGES} test images a seed, perceptrons of 128 hidden units trained on {TRAINED_ON} noisy "
        f"images. Plain smoothing {DRAWS} draws, two halves {DRAWS // 2} each, labels from {DRAWS_FOR_LABEL} more, "
        f"alpha {ERROR:g}. The radius in print is not a certificate; the table shows what it would have said."
    )
    exhibits = (_table(trials, gains), _curve(trials[0.25]))
    return Outcome(tuple(criteria), means["dual"], means["plain"], exhibits, SEEDS, notes)


def _identity() -> Criterion:
    """Halves that decide by hyperplanes: scan directions for the first change of answer."""
    rng, worst = numpy_generator(0, PAPER.key, "identity"), 0.0
    for _ in range(50):
        a, b = rng.uniform(-1, 3, 2)
        sigma_l, sigma_r = rng.uniform(0.1, 1.0, 2)
        if a + b < 0.05:
            continue
        angles = np.linspace(0, np.pi / 2, 20_001)
        radius = float(dual_radius(np.array([a]), np.array([b]), sigma_l, sigma_r)[0])
        # In the direction (cos, sin) the sum of probabilities is 1 where a + b = t (cos / sigma_l + sin / sigma_r).
        first = float(_flips(np.array([a, b]), angles, sigma_l, sigma_r).min())
        worst = max(worst, abs(first - radius))
    statement = "linear halves: the nearest change of the answer, over all directions, is at R to 1e-3"
    return Criterion(statement, worst <= 1e-3, {"largest difference": worst})


def _flips(quantiles: np.ndarray, angles: np.ndarray, sigma_l: float, sigma_r: float) -> np.ndarray:
    """Distance at which the probabilities sum to 1, by bisection along every direction."""
    low, high = np.zeros(len(angles)), np.full(len(angles), 50.0)
    for _ in range(60):
        middle = (low + high) / 2
        left = ndtr(quantiles[0] - middle * np.cos(angles) / sigma_l)
        above = left + ndtr(quantiles[1] - middle * np.sin(angles) / sigma_r) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return high


def _counterexample() -> Criterion:
    a, b = np.array([3.0]), np.array([0.0])
    printed, sound = float(published_radius(a, b, 1.0, 1.0)[0]), float(dual_radius(a, b, 1.0, 1.0)[0])
    flips = float(_flips(np.array([3.0, 0.0]), np.linspace(0, np.pi / 2, 20_001), 1.0, 1.0).min())
    together = float(ndtr(3 - 2.13 / np.sqrt(2)) + ndtr(-2.13 / np.sqrt(2)))
    return Criterion(
        "halves with a = 3, b = 0: the answer changes strictly inside the radius in print, and not inside R",
        sound - 1e-6 <= flips < printed and together < 1,
        {
            "radius in print, in sigma": printed,
            "R, in sigma": sound,
            "first change, in sigma": flips,
            "sum of the two probabilities at 2.13 sigma": together,
        },
    )


def _coverage(runs: int) -> Criterion:
    """Wrong certificates at alpha 0.05 where the truth is known and the halves differ most; counts are simulated."""
    rng, n, alpha = numpy_generator(0, PAPER.key, "coverage"), 1000, 0.05
    a, b = 1.5, -0.3
    smoothed = DualSmoothed(
        _half_space(0, a), _half_space(1, b), 1.0, torch.tensor([True, False]), "zero", batch=50_000
    )
    found = smoothed.certify(
        torch.zeros(runs, 2), n0=200, n=n, alpha=alpha, generator=torch_generator(0, PAPER.key, "coverage")
    )
    true = float(dual_radius(np.array([a]), np.array([b]), 1.0, 1.0)[0])
    wrong = clopper_pearson(int((found.radius > true).sum()), runs)
    # What the radius in print would have said from counts of the same law.
    votes = [rng.binomial(n // 2, float(ndtr(one)), runs) / (n // 2) for one in (a, b)]
    printed = published_radius(ndtri(votes[0]), ndtri(votes[1]), 1.0, 1.0)
    return Criterion(
        "linear halves of known probabilities: certificates at alpha = 0.05 exceed the true radius no more often",
        wrong.value <= alpha,
        {"wrong": wrong, "wrong, radius in print even at the estimates": float((printed > true).mean())},
    )


def _half_space(place: int, shift: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.stack([-x[:, place] - shift, x[:, place] + shift], 1)


@dataclass(frozen=True)
class Trial:
    """Certified radii, wrong answers 0, of the same images."""

    plain: np.ndarray
    dual: np.ndarray
    printed: np.ndarray


def _trial(sigma: float, seed: int) -> Trial:
    x, y = (torch.from_numpy(part) for part in datasets.fashion_mnist("train", TRAINED_ON))
    stream = torch_generator(seed, PAPER.key, "noise", str(sigma))
    plain = _trained(lambda z: z + sigma * torch.randn(z.shape, generator=stream), x, y, seed, "plain")
    left = _trained(lambda z: partition_noise(z, MASK, sigma, stream), x, y, seed, "left")
    right = _trained(lambda z: partition_noise(z, ~MASK, sigma, stream), x, y, seed, "right")
    x, y = (torch.from_numpy(part[seed * IMAGES :][:IMAGES]) for part in datasets.fashion_mnist("test"))

    def certify(smoothed: Smoothed | DualSmoothed, name: str) -> SmoothedCertificate:
        generator = torch_generator(seed, PAPER.key, name, str(sigma))
        return smoothed.certify(x, DRAWS_FOR_LABEL, DRAWS, ERROR, generator=generator)

    one, two = certify(Smoothed(plain, sigma, 10), "plain"), certify(DualSmoothed(left, right, sigma), "dual")
    assert isinstance(two, DualCertificate)
    return Trial(_counted(one, y), _counted(two, y), _printed(two, y, sigma))


def _counted(found: SmoothedCertificate, y: Tensor) -> np.ndarray:
    return torch.where(found.label == y, found.radius, 0.0).numpy()


def _printed(found: DualCertificate, y: Tensor, sigma: float) -> np.ndarray:
    a, b = ndtri(found.halves.numpy()).T
    return np.where((found.label == y).numpy(), published_radius(a, b, sigma, sigma), 0.0)


def _trained(change: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, seed: int, name: str) -> nn.Module:
    return fit(perceptron(784, 128, 10), x, y, change, PAPER.key, name, seed=seed, epochs=8)


def _gain(trials: list[Trial]) -> Estimate:
    """Ratio of average radii over all seeds; images are resampled, each with both of its radii, seed by seed."""
    plain, dual = (np.concatenate([getattr(trial, name) for trial in trials]) for name in ("plain", "dual"))
    seeds = np.repeat(np.arange(len(trials)), IMAGES)
    return bootstrap(
        lambda one, two: two.mean(-1) / one.mean(-1),
        plain,
        dual,
        generator=numpy_generator(0, PAPER.key, "bootstrap"),
        stratify=seeds,
        vectorized=True,
    )


def _mean(trials: list[Trial], name: str) -> Estimate:
    radii = np.concatenate([getattr(trial, name) for trial in trials])
    return bootstrap(np.mean, radii, generator=numpy_generator(0, PAPER.key, "mean", name))


def _table(trials: dict[float, list[Trial]], gains: dict[float, Estimate]) -> Table:
    rows = tuple(
        (
            f"{sigma:g}",
            len(found),
            _mean(found, "plain"),
            _mean(found, "dual"),
            gains[sigma],
            _mean(found, "printed").value,
            min(_ratio(trial) for trial in found),
            max(_ratio(trial) for trial in found),
        )
        for sigma, found in sorted(trials.items())
    )
    return Table(
        "Average certified radius",
        ("sigma", "seeds", "plain", "two halves", "ratio", "radius in print", "least ratio", "largest ratio"),
        rows,
        caption="Wrong and abstained answers count 0. Least and largest are over training seeds.",
    )


def _ratio(trial: Trial) -> float:
    """Two halves over plain, of one seed."""
    return float(trial.dual.mean() / trial.plain.mean())


def _curve(trials: list[Trial]) -> Curve:
    lines = {}
    for label, name in (("two halves", "dual"), ("plain", "plain")):
        radii = np.concatenate([getattr(trial, name) for trial in trials])
        lines[label] = (radii, radii > 0)
    return certified_curve(lines, title="Certified accuracy by L2 radius, sigma 0.25")
