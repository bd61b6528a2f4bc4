"""great-score: does the mean margin on generated samples rank models as an attack on real ones does?

Nine networks on Fashion-MNIST at 14x14: three architectures, each trained on clean images and on four-step attacks of
L2 radius 0.25 and 0.75.  The reference is the mean smallest L2 change that PGD finds, by bisection of its radius, on
test images.  Scores are taken from 500 samples of one Gaussian a class, and the score's cost includes fitting that
generator.  The certificate and the interval are tested where the truth is known.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit, ndtr
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import clopper_pearson
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.attack.distance import smallest_changes
from holdfast.inputs.attack.gradient import PGD
from holdfast.inputs.attack.loop import forward
from holdfast.inputs.class_gaussian import ClassGaussianPCA
from holdfast.inputs.global_score import Calibration, calibrate, great_score
from holdfast.papers.bench_models.attacked import fit_attacked
from holdfast.papers.bench_models.fitting import perceptron
from holdfast.papers.datasets import digits, fashion_mnist
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale
from holdfast.subject.embedded import one_thread
from holdfast.threats.balls import L2

PAPER = Paper(
    key="great-score",
    group="inputs",
    title="GREAT Score: Global Robustness Evaluation of Adversarial Perturbation using Generative Models",
    builds=(
        "holdfast.inputs.global_score.great_score",
        "holdfast.inputs.global_score.sampled_great_score",
        "holdfast.inputs.global_score.required_samples",
        "holdfast.inputs.global_score.calibrate",
        "holdfast.inputs.class_gaussian.ClassGaussianPCA",
        "holdfast.inputs.attack.distance.smallest_changes",
    ),
    claim=(
        "The mean confidence margin over samples of a generative model ranks classifiers by their L2 robustness as "
        "attacks do, at a small part of their cost, with a guarantee for finitely many samples."
    ),
    reference="Li, Chen and Ho, 2023 (arXiv 2304.09875)",
)

RADII = (0.0, 0.25, 0.75)
ATTACK = PGD(L2(1.0), steps=30, loss="margin")
LARGEST = 6.0
SAMPLES = 500
ARCHITECTURES = ("narrow", "deep", "convolutional")


def check(scale: Scale) -> Outcome:
    """The certificate's worst case, the ranking of nine networks, the cost, and the coverage of the interval."""
    with one_thread():
        if scale is Scale.SMOKE:
            return Outcome((_worst_case(1000), _coverage(40)), seeds=(0,))
        models = _models(seed=0)
        ranked = _ranked(models)
        return Outcome(
            (_worst_case(10_000), *_ranking(ranked), _coverage(500)),
            ours=Estimate.exact(ranked.correlation, len(models)),
            exhibits=(_table(ranked), _calibrations(ranked)),
            seeds=(0,),
            notes="The correlation is of nine models that were not drawn at random, hence no interval.  "
            + _reading(ranked),
        )


@dataclass(frozen=True)
class Model:
    """One network with what it was trained on."""

    architecture: str
    radius: float
    network: nn.Module

    @property
    def name(self) -> str:
        return f"{self.architecture}, radius {self.radius:g}"


@dataclass(frozen=True)
class Ranked:
    """Everything that was measured on the nine networks; lists have one entry a network."""

    models: list[Model]
    scores: list[Estimate]
    on_images: list[float]  # the same on test images in place of samples
    distances: list[float]
    accuracy: list[float]
    logits: list[np.ndarray]
    labels: np.ndarray
    score_seconds: float
    attack_seconds: float

    @property
    def correlation(self) -> float:
        return float(spearmanr([score.value for score in self.scores], self.distances).statistic)


def _images(split: str, limit: int) -> tuple[Tensor, Tensor]:
    x, y = fashion_mnist(split, limit)  # type: ignore[arg-type]
    return F.avg_pool2d(torch.from_numpy(x), 2), torch.from_numpy(y)


def _network(architecture: str) -> nn.Module:
    if architecture == "narrow":
        return perceptron(196, 64, 10)
    if architecture == "deep":
        return perceptron(196, 128, 64, 10)
    return nn.Sequential(
        skip_init(nn.Conv2d, 1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        skip_init(nn.Conv2d, 16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        skip_init(nn.Linear, 512, 10),
    )


def _models(seed: int) -> list[Model]:
    x, y = _images("train", 8000)
    models = []
    for architecture in ARCHITECTURES:
        for radius in RADII:
            threat = L2(radius) if radius else None
            path = ("great score", architecture, str(radius))
            network = fit_attacked(_network(architecture), x, y, threat, *path, seed=seed, epochs=6)
            models.append(Model(architecture, radius, network))
    return models


def _ranked(models: list[Model]) -> Ranked:
    train_x, train_y = _images("train", 8000)
    test_x, test_y = _images("test", 200)
    began = time.perf_counter()
    generator = ClassGaussianPCA().fit(train_x.numpy(), train_y.numpy())
    samples, labels = generator.sample(SAMPLES, numpy_generator(0, "great score", "samples"))
    softmax = Calibration("softmax")
    scores = [great_score(model.network, samples, labels, calibration=softmax).estimate for model in models]
    score_seconds = time.perf_counter() - began
    began = time.perf_counter()
    stream = torch_generator(0, "great score", "attack")
    runs = [
        smallest_changes(ATTACK, model.network, test_x, test_y, largest=LARGEST, generator=stream) for model in models
    ]
    attack_seconds = time.perf_counter() - began
    logits = [forward(model.network, torch.from_numpy(samples)).double().numpy() for model in models]
    accuracy = [float((forward(model.network, test_x).argmax(1) == test_y).double().mean()) for model in models]
    distances = [float(run.distance.clamp(max=LARGEST).mean()) for run in runs]
    real_x, real_y = _images("test", 2000)
    on_images = [great_score(model.network, real_x, real_y, calibration=softmax).estimate.value for model in models]
    return Ranked(models, scores, on_images, distances, accuracy, logits, labels, score_seconds, attack_seconds)


def _worst_case(points: int) -> Criterion:
    """Two classes, logits linear: the smoothed answer turns at the base's own boundary, at a distance known exactly.

    The probability at signed distance t is the mean of a sigmoid under N(t, 1), by the trapezoidal rule on a grid fine
    enough for the steepest one; in the limit it is Phi(t).
    """
    generator = numpy_generator(0, "great score", "worst case")
    steep, distance = 10 ** generator.uniform(-1, 2, points), np.abs(generator.normal(0, 2, points))
    z = np.linspace(-9, 9, 3601)
    density = np.exp(-(z**2) / 2)
    blocks = np.array_split(np.arange(points), max(1, points // 500))
    means = [expit(steep[rows, None] * (distance[rows, None] + z)) @ density / density.sum() for rows in blocks]
    probabilities = {"sigmoids": np.concatenate(means), "half-spaces": ndtr(distance)}
    numbers: dict[str, Estimate | float | int] = {"points of each kind": points}
    labels = np.zeros(points, dtype=np.int64)
    for kind, p in probabilities.items():
        local = great_score(np.stack([p, 1 - p], 1), None, labels, sigma=1.0).local
        numbers[f"answers changed below the score, {kind}"] = int((local > distance).sum())
        numbers[f"largest share of the distance certified, {kind}"] = float((local / distance).max())
    statement = "Smoothed with sigma 1, no change shorter than the local score moves the answer of a linear softmax"
    return Criterion(statement, all(not n for name, n in numbers.items() if name.startswith("answers")), numbers)


def _ranking(ranked: Ranked) -> tuple[Criterion, Criterion]:
    within = {
        f"correlation within {architecture}": float(
            spearmanr(
                [s.value for s, m in zip(ranked.scores, ranked.models, strict=True) if m.architecture == architecture],
                [d for d, m in zip(ranked.distances, ranked.models, strict=True) if m.architecture == architecture],
            ).statistic
        )
        for architecture in ARCHITECTURES
    }
    ratio = ranked.attack_seconds / ranked.score_seconds
    return (
        Criterion(
            "Spearman correlation of score and mean smallest L2 change over nine networks is at least 0.6",
            ranked.correlation >= 0.6,
            {
                "correlation": ranked.correlation,
                "correlation of the score on test images": float(
                    spearmanr(ranked.on_images, ranked.distances).statistic
                ),
                **within,
            },
        ),
        Criterion(
            "The score of nine networks costs at most a twentieth of the attack on 200 images",
            ratio >= 20,
            {"ratio": ratio, "seconds for scores": ranked.score_seconds, "seconds for attacks": ranked.attack_seconds},
        ),
    )


def _coverage(resamples: int) -> Criterion:
    """Intervals from 100 samples, against the mean over a large set they are drawn from with replacement."""
    x, y = digits()
    flat = torch.from_numpy(x).flatten(1)
    network = fit_attacked(perceptron(64, 32, 10), flat, torch.from_numpy(y), None, "great score", seed=0, epochs=4)
    generator = ClassGaussianPCA().fit(flat.numpy(), y)
    samples, labels = generator.sample(20_000, numpy_generator(0, "great score", "population"))
    everything = great_score(network, samples, labels, calibration=Calibration("softmax"))
    probabilities = Calibration("softmax")(forward(network, torch.from_numpy(samples)).double().numpy())
    draws = numpy_generator(0, "great score", "resamples")
    covered, widths = 0, []
    for _ in range(resamples):
        pick = draws.integers(len(labels), size=100)
        estimate = great_score(probabilities[pick], None, labels[pick]).estimate
        covered += estimate.low <= everything.estimate.value <= estimate.high
        widths.append(estimate.width)
    share = clopper_pearson(covered, resamples)
    statement = "95 % intervals from 100 samples cover the mean at least 95 times in 100"
    return Criterion(statement, share.value >= 0.95, {"coverage": share, "mean width": float(np.mean(widths))})


def _table(ranked: Ranked) -> Table:
    rows = tuple(
        (model.name, accuracy, score, distance)
        for model, accuracy, score, distance in zip(
            ranked.models, ranked.accuracy, ranked.scores, ranked.distances, strict=True
        )
    )
    return Table(
        "Nine networks",
        ("network", "test accuracy", "GREAT score", "mean smallest L2 change"),
        rows,
        caption="Radius: of the attacks it was trained on.  The score is no radius: these networks are not smoothed.",
    )


def _calibrations(ranked: Ranked) -> Table:
    """Temperature tuned on two architectures, judged on the third."""
    rows = []
    for held in ARCHITECTURES:
        tuned = [k for k, model in enumerate(ranked.models) if model.architecture != held]
        judged = [k for k, model in enumerate(ranked.models) if model.architecture == held]
        fit = calibrate([ranked.logits[k] for k in tuned], None, ranked.labels, [ranked.distances[k] for k in tuned])
        scores = [
            great_score(ranked.logits[k], None, ranked.labels, calibration=fit.calibration).estimate.value
            for k in judged
        ]
        judged_correlation = float(spearmanr(scores, [ranked.distances[k] for k in judged]).statistic)
        rows.append((held, str(fit.calibration), fit.correlation, judged_correlation))
    return Table(
        "Confidences with a tuned temperature",
        ("held out", "calibration tuned on the other six", "correlation there", "correlation on the three held out"),
        tuple(rows),
        caption="The third column is what tuning on the ranked models themselves would report.",
    )


def _reading(ranked: Ranked) -> str:
    standard, robust = (
        np.mean(
            [score.value for score, model in zip(ranked.scores, ranked.models, strict=True) if model.radius == radius]
        )
        for radius in (RADII[0], RADII[-1])
    )
    found = f"Mean score after clean training {standard:.3f}, after training on the largest attacks {robust:.3f}."
    if robust < standard:
        found += "  Adversarial training lowers confidence, which the score cannot tell from weakness."
    return found
