"""Check of `window-cascade`: two small forests on Fashion-MNIST, at a risk of five per cent.

Images are averaged to 14 x 14; members are random forests of ten trees with leaves of at least three examples, which
share the 6000 training images and differ in their seed; thresholds and windows come from 4000 validation images, all
that is reported from 8000 test images.  Fully grown trees, whose votes give scores of ten values, stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.ensemble import RandomForestClassifier

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Table
from holdfast.core.intervals import bootstrap, clopper_pearson
from holdfast.core.seeds import derive_seed, numpy_generator
from holdfast.inputs.cascades import CascadeResult, CoverageAtRisk, WindowCascade, cost_curve
from holdfast.inputs.selective import risk_coverage
from holdfast.papers import datasets
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="window-cascade",
    group="inputs",
    title="Window-Based Early-Exit Cascades for Uncertainty Estimation: When Deep Ensembles are More Efficient than "
    "Single Models",
    builds=(
        "holdfast.inputs.cascades.window.WindowCascade",
        "holdfast.inputs.cascades.cost.cost_curve",
        "holdfast.inputs.cascades.stream.stream",
    ),
    claim=(
        "Asking more members of an ensemble only where the first member's score lies near the decision threshold keeps "
        "most of the ensemble's gain in selective prediction at little more than the cost of one member."
    ),
    reference="Xia and Bouganis, ICCV 2023",
)

RISK = 0.05
HALF_WIDTH = 0.1
CONTRAST = 0.6
LEAF = 3
SHIFTED = {"adapted": True, "fixed": False}

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Counting:
    """A forest that counts the rows it is asked about."""

    def __init__(self, forest: RandomForestClassifier) -> None:
        self.forest, self.classes_, self.rows = forest, forest.classes_, 0

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        self.rows += len(X)
        return self.forest.predict_proba(X)


@dataclass(frozen=True, eq=False)
class Trial:
    """Test results of one pair of forests, by name, and whether the identities held."""

    results: dict[str, CascadeResult]
    shifted: dict[str, CascadeResult]
    lazy: bool
    whole: bool
    alone: bool
    losses: dict[str, Float[np.ndarray, " n"]]


def check(scale: Scale) -> Outcome:
    """(a) gain and cost of the window, (b) limits, (c) laziness, (d) contrast, (e) the curve over half-widths."""
    full = scale is Scale.FULL
    seeds = (0, 1, 2) if full else (0,)
    data = _data() if full else _digits()
    trials = [_trial(seed, data) for seed in seeds]
    criteria = [*_identities(trials)]
    if not full:
        return Outcome(tuple(criteria), seeds=seeds)
    share, advantage, coverages = _gains(trials)
    costs = _costs(trials)
    tied = [_trial(seed, data, leaf=1) for seed in seeds]
    of_tied, costs_of_tied = _coverages(tied), _costs(tied)
    worst = max(trial.results["window"].cost for trial in trials)
    criteria = [
        Criterion(
            f"the window keeps at least 0.6 of the ensemble's gain in coverage at {RISK:.0%} risk, and costs at most "
            "1.25 members",
            share.value >= 0.6 and worst <= 1.25,
            {"share of the gain": share, "highest cost": worst},
        ),
        Criterion(
            "the window covers more than a one-sided threshold of no less cost does",
            advantage.low > 0 and costs["one-sided"] >= costs["window"],
            {"difference": advantage, "cost, window": costs["window"], "cost, one-sided": costs["one-sided"]},
        ),
        *criteria,
        _shifted(trials),
    ]
    table = Table(
        f"Coverage at {RISK:.0%} risk, means over {len(seeds)} pairs of forests",
        ("decision by", "cost in members", "coverage", "cost, fully grown trees", "coverage, fully grown trees"),
        tuple((name, costs[name], coverages[name], costs_of_tied[name], of_tied[name]) for name in costs),
        caption="Intervals: bootstrap over test images, forests as they are.",
    )
    return Outcome(
        tuple(criteria),
        coverages["window"],
        coverages["single"],
        (table, _curves(data)),
        seeds,
        "The one-sided threshold is the lowest that costs at least what the window costs.  Ten fully grown trees vote "
        "in tenths: equal scores are never split, so windows hold whole levels and the cost cannot be set finely (last "
        f"two columns; contrast x {CONTRAST} then makes the adapted window pass on "
        + ", ".join(f"{(trial.shifted['adapted'].stages == 2).mean():.2f}" for trial in tied)
        + ").",
    )


def _data() -> Data:
    """Training, validation and test images (n, 196), each followed by labels."""
    x, y = datasets.fashion_mnist("train", 10_000)
    x_test, y_test = datasets.fashion_mnist("test", 8000)
    small, small_test = (
        part.reshape(len(part), 14, 2, 14, 2).mean(axis=(2, 4)).reshape(len(part), -1) for part in (x, x_test)
    )
    return small[:6000], y[:6000], small[6000:], y[6000:], small_test, y_test


def _digits() -> Data:
    x, y = datasets.digits()
    flat = x.reshape(len(x), -1)
    return flat[:600], y[:600], flat[600:1200], y[600:1200], flat[1200:], y[1200:]


def _trial(seed: int, data: Data, leaf: int = LEAF) -> Trial:
    x, y, x_valid, y_valid, x_test, y_test = data
    forests = _forests(seed, x, y, leaf)
    counted = [Counting(forest) for forest in forests]
    cascade = WindowCascade(counted, task=CoverageAtRisk(RISK), half_width=HALF_WIDTH).fit(x_valid, y_valid)
    for member in counted:
        member.rows = 0
    results = {"window": cascade.run(x_test)}
    lazy = [member.rows for member in counted] == [len(x_test), int((results["window"].stages == 2).sum())]
    others = {"single": {"half_width": 0.0}, "ensemble": {"half_width": 0.5}}
    for name, change in others.items():
        results[name] = _fitted(forests, x_valid, y_valid, **change).run(x_test)
    results["one-sided"] = _one_sided(forests, x_valid, y_valid, x_test, results["window"].cost)
    first, second = (forest.predict_proba(x_test) for forest in forests)
    darker = (x_test * CONTRAST).astype(x_test.dtype)
    shifted = {name: _fitted(forests, x_valid, y_valid, adapt=adapt).run(darker) for name, adapt in SHIFTED.items()}
    return Trial(
        results,
        shifted,
        lazy,
        bool(np.abs(results["ensemble"].probabilities - (first + second) / 2).max() < 1e-12),
        bool(np.array_equal(results["single"].probabilities, first)),
        {name: (result.probabilities.argmax(1) != y_test).astype(np.float64) for name, result in results.items()},
    )


def _forests(seed: int, x: np.ndarray, y: Int[np.ndarray, " n"], leaf: int) -> list[RandomForestClassifier]:
    states = [derive_seed(seed, PAPER.key, member) % 2**32 for member in range(2)]
    return [RandomForestClassifier(10, min_samples_leaf=leaf, random_state=state).fit(x, y) for state in states]


def _fitted(forests: list[RandomForestClassifier], x: np.ndarray, y: np.ndarray, **change: object) -> WindowCascade:
    settings = {"task": CoverageAtRisk(RISK), "half_width": HALF_WIDTH, **change}
    return WindowCascade(forests, **settings).fit(x, y)


def _one_sided(
    forests: list[RandomForestClassifier], x: np.ndarray, y: np.ndarray, x_test: np.ndarray, cost: float
) -> CascadeResult:
    """The narrowest one-sided cascade that costs at least `cost` on the test images."""
    for half_width in np.linspace(HALF_WIDTH / 2, 0.5, 91):
        result = _fitted(forests, x, y, half_width=float(half_width), direction="below").run(x_test)
        if result.cost >= cost:
            break
    return result


def _covered(scores: np.ndarray, losses: np.ndarray) -> float:
    curve = risk_coverage(scores, losses)
    return float(curve.coverage[curve.risk <= RISK].max(initial=0.0))


def _gains(trials: list[Trial]) -> tuple[Estimate, Estimate, dict[str, Estimate]]:
    """Share of the ensemble's gain that the window keeps, its lead on one-sided exit, and mean coverages."""
    names = list(trials[0].results)
    scores = np.stack([[trial.results[name].scores for name in names] for trial in trials]).transpose(2, 0, 1)
    losses = np.stack([[trial.losses[name] for name in names] for trial in trials]).transpose(2, 0, 1)

    def coverage(name: str, s: np.ndarray, loss: np.ndarray) -> float:
        column = names.index(name)
        return float(np.mean([_covered(s[:, trial, column], loss[:, trial, column]) for trial in range(len(trials))]))

    def share(s: np.ndarray, loss: np.ndarray) -> float:
        single = coverage("single", s, loss)
        return (coverage("window", s, loss) - single) / (coverage("ensemble", s, loss) - single)

    def lead(s: np.ndarray, loss: np.ndarray) -> float:
        return coverage("window", s, loss) - coverage("one-sided", s, loss)

    def resampled(statistic: object, name: str) -> Estimate:
        return bootstrap(statistic, scores, losses, generator=numpy_generator(0, PAPER.key, name), resamples=500)  # type: ignore[arg-type]

    each = {name: resampled(lambda s, loss, name=name: coverage(name, s, loss), name) for name in names}
    return resampled(share, "share"), resampled(lead, "lead"), each


def _coverages(trials: list[Trial]) -> dict[str, float]:
    return {
        name: float(np.mean([_covered(trial.results[name].scores, trial.losses[name]) for trial in trials]))
        for name in trials[0].results
    }


def _costs(trials: list[Trial]) -> dict[str, float]:
    return {name: float(np.mean([trial.results[name].cost for trial in trials])) for name in trials[0].results}


def _identities(trials: list[Trial]) -> list[Criterion]:
    return [
        Criterion("a half-width of 0.5 is the whole ensemble", all(trial.whole for trial in trials)),
        Criterion("a half-width of 0 is the first member alone", all(trial.alone for trial in trials)),
        Criterion("the second member is run on what the window holds and on nothing else", all(t.lazy for t in trials)),
    ]


def _shifted(trials: list[Trial]) -> Criterion:
    passed = {
        name: [clopper_pearson(int((t.shifted[name].stages == 2).sum()), len(t.shifted[name].stages)) for t in trials]
        for name in SHIFTED
    }
    numbers = {f"{name}, pair {i}": share for name, shares in passed.items() for i, share in enumerate(shares)}
    return Criterion(
        f"with contrast x {CONTRAST} the adapted window passes on between 0.15 and 0.25 of the images",
        all(0.15 <= share.value <= 0.25 for share in passed["adapted"]),
        numbers,
    )


def _curves(data: Data) -> Curve:
    x, y, x_valid, y_valid, x_test, y_test = data
    forests = _forests(0, x, y, LEAF)
    lines = {"window": "both", "one-sided threshold": "below"}
    series = tuple(
        cost_curve(
            WindowCascade(forests, task=CoverageAtRisk(RISK), direction=direction),
            (x_valid, y_valid),
            (x_test, y_test),
        ).series(name)
        for name, direction in lines.items()
    )
    return Curve(
        "What the second forest gains for what it costs",
        "mean cost, in members",
        f"coverage at {RISK:.0%} risk",
        series,
        "First pair of forests, half-widths from 0 to 0.5; bands are bootstrap intervals.",
    )
