"""eps-ad: adversarial inputs told from natural ones by the score of perturbed copies, averaged over noise levels.

Digits: a perceptron denoiser is trained on 1 000 of them, scaled to [-1, 1]; a classifier is trained on the same 1 000
and attacked on held-out ones by PGD within Linf 0.2 of pixels in [0, 1].  The reference of 300 and the inputs on
which the deep kernel is learnt (FGSM) are no test data.  A single level is scored in the same way as the average;
beside it stands a single level with as many draws of noise, which costs as much as the average.  Runs entirely on
data bundled with scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Histogram, Table
from holdfast.core.intervals import bootstrap
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.attack.gradient import FGSM, PGD
from holdfast.inputs.attack.persistent import PersistentPGD
from holdfast.inputs.detection.expected_perturbation import ExpectedPerturbationScore
from holdfast.inputs.detection.metrics import auroc
from holdfast.inputs.detection.mmd import GaussianKernel, mmd_statistic
from holdfast.noise.denoiser import PathScore, VPPrecond
from holdfast.noise.matching import DenoisingScoreMatching, fit
from holdfast.noise.networks import MLPDenoiser
from holdfast.noise.schedule import VP, per_example
from holdfast.papers.bench_models.fitting import fit as fit_classifier
from holdfast.papers.bench_models.fitting import perceptron
from holdfast.papers.datasets import digits
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale
from holdfast.papers.seed_means import over_examples, over_seeds
from holdfast.threats.balls import Linf

PAPER = Paper(
    key="eps-ad",
    group="inputs",
    title="Detecting Adversarial Data by Probing Multiple Perturbations Using Expected Perturbation Score",
    builds=(
        "holdfast.inputs.detection.ExpectedPerturbationScore",
        "holdfast.inputs.detection.mmd.DeepKernel",
        "holdfast.inputs.detection.mmd.mmd_statistic",
        "holdfast.noise.schedule.VP",
        "holdfast.noise.denoiser.PathScore",
        "holdfast.noise.matching.DenoisingScoreMatching",
        "holdfast.noise.networks.MLPDenoiser",
    ),
    claim=(
        "Averaging the score of a diffusion model over many noise levels tells adversarial from natural inputs, "
        "whatever the largest level, where the score at one level depends on which level it is."
    ),
    reference="Zhang, Liu, Yang, Yang, Li, Han and Tan, ICML 2023",
)

THREAT = Linf(0.2)
LARGEST = (0.05, 0.1, 0.2)
LEVELS = 20
FALSE_ALARMS = 0.05
DRAWS = 400


@dataclass(frozen=True)
class Effort:
    """How much is trained."""

    steps: int
    width: int
    kernel_epochs: int
    resamples: int


FULL = Effort(steps=4000, width=256, kernel_epochs=200, resamples=300)
SMOKE = Effort(steps=250, width=64, kernel_epochs=0, resamples=60)


def check(scale: Scale) -> Outcome:
    """The closed form for Gaussians; detection of PGD at three ranges of levels; at full scale all that needs a good
    score model too.
    """
    exact = _gaussian_case()
    if scale is Scale.SMOKE:
        trial = _trial(0, SMOKE)
        return Outcome((exact, _gain_criterion([trial])), seeds=(0,))
    seeds = (0, 1, 2)
    trials = [_trial(seed, FULL) for seed in seeds]
    return Outcome(
        (exact, _areas_criterion(trials), _gain_criterion(trials), _discrepancy(trials), _kernels(trials)),
        ours=over_seeds([float(trial.average.min()) for trial in trials]),
        baseline=over_seeds([float(trial.single.mean()) for trial in trials]),
        exhibits=(_table(seeds, trials), _histogram(trials[0])),
        seeds=seeds,
        notes="Part of what the average gains is that it draws noise twenty times; the column with twenty draws at one "
        "level shows how much is left.",
    )


@dataclass(frozen=True)
class Trial:
    """AUROC against persistent PGD at every largest level (levels,), and what else was measured with one classifier."""

    average: Float[np.ndarray, " levels"]
    single: Float[np.ndarray, " levels"]
    single_redrawn: Float[np.ndarray, " levels"]
    barely: Float[np.ndarray, " levels"]  # average, against PGD that stops at its first success
    gain: Estimate  # min of average - mean of single, resampling examples
    scores: dict[str, np.ndarray]
    discrepancy: tuple[float, float]  # MMD² natural-attacked, natural-natural
    power: tuple[float, float]  # of the Gaussian and of the deep kernel
    robust_accuracy: float


def _trial(seed: int, effort: Effort) -> Trial:
    x, y = (torch.from_numpy(part) for part in digits())
    order = torch.from_numpy(numpy_generator(seed, "eps", "split").permutation(len(x)))
    train, reference, test = order.split([1000, 300, len(x) - 1300])
    x = x.flatten(1)
    score = _score_model(_scaled(x[train]), seed, effort)
    model = fit_classifier(perceptron(64, 128, 128, 10), x[train], y[train], torch.clone, "eps", seed=seed, epochs=30)
    attacked = PersistentPGD(THREAT)(model, x[test], y[test], generator=torch_generator(seed, "eps", "pgd"))
    barely = PGD(THREAT, steps=20)(model, x[test], y[test], generator=torch_generator(seed, "eps", "first"))

    def detect(levels: np.ndarray, repeats: int = 1) -> ExpectedPerturbationScore:
        detector = ExpectedPerturbationScore(score, levels, repeats=repeats, random_state=seed)
        return detector.fit(_scaled(x[reference]))

    pairs, of_barely, redrawn = [], [], np.full(len(LARGEST), np.nan)
    for k, largest in enumerate(LARGEST):
        averaged, single = detect(_levels(largest)), detect(np.array([largest]))
        pairs.append([[d.score_samples(_scaled(part)) for part in (x[test], attacked)] for d in (averaged, single)])
        of_barely.append(auroc(pairs[-1][0][0], averaged.score_samples(_scaled(barely))).value)
        if effort is FULL:
            again = detect(np.array([largest]), LEVELS)
            redrawn[k] = auroc(*(again.score_samples(_scaled(part)) for part in (x[test], attacked))).value
    scores = np.moveaxis(np.array(pairs), -1, 0)  # (examples, levels, average or single, natural or attacked)
    areas = _areas(scores)
    return Trial(
        areas[:, 0],
        areas[:, 1],
        redrawn,
        np.array(of_barely),
        bootstrap(_gain, scores, generator=numpy_generator(seed, "eps", "bootstrap"), resamples=effort.resamples),
        {"natural": scores[:, 0, 0, 0], "PGD": scores[:, 0, 0, 1]},
        _discrepancies(detect(_levels(LARGEST[0])), x[test], attacked) if effort is FULL else (np.nan, np.nan),
        (_share_found(*scores[:, 0, 0].T), _share_found(*_deep_scores(score, model, x, y, order, attacked, seed)))
        if effort is FULL
        else (np.nan, np.nan),
        float((model(attacked).argmax(1) == y[test]).double().mean()),
    )


def _score_model(data: Tensor, seed: int, effort: Effort) -> PathScore:
    net = MLPDenoiser(data.shape[1], effort.width, 3, generator=torch_generator(seed, "eps", "denoiser"))
    model = VPPrecond(net)
    loss = DenoisingScoreMatching(VP())
    fit(model, loss, data, steps=effort.steps, batch=64, lr=1e-3, generator=torch_generator(seed, "eps", "training"))
    return PathScore(model, VP())


def _levels(largest: float) -> np.ndarray:
    return largest * np.arange(1, LEVELS + 1) / LEVELS


def _scaled(x: Tensor) -> Tensor:
    return 2 * x - 1


def _areas(scores: Float[np.ndarray, "examples levels 2 2"]) -> Float[np.ndarray, "levels 2"]:
    flat = scores.reshape(len(scores), -1, 2)
    return np.array([auroc(part[:, 0], part[:, 1]).value for part in np.moveaxis(flat, 1, 0)]).reshape(-1, 2)


def _gain(scores: Float[np.ndarray, "examples levels 2 2"]) -> float:
    areas = _areas(scores)
    return float(areas[:, 0].min() - areas[:, 1].mean())


def _discrepancies(detector: ExpectedPerturbationScore, natural: Tensor, attacked: Tensor) -> tuple[float, float]:
    """MMD² between halves: one natural and one attacked, and both natural."""
    points, others = (torch.from_numpy(detector.transform(_scaled(part))).flatten(1) for part in (natural, attacked))
    half = len(points) // 2
    kernel = GaussianKernel(torch.from_numpy(detector.reference_))
    statistic = partial(mmd_statistic, points[:half], kernel=kernel)
    return float(statistic(others[half : 2 * half])), float(statistic(points[half : 2 * half]))


def _deep_scores(
    score: PathScore, model: nn.Module, x: Tensor, y: Tensor, order: Tensor, attacked: Tensor, seed: int
) -> list[np.ndarray]:
    """Scores of natural and of attacked test digits by a deep kernel, learnt on FGSM of training digits."""
    fitting, reference, test = order[:500], order[1000:1300], order[1300:]
    known = FGSM(THREAT)(model, x[fitting], y[fitting])
    detector = ExpectedPerturbationScore(score, _levels(LARGEST[0]), "deep", random_state=seed)
    detector.fit(_scaled(x[reference])).fit_kernel(_scaled(x[fitting]), _scaled(known), epochs=FULL.kernel_epochs)
    return [detector.score_samples(_scaled(part)) for part in (x[test], attacked)]


def _share_found(natural: np.ndarray, attacked: np.ndarray) -> float:
    """Attacked inputs below the threshold that 5 % of the natural ones fail."""
    return float((attacked < np.quantile(natural, FALSE_ALARMS)).mean())


def _gaussian_case() -> Criterion:
    """Monte Carlo S(x) against its expectation for data N(μ, τ² I) and their exact score."""
    mean, spread, path = torch.tensor([0.2, -0.4, 0.0, 0.5]), 0.3, VP()

    def exact(x: Tensor, t: Tensor) -> Tensor:
        scale, variance = (per_example(part, x) for part in (path.scale(t), path.deviation(t) ** 2))
        return -(x - scale * mean) / (scale**2 * spread**2 + variance)

    x = torch.tensor([[0.5, 0.1, -0.7, 0.5]])
    detector = ExpectedPerturbationScore(exact, np.arange(1, 21) / 100)
    draws = np.concatenate([detector.set_params(random_state=seed).transform(x) for seed in range(DRAWS)])
    levels = torch.as_tensor(detector.levels)
    scale, variance = path.scale(levels), path.deviation(levels) ** 2
    closed = (-(x - mean).double() * (scale / (scale**2 * spread**2 + variance)).mean()).numpy()[0]
    error = np.abs(draws.mean(0) - closed) / (draws.std(0, ddof=1) / np.sqrt(len(draws)))
    statement = (
        "Gaussian data: the Monte Carlo score is within 3 standard errors of its closed form in every coordinate"
    )
    return Criterion(statement, bool(error.max() <= 3), {"largest error, in standard errors": float(error.max())})


def _areas_criterion(trials: list[Trial]) -> Criterion:
    lowest = float(np.min([trial.average for trial in trials]))
    statement = "PGD: AUROC at least 0.9 for every seed and largest level 0.05, 0.1, 0.2"
    return Criterion(statement, lowest >= 0.9, {"lowest AUROC": lowest})


def _gain_criterion(trials: list[Trial]) -> Criterion:
    gain = over_examples([trial.gain for trial in trials])
    return Criterion(
        "PGD: the lowest AUROC over largest levels is above the mean AUROC of a single level (paired by example)",
        gain.low > 0,
        {"gain": gain, "gain, interval over seeds": over_seeds([trial.gain.value for trial in trials])},
    )


def _discrepancy(trials: list[Trial]) -> Criterion:
    apart, alike = (over_seeds([trial.discrepancy[part] for trial in trials]) for part in (0, 1))
    gap = over_seeds([trial.discrepancy[0] - trial.discrepancy[1] for trial in trials])
    statement = "MMD² between natural and attacked inputs is above that between natural and natural"
    return Criterion(statement, gap.low > 0, {"to attacked": apart, "to natural": alike, "difference": gap})


def _kernels(trials: list[Trial]) -> Criterion:
    gaussian, deep = (over_seeds([trial.power[part] for trial in trials]) for part in (0, 1))
    gain = over_seeds([trial.power[1] - trial.power[0] for trial in trials])
    return Criterion(
        "Share of PGD found at 5 % false alarms: the deep kernel, learnt on FGSM, is not below the Gaussian",
        gain.value >= 0,
        {"deep": deep, "Gaussian": gaussian, "difference": gain},
    )


def _table(seeds: tuple[int, ...], trials: list[Trial]) -> Table:
    rows = tuple(
        (seed, largest, *(float(getattr(trial, name)[k]) for name in ("average", "single", "single_redrawn", "barely")))
        for seed, trial in zip(seeds, trials, strict=True)
        for k, largest in enumerate(LARGEST)
    )
    columns = (
        "seed",
        "largest level",
        "AUROC, 20 levels",
        "one level",
        "one level, 20 draws",
        "20 levels, PGD at first success",
    )
    accuracy = float(np.mean([trial.robust_accuracy for trial in trials]))
    caption = f"The attack leaves the classifier an accuracy of {accuracy:.1%}."
    return Table("Detection of PGD on digits by the expected perturbation score", columns, rows, caption=caption)


def _histogram(trial: Trial) -> Histogram:
    low = float(np.quantile(trial.scores["PGD"], 0.01))
    edges = np.linspace(low, max(float(part.max()) for part in trial.scores.values()), 31)
    counts = tuple(
        (name, tuple(map(float, np.histogram(np.clip(part, low, None), edges)[0])))
        for name, part in trial.scores.items()
    )
    return Histogram(
        "Scores of natural and attacked digits (largest level 0.05, first seed)", "-MMD²", tuple(edges.tolist()), counts
    )
