"""Check of `rrcm`: what the consistency term adds to a frozen representation, as certified radius of a linear head."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Series, Table
from holdfast.core.intervals import paired_difference
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.smoothing.blackbox import DenoisedSmoothing
from holdfast.inputs.smoothing.consistency import ConsistencyRegularizer, NoiseClassifier, NoiseConsistencyPretrainer
from holdfast.inputs.smoothing.dense import DenseDenoiser, perceptron
from holdfast.inputs.smoothing.gaussian import Smoothed, average_certified_radius
from holdfast.inputs.smoothing.level_conditioning import LevelConditioned
from holdfast.inputs.smoothing.levels import LevelSchedule
from holdfast.inputs.smoothing.noise_training import train_under_noise
from holdfast.papers import datasets
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="rrcm",
    group="inputs",
    title="Robust Representation Consistency Model via Contrastive Denoising",
    builds=(
        "holdfast.inputs.smoothing.consistency.NoiseConsistencyPretrainer",
        "holdfast.inputs.smoothing.consistency.ConsistencyRegularizer",
        "holdfast.inputs.smoothing.consistency.NoiseClassifier",
        "holdfast.inputs.smoothing.levels.LevelSchedule",
        "holdfast.inputs.smoothing.level_conditioning.LevelConditioned",
        "holdfast.inputs.smoothing.noise_training.train_under_noise",
    ),
    claim=(
        "Pre-training an encoder to give all points of a diffusion path the same representation makes smoothed "
        "classifiers on top of it certify larger radii, at one forward pass a draw."
    ),
    reference="Lei, Berner, Wang, Chen, Ba, Ren, Zhu and Anandkumar, 2025 (arXiv:2501.13094)",
)

SEEDS = (0, 1, 2)
SIGMAS = (0.5, 1.0)
SIDE, CLASSES = 14, 10
HIDDEN = 256
UNLABELLED, LABELLED = 10_000, 1_000
RANDOM, SEMANTIC, RRCM = "untrained encoder", "semantic term only", "rRCM"
DRAWS = 500
_LARGEST = 4.0  # no radius from so few draws exceeds 4 sigma


@dataclass(frozen=True)
class Size:
    """How much work a run does."""

    unlabelled: int = UNLABELLED
    labelled: int = LABELLED
    tested: int = 150
    steps: int = 400
    head_steps: int = 200
    draws: int = DRAWS


@dataclass(frozen=True)
class Split:
    unlabelled: Tensor
    x: Tensor
    y: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass
class Run:
    """One seed: rRCM's encoder and loss, and each test image's radius (0 where wrong) by encoder and sigma."""

    encoder: nn.Module
    consistency: np.ndarray
    radius: dict[tuple[str, float], np.ndarray] = field(default_factory=dict)


def check(scale: Scale) -> Outcome:
    """ACR of linear heads on frozen encoders at two noises; the schedule; the targets; the consistency term's fall."""
    if scale is Scale.SMOKE:
        size = Size(unlabelled=600, labelled=200, tested=5, steps=25, head_steps=20, draws=50)
        images = torch.from_numpy(datasets.digits()[0]).flatten(1), torch.from_numpy(datasets.digits()[1])
        runs = [_run(_split(images, 0, size), 0, size, sigmas=(0.5,))]
        return Outcome((*_facts(), _falls(runs)), seeds=(0,))
    size = Size()
    x, y = datasets.fashion_mnist("train", 12_000)
    images = F.avg_pool2d(torch.from_numpy(x), 2).flatten(1), torch.from_numpy(y)
    splits = [_split(images, seed, size) for seed in SEEDS]
    runs = [_run(split, seed, size) for split, seed in zip(splits, SEEDS, strict=True)]
    tuned = _fine_tuned(splits[0], runs[0], size)
    ours, baseline = (_acr(runs, name, SIGMAS[1]) for name in (RRCM, SEMANTIC))
    return Outcome(
        (*(_ordering(runs, sigma) for sigma in SIGMAS), *_facts(), _falls(runs)),
        ours,
        baseline,
        (_table(runs), tuned, _losses(runs)),
        SEEDS,
        f"Fashion-MNIST at 14x14, pixels in [0, 1], sigma in those units; dense encoder {SIDE**2}-{HIDDEN}-{HIDDEN}-"
        f"128, {UNLABELLED:,} unlabelled images, {size.steps} steps of 256; frozen, then a linear head on "
        f"{LABELLED:,} labelled images.  {size.tested} test images a seed, {DRAWS} draws a certificate, alpha 0.001.  "
        "Not tested here: ImageNet, transformers, and the comparison with diffusion models.",
    )


def _facts() -> tuple[Criterion, Criterion]:
    schedule = LevelSchedule()
    levels = schedule.levels()
    away = max(abs(levels[0].item() - schedule.sigma_max), abs(levels[-1].item() - schedule.sigma_min))
    made = _pretrainer(8, 0)
    x = torch.rand((16, 8), generator=torch_generator(0, PAPER.key, "targets"))
    made.loss(x, x, x, torch_generator(0, PAPER.key, "noise")).backward()
    targets = [p for part in (made.target_encoder, made.target_projector) for p in part.parameters()]
    online = [p for part in (made.encoder, made.projector, made.predictor) for p in part.parameters()]
    leaked = sum(p.grad is not None for p in targets)
    return (
        Criterion("the levels run from sigma_max to sigma_min, each to 1e-9", away <= 1e-9, {"largest gap": away}),
        Criterion(
            "no target's parameter gets a gradient, every online one does",
            leaked == 0 and all(p.grad is not None for p in online),
            {"parameters with a gradient": leaked},
        ),
    )


def _falls(runs: list[Run]) -> Criterion:
    tenth = max(1, len(runs[0].consistency) // 10)
    ends = [(run.consistency[:tenth], run.consistency[-tenth:]) for run in runs]
    first, last = (float(np.mean([part[k].mean() for part in ends])) for k in (0, 1))
    return Criterion(
        "the consistency term falls while the encoder is trained, for every seed (first against last tenth of steps)",
        all(end.mean() < start.mean() for start, end in ends),
        {"first tenth": first, "last tenth": last},
    )


def _split(images: tuple[Tensor, Tensor], seed: int, size: Size) -> Split:
    order = torch.from_numpy(numpy_generator(seed, PAPER.key, "images").permutation(len(images[0])))
    parts = order[: size.unlabelled + size.labelled + size.tested].split([size.unlabelled, size.labelled, size.tested])
    x, y = images
    return Split(x[parts[0]], x[parts[1]], y[parts[1]], x[parts[2]], y[parts[2]])


def _encoder(features: int, seed: int) -> nn.Module:
    generator = torch_generator(seed, PAPER.key, "encoder")
    return LevelConditioned(perceptron((features, HIDDEN, HIDDEN, 128), generator), 64, generator)


def _pretrainer(features: int, seed: int, consistency_weight: float = 1.0) -> NoiseConsistencyPretrainer:
    generator = torch_generator(seed, PAPER.key, "heads")
    projector, predictor = perceptron((128, 128, 64), generator), perceptron((64, 128, 64), generator)
    return NoiseConsistencyPretrainer(
        _encoder(features, seed), projector, predictor, consistency_weight=consistency_weight
    )


def _moved(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """A view: the square image moved by at most one pixel each way, and mirrored half of the time."""
    side = int(x.shape[1] ** 0.5)
    n, padded = len(x), F.pad(x.reshape(-1, side, side), (1, 1, 1, 1))
    down, across = (torch.randint(3, (n, 1, 1), generator=generator) for _ in range(2))
    place = torch.arange(side)
    moved = padded[torch.arange(n)[:, None, None], place[:, None] + down, place + across]
    mirrored = torch.rand((n, 1, 1), generator=generator) < 0.5
    return torch.where(mirrored, moved.flip(2), moved).flatten(1)


def _run(split: Split, seed: int, size: Size, sigmas: tuple[float, ...] = SIGMAS) -> Run:
    features = split.x.shape[1]
    encoders = {RANDOM: _encoder(features, seed)}
    for name, weight in ((SEMANTIC, 0.0), (RRCM, 1.0)):  # the last one's losses are kept
        made = _pretrainer(features, seed, weight)
        stream = torch_generator(seed, PAPER.key, "pre-training")
        loader = DataLoader(TensorDataset(split.unlabelled), 256, shuffle=True, drop_last=True, generator=stream)
        made.fit(loader, size.steps, _moved, lr=1e-3, generator=stream)
        encoders[name] = made.encoder
    run = Run(encoders[RRCM], made.losses_["consistency"])
    for name, encoder in encoders.items():
        for sigma in sigmas:
            frozen = copy.deepcopy(encoder).requires_grad_(False)
            run.radius[name, sigma] = _certified(_with_head(frozen, sigma, seed), split, seed, size, lr=1e-2)
    return run


def _with_head(encoder: nn.Module, sigma: float, seed: int) -> NoiseClassifier:
    head = perceptron((128, CLASSES), torch_generator(seed, PAPER.key, "head"))
    return NoiseClassifier(encoder, head, sigma)


def _certified(
    classifier: NoiseClassifier,
    split: Split,
    seed: int,
    size: Size,
    lr: float,
    draws: int = 1,
    regularizer: nn.Module | None = None,
    layer_decay: float = 1.0,
) -> np.ndarray:
    sigma = classifier.sigma
    train_under_noise(
        classifier, split.x, split.y, sigma, steps=size.head_steps, draws=draws, regularizer=regularizer, lr=lr,
        layer_decay=layer_decay, generator=torch_generator(seed, PAPER.key, "training"),
    )  # fmt: skip
    stream = torch_generator(seed, PAPER.key, "certificates")
    certificate = Smoothed(classifier, sigma, CLASSES).certify(split.test, 100, size.draws, generator=stream)
    return np.where((certificate.label == split.test_labels).numpy(), certificate.radius.numpy(), 0.0)


def _pooled(runs: list[Run], name: str, sigma: float) -> np.ndarray:
    return np.concatenate([run.radius[name, sigma] for run in runs])


def _acr(runs: list[Run], name: str, sigma: float) -> Estimate:
    radius = _pooled(runs, name, sigma)
    return average_certified_radius(radius, radius > 0, _LARGEST * sigma)


def _ordering(runs: list[Run], sigma: float) -> Criterion:
    gains = {
        f"{better} over {worse}": paired_difference(_pooled(runs, worse, sigma), _pooled(runs, better, sigma))
        for worse, better in ((RANDOM, SEMANTIC), (SEMANTIC, RRCM))
    }
    return Criterion(
        f"sigma {sigma}: average certified radius of {RRCM} > {SEMANTIC} > {RANDOM} (paired 95% over images)",
        all(gain.low > 0 for gain in gains.values()),
        gains,
    )


def _table(runs: list[Run]) -> Table:
    rows: list[tuple[str | Estimate, ...]] = []
    for name in (RANDOM, SEMANTIC, RRCM):
        cells = [_acr(runs, name, sigma) for sigma in SIGMAS]
        seeds = [" ".join(f"{run.radius[name, sigma].mean():.3f}" for run in runs) for sigma in SIGMAS]
        rows.append((name, *cells, *seeds))
    columns = ("encoder", *(f"ACR, sigma {sigma}" for sigma in SIGMAS), *(f"by seed, {sigma}" for sigma in SIGMAS))
    return Table("Average certified radius of a linear head on a frozen encoder", columns, tuple(rows))


def _fine_tuned(split: Split, run: Run, size: Size) -> Table:
    """What is reported and not claimed: training all weights, and what a draw costs."""
    sigma = SIGMAS[1]
    rows: list[tuple[str, Estimate | float]] = []
    ways = (("with consistency", ConsistencyRegularizer(10.0, 0.5), 0.85), ("cross-entropy alone", None, 1.0))
    for way, regularizer, layer_decay in ways:
        for start, encoder in (("rRCM", run.encoder), ("random weights", _encoder(split.x.shape[1], SEEDS[0]))):
            classifier = _with_head(copy.deepcopy(encoder).requires_grad_(True), sigma, SEEDS[0])
            radius = _certified(
                classifier, split, SEEDS[0], size, lr=3e-3, draws=2, regularizer=regularizer, layer_decay=layer_decay
            )
            estimate = average_certified_radius(radius, radius > 0, _LARGEST * sigma)
            rows.append((f"ACR at sigma {sigma}, all weights trained from {start}, {way}", estimate))
    alone = _with_head(run.encoder, sigma, SEEDS[0]).eval()
    behind = DenoisedSmoothing(DenseDenoiser(split.x.shape[1], (HIDDEN, HIDDEN)), alone, sigma).eval()
    ratio = _seconds(behind, split.test) / _seconds(alone, split.test)
    rows.append(("time of a draw behind a one-step denoiser of the encoder's width, ratio", ratio))
    return Table(
        "Reported, not claimed (first seed)",
        ("what", "value"),
        tuple(rows),
        "A denoiser that takes k steps costs k passes more a draw; rRCM's base takes one pass.",
    )


@torch.no_grad()
def _seconds(model: nn.Module, x: Tensor, repeats: int = 30) -> float:
    """Median time of a pass over 1000 rows."""
    rows = x.repeat(-(-1000 // len(x)), 1)[:1000]
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        model(rows)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _losses(runs: list[Run]) -> Curve:
    series = []
    for seed, run in zip(SEEDS, runs, strict=True):
        smooth = np.convolve(run.consistency, np.ones(20) / 20, "valid")
        series.append(Series(f"seed {seed}", tuple(np.arange(20.0, 20 + len(smooth)).tolist()), tuple(smooth.tolist())))
    return Curve(
        "Consistency term during pre-training",
        "step",
        "mean over 20 steps",
        tuple(series),
    )
