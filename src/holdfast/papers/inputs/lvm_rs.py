"""Check of `lvm-rs`: margins of simplex maps against votes on the same draws, slopes, coverage, and what t trades."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Cell, Curve, Series, Table
from holdfast.core.intervals import bootstrap, clopper_pearson
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.smoothing.gaussian import Smoothed, SmoothedCertificate
from holdfast.inputs.smoothing.lvm import MarginSmoothed, default_maps, smoothed_lipschitz
from holdfast.inputs.smoothing.margins import Moments, map_radii, margin_ends, margin_radius, moments
from holdfast.inputs.smoothing.simplex import Kind, SimplexMap
from holdfast.papers import datasets
from holdfast.papers.bench_models.fitting import fit, perceptron
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="lvm-rs",
    group="inputs",
    title="The Lipschitz-variance-margin tradeoff for enhanced randomized smoothing",
    builds=(
        "holdfast.inputs.smoothing.lvm.MarginSmoothed",
        "holdfast.inputs.smoothing.lvm.smoothed_lipschitz",
        "holdfast.inputs.smoothing.lvm.bernstein_radius",
        "holdfast.inputs.smoothing.simplex.SimplexMap",
    ),
    claim=(
        "Averaging a simplex map of the logits with a variance-aware bound, instead of counting votes, certifies "
        "larger radii of a model as it is, from the same noisy copies, and the more so the larger the noise."
    ),
)

TRAINED_AT, SIGMAS, SEEDS = 0.5, (0.5, 1.0), (0, 1, 2)
POINTS, DRAWS_FOR_MAP, DRAWS, ERROR = 150, 400, 5000, 1e-3
SOFT: tuple[Kind, ...] = ("softmax", "sparsemax")
#: Votes taken as means: what is left of the gain when the map is all but a vote.
NEARLY_VOTES = SimplexMap("sparsemax", 1e7)
#: The coverage experiment: three classes, logits linear in one number, looked at where two of them compete.
CLASSES, AT, COVERAGE_SIGMA, COVERAGE_ERROR, COVERAGE_DRAWS = 3, 0.7, 0.5, 0.05, 400


def check(scale: Scale) -> Outcome:
    """(a) slopes against quadrature, (b) coverage, and in full (c) certified radii on digits."""
    full = scale is Scale.FULL
    coverage, notes = _coverage(2000 if full else 100)
    criteria = [_slopes(), _limits(), coverage]
    if not full:
        return Outcome(tuple(criteria), seeds=(0,))
    trials = {sigma: [_trial(sigma, seed) for seed in SEEDS] for sigma in SIGMAS}
    gains = {sigma: _gain(found) for sigma, found in trials.items()}
    for sigma, gain in gains.items():
        criteria.append(
            Criterion(
                f"sigma {sigma:g}: the average certified radius gains over votes on the same draws (paired 95 % "
                "interval above 0)",
                gain.low > 0,
                {"gain": gain, **{name: _mean(trials[sigma], name) for name in ("votes", "margins")}},
            )
        )
    criteria.append(
        Criterion(
            "the gain is larger at sigma 1 than at sigma 0.5 (intervals apart)",
            gains[1.0].low > gains[0.5].high,
            {f"gain at sigma {sigma:g}": gain for sigma, gain in gains.items()},
        )
    )
    ours, baseline = (_mean(trials[1.0], name) for name in ("margins", "votes"))
    exhibits = (_table(trials, gains), *_tradeoff())
    notes = (
        f"Digits, perceptrons of two hidden layers of 64 trained with noise {TRAINED_AT}; {POINTS} test points, "
        f"{DRAWS_FOR_MAP} draws for map and label, {DRAWS} to certify, alpha {ERROR:g}, one of {len(default_maps())} "
        f"maps an input. ours and baseline are at sigma 1. {notes}"
    )
    return Outcome(tuple(criteria), ours, baseline, exhibits, SEEDS, notes)


def _slopes() -> Criterion:
    """The steepest smoothing of an L-Lipschitz function into [0, 1] is that of a ramp."""
    worst = 0.0
    for lipschitz in (0.01, 0.3, 1.0, 4.0, 50.0):
        for sigma in (0.12, 0.5, 1.0):
            half = min(0.5 / lipschitz, 9 * sigma)
            ramp = lipschitz * quad(norm(scale=sigma).pdf, -half, half, epsabs=1e-12)[0]
            worst = max(worst, abs(smoothed_lipschitz(lipschitz, sigma) - ramp))
    statement = "the smoothed Lipschitz constant is that of a ramp, by quadrature, to 1e-8"
    return Criterion(statement, worst <= 1e-8, {"largest difference": worst})


def _limits() -> Criterion:
    steep = abs(smoothed_lipschitz(1e7, 0.5) * 0.5 * math.sqrt(2 * math.pi) - 1)
    flat = abs(smoothed_lipschitz(1e-7, 0.5) / 1e-7 - 1)
    statement = "its limits are 1 / (sigma sqrt(2 pi)) for L to infinity and L for L to 0, to 1e-6 relatively"
    return Criterion(statement, max(steep, flat) <= 1e-6, {"steep": steep, "flat": flat})


def _coverage(runs: int) -> tuple[Criterion, str]:
    """How often a radius exceeds what the true means give, at alpha = 0.05."""
    temperatures = np.geomspace(0.1, 50, 12).tolist()
    maps = (SimplexMap("hardmax"), *(SimplexMap(kind, t) for kind in SOFT for t in temperatures))
    true = _true_radii(maps)
    smoothed = MarginSmoothed(_linear, COVERAGE_SIGMA, maps, batch=4000)
    point = torch.full((runs, 1), AT, dtype=torch.float64)
    found = smoothed.certify(
        point,
        n0=200,
        n=COVERAGE_DRAWS,
        alpha=COVERAGE_ERROR,
        generator=torch_generator(0, PAPER.key, "coverage"),
    )
    wrong = clopper_pearson(int((found.radius.numpy() > true[found.map_index.numpy()]).sum()), runs)
    published, votes, others = _published(maps, true, runs)
    hidden = " Bernstein bounds are wider than they need be, which hides the missing correction here."
    notes = (
        "Taking the best of all maps on the certification draws, as published, has no proof; in the coverage "
        f"experiment (alpha {COVERAGE_ERROR:g}) it was wrong in {published} of runs, votes alone in {votes}, the other "
        f"maps in {others}.{hidden if published.low <= COVERAGE_ERROR else ''}"
    )
    return (
        Criterion(
            "linear logits with means known by quadrature: with the map chosen on other draws, a radius at alpha = "
            "0.05 exceeds the true one no more often",
            wrong.value <= COVERAGE_ERROR,
            {"wrong": wrong, "wrong, best of all maps": published, "wrong, votes": votes, "wrong, other maps": others},
        ),
        notes,
    )


def _linear(x: Float[Tensor, "batch 1"]) -> Tensor:
    slope = torch.linspace(-3, 3, CLASSES, dtype=torch.float64)
    return x * slope - slope.square() / 4


def _true_radii(maps: tuple[SimplexMap, ...]) -> np.ndarray:
    """Radius that the true means give through every map, by quadrature on a fine grid."""
    grid = torch.linspace(-8, 8, 80_001, dtype=torch.float64)
    weight = torch.exp(-grid.square() / 2)
    logits, weight = _linear((AT + COVERAGE_SIGMA * grid)[:, None]), (weight / weight.sum())[:, None]
    means = np.stack([(one(logits) * weight).sum(0).numpy() for one in maps])
    lower, upper = margin_ends(means, means, means.argmax(1))
    # Votes certify by the label's own probability.
    upper = np.where([one.kind == "hardmax" for one in maps], 1 - lower, upper)
    return margin_radius(lower, upper, COVERAGE_SIGMA)


def _published(maps: tuple[SimplexMap, ...], true: np.ndarray, runs: int) -> tuple[Estimate, Estimate, Estimate]:
    """Share of runs in which the best of all maps, votes alone, and the best of the other maps exceed their truth."""
    generator = torch_generator(0, PAPER.key, "published")
    wrong = np.zeros((3, runs), dtype=bool)
    for run in range(runs):
        noise = torch.randn(COVERAGE_DRAWS, 1, generator=generator, dtype=torch.float64)
        found = moments(maps, _linear(AT + COVERAGE_SIGMA * noise))
        radii = map_radii(maps, found, COVERAGE_DRAWS, COVERAGE_SIGMA, COVERAGE_ERROR)[0]
        over = (radii > true) & (radii > 0)
        wrong[:, run] = over[radii.argmax()], over[0], over[1 + radii[1:].argmax()]
    best, votes, others = (clopper_pearson(int(row.sum()), runs) for row in wrong)
    return best, votes, others


@dataclass(frozen=True)
class Trial:
    """Certified radii, wrong answers 0, of the same points from the same certification draws."""

    votes: np.ndarray
    margins: np.ndarray
    vote_margins: np.ndarray
    chosen: np.ndarray


def _trial(sigma: float, seed: int) -> Trial:
    model, x, y = _model(seed)

    def stream() -> torch.Generator:
        # The same stream and the same n0 each time: all count the same noisy copies.
        return torch_generator(seed, PAPER.key, "draws", str(sigma))

    counts = DRAWS_FOR_MAP, DRAWS, ERROR
    votes = Smoothed(model, sigma, 10).certify(x, *counts, generator=stream())
    margins = MarginSmoothed(model, sigma).certify(x, *counts, generator=stream())
    hard = MarginSmoothed(model, sigma, (NEARLY_VOTES,)).certify(x, *counts, generator=stream())
    return Trial(_counted(votes, y), _counted(margins, y), _counted(hard, y), margins.map_index.numpy())


def _counted(found: SmoothedCertificate, y: Tensor) -> np.ndarray:
    return torch.where(found.label == y, found.radius, 0.0).numpy()


def _model(seed: int) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """A perceptron trained with noise, and the test points of its split."""
    x, y = (torch.from_numpy(part) for part in datasets.digits())
    order = torch.randperm(len(x), generator=torch_generator(seed, PAPER.key, "split"))
    stream = torch_generator(seed, PAPER.key, "noise")
    train, test = order[:1500], order[1500 : 1500 + POINTS]
    model = fit(
        perceptron(64, 64, 64, 10),
        x[train],
        y[train],
        lambda z: z + TRAINED_AT * torch.randn(z.shape, generator=stream),
        PAPER.key,
        seed=seed,
        epochs=40,
    )
    return model, x[test], y[test]


def _gain(trials: list[Trial]) -> Estimate:
    difference = np.concatenate([trial.margins - trial.votes for trial in trials])
    return bootstrap(np.mean, difference, generator=numpy_generator(0, PAPER.key, "gain"))


def _mean(trials: list[Trial], name: str) -> Estimate:
    radii = np.concatenate([getattr(trial, name) for trial in trials])
    return bootstrap(np.mean, radii, generator=numpy_generator(0, PAPER.key, "mean", name))


def _table(trials: dict[float, list[Trial]], gains: dict[float, Estimate]) -> Table:
    kinds = [one.kind for one in default_maps()]
    rows: list[tuple[Cell, ...]] = []
    for sigma, found in trials.items():
        picked = np.array([kinds[place] for trial in found for place in trial.chosen])
        radii = (_mean(found, name) for name in ("votes", "vote_margins", "margins"))
        certified = (float(np.mean([getattr(t, name) > 0 for t in found])) for name in ("votes", "margins"))
        shares = (float((picked == kind).mean()) for kind in ("hardmax", *SOFT))
        rows.append((f"{sigma:g}", *radii, gains[sigma], *certified, *shares))
    return Table(
        "Average certified radius on the same draws",
        (
            "sigma",
            "votes",
            "votes as means",
            "margins",
            "gain",
            "certified by votes",
            "certified by margins",
            "chose votes",
            "chose softmax",
            "chose sparsemax",
        ),
        tuple(rows),
        caption="Wrong and abstained answers count 0. Votes as means: sparsemax(1e7), all but votes, with the other "
        "classes bounded too; what it gains comes from bounding them, not from a smoother map.",
    )


def _tradeoff() -> tuple[Curve, Table]:
    """What the temperature trades, at sigma 1 on the first seed's points."""
    model, x, _ = _model(0)
    temperatures = np.geomspace(0.1, 50, 15).tolist()
    maps = tuple(SimplexMap(kind, t) for kind in SOFT for t in temperatures)
    generator = torch_generator(0, PAPER.key, "tradeoff")
    radius, margin, spread = (np.zeros(len(maps)) for _ in range(3))
    points = x[:50]
    for point in points:
        noise = torch.randn((1000, *point.shape), generator=generator)
        with torch.no_grad():
            found = moments(maps, model(point + noise).double())
        radius += np.maximum(map_radii(maps, found, DRAWS, 1.0, ERROR)[0], 0) / len(points)
        lower, upper = margin_ends(found.mean, found.mean, found.label)
        margin += (lower - upper) / len(points)
        spread += np.sqrt(_of_label(found)) / len(points)
    series = tuple(
        Series(kind, tuple(temperatures), tuple(radius[[one.kind == kind for one in maps]].tolist())) for kind in SOFT
    )
    rows = tuple(
        (str(one), float(margin[place]), float(spread[place]), one.margin_lipschitz, float(radius[place]))
        for place, one in enumerate(maps)
        if place % len(temperatures) % 2 == 0
    )
    columns = ("map", "mean margin", "mean deviation of the label", "slope for logits of slope 1", "mean radius")
    return (
        Curve("What the temperature trades", "temperature", "mean certified radius", series, x_log=True),
        Table("Margin against variance and slope", columns, rows, caption="Sigma 1, 50 points, first seed."),
    )


def _of_label(found: Moments) -> np.ndarray:
    return found.variance[np.arange(len(found.label)), found.label]
