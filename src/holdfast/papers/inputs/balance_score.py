"""balance-score: calibration without bins or true probabilities, by the average gain of a fair bet on the forecast.

True probabilities t of the predicted side follow from p ~ Beta(a, b); outcomes are drawn from them, forecasts q are t
itself, t moved by 0.05 towards certainty or doubt, or t sharpened and blunted by a temperature.  All of these err to
one side, where the balance equals the true calibration error E|t - q|, known by quadrature.  The binned error has 10
equal bins and no debiasing, as in the paper.  A case with errors of opposite signs shows what the balance cannot see
and what `balance_profile` adds.  Last, two classifiers of breast cancers are ranked by both measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv, expit, logit

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import clopper_pearson, paired_difference
from holdfast.core.seeds import numpy_generator
from holdfast.inputs.calibration import balance_profile, balance_score, expected_calibration_error
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="balance-score",
    group="inputs",
    title="Evaluating probability estimates without the true probability: the balance score",
    builds=(
        "holdfast.inputs.calibration.balance_score",
        "holdfast.inputs.calibration.balance_test",
        "holdfast.inputs.calibration.balance_profile",
        "holdfast.inputs.calibration.expected_calibration_error",
        "holdfast.inputs.calibration.brier_parts",
    ),
    claim=(
        "The mean gain of a bettor who trusts a forecast follows its true calibration error, without bins and with "
        "less error than the binned measure, as long as the forecast errs to one side."
    ),
    reference="balance score for probability forecasts",
)

BINS = 10
SHAPES = ((1.0, 1.0), (0.5, 0.5), (5.0, 2.0))
SEEDS = (0,)


def _tempered(temperature: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: expit(logit(np.clip(t, 1e-12, 1 - 1e-12)) / temperature)


#: Forecast for the predicted side from its true probability t in [1/2, 1]; every one errs to one side only.
FORECASTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "truth": lambda t: t,
    "truth + 0.05": lambda t: np.minimum(t + 0.05, 1.0),
    "truth - 0.05": lambda t: np.maximum(t - 0.05, 0.5),
    "temperature 0.7": _tempered(0.7),
    "temperature 1.5": _tempered(1.5),
}


@dataclass(frozen=True)
class Cell:
    """One shape, forecast and sample size: errors |measure - true ECE| of repetitions, and how often 0 was covered."""

    shape: tuple[float, float]
    forecast: str
    n: int
    truth: float
    balance_errors: Float[np.ndarray, " repetitions"]
    binned_errors: Float[np.ndarray, " repetitions"]
    covered: int

    @property
    def advantage(self) -> Estimate:
        """Mean error of the binned measure minus that of the balance; above 0 is for the balance."""
        return paired_difference(self.balance_errors, self.binned_errors)


def check(scale: Scale) -> Outcome:
    """Simulated forecasts, the cancelling case, the one-bin identity and two real classifiers."""
    smoke = scale is Scale.SMOKE
    sizes, repetitions = ((100,), 500) if smoke else ((100, 1000, 10_000), 500)
    shapes = SHAPES[:1] if smoke else SHAPES
    cells = [_simulate(shape, name, n, repetitions) for shape in shapes for name in FORECASTS for n in sizes]
    criteria = [_closer(cells), *_coverage(cells, sizes, repetitions), *_cancelling(3 if smoke else 20), _identity()]
    if not smoke:
        criteria.append(_ranking(20))
    errors = [cell for cell in cells if cell.forecast != "truth" and cell.n <= 1000]
    return Outcome(
        criteria=tuple(criteria),
        ours=_mean(np.concatenate([cell.balance_errors for cell in errors])),
        baseline=_mean(np.concatenate([cell.binned_errors for cell in errors])),
        exhibits=(_table(cells),),
        seeds=SEEDS,
        notes="Moves by 0.05 are applied to the predicted side's probability: moving the probability of class 1 errs "
        "in opposite directions on the two sides, where the balance is blind by construction. Calibrated forecasts are "
        "judged by coverage in (a); there |B| is about half as far from 0 as the binned error (see the table). For "
        "clear errors of one sign the two agree closely from n = 1000 on, and the binned error can be the nearer one "
        "by a little, since its upward bias then makes up for misses.",
    )


def _simulate(shape: tuple[float, float], name: str, n: int, repetitions: int) -> Cell:
    generator = numpy_generator(SEEDS[0], PAPER.key, name, n, str(shape))
    grid = betaincinv(*shape, (np.arange(100_000) + 0.5) / 100_000)
    sides = np.maximum(grid, 1 - grid)
    truth = float(np.mean(np.abs(sides - FORECASTS[name](sides))))
    balance_errors, binned_errors, covered = np.empty(repetitions), np.empty(repetitions), 0
    for repetition in range(repetitions):
        p = generator.beta(*shape, n)
        t = np.maximum(p, 1 - p)
        q, y = FORECASTS[name](t), (generator.random(n) < t).astype(np.int64)
        balance = balance_score(y, q)
        binned = expected_calibration_error(y, q, BINS, debiased=False, strategy="width")
        balance_errors[repetition] = abs(abs(balance.value) - truth)
        binned_errors[repetition] = abs(binned.value - truth)
        covered += balance.low <= 0 <= balance.high
    return Cell(shape, name, n, truth, balance_errors, binned_errors, covered)


def _closer(cells: list[Cell]) -> Criterion:
    asked = [cell for cell in cells if cell.forecast != "truth" and cell.n <= 1000]
    won = sum(cell.advantage.low > 0 for cell in asked)
    weakest = min((cell.advantage for cell in asked), key=lambda advantage: advantage.low)
    return Criterion(
        "(a) For every shape, one-sided error and n <= 1000 the balance is nearer to the true calibration error than "
        "the 10-bin error is, beyond chance",
        won == len(asked),
        {
            "cases": len(asked),
            "won": won,
            "cases at n = 100": sum(cell.n == 100 for cell in asked),
            "won at n = 100": sum(cell.n == 100 and cell.advantage.low > 0 for cell in asked),
            "weakest advantage": weakest,
        },
    )


def _coverage(cells: list[Cell], sizes: tuple[int, ...], repetitions: int) -> list[Criterion]:
    criteria = []
    for n in sizes:
        calibrated = [cell.covered for cell in cells if cell.forecast == "truth" and cell.n == n]
        share = clopper_pearson(sum(calibrated), repetitions * len(calibrated))
        criteria.append(
            Criterion(
                f"(a) Calibrated forecasts, n = {n}: the 95 % interval covers 0 in 93 to 97 % of repetitions",
                0.93 <= share.value <= 0.97,
                {"covered": share},
            )
        )
    return criteria


def _cancelling(seeds: int) -> list[Criterion]:
    """Over-confident by 0.1 below q = 0.75, under-confident by 0.1 above: the true ECE is 0.1."""
    generator = numpy_generator(SEEDS[0], PAPER.key, "cancelling")
    balances, recovered = [], []
    for _ in range(seeds):
        q = generator.uniform(0.6, 0.9, 10_000)
        y = (generator.random(10_000) < q + np.where(q > 0.75, 0.1, -0.1)).astype(np.int64)
        profile = balance_profile(y, q)
        balances.append(abs(profile.balance.value))
        recovered.append(profile.lower_bound.value / 0.1)
    return [
        Criterion(
            "(b) Errors that cancel: the balance sees less than a tenth of the true error",
            float(np.mean(balances)) < 0.01,
            {"mean |B|": float(np.mean(balances)), "true ECE": 0.1},
        ),
        Criterion(
            "(b) Errors that cancel: the profile recovers at least 80 % of the true error",
            float(np.mean(recovered)) >= 0.8,
            {"share recovered": _mean(np.array(recovered))},
        ),
    ]


def _identity() -> Criterion:
    generator = numpy_generator(SEEDS[0], PAPER.key, "identity")
    worst = 0.0
    for n in (2, 10, 1000):
        p, y = generator.random(n), generator.integers(0, 2, n)
        one_bin = expected_calibration_error(y, p, 1, debiased=False).value
        worst = max(worst, abs(one_bin - abs(balance_score(y, p).value)))
    return Criterion("(c) The error with one bin is |B| to 1e-12", worst <= 1e-12, {"largest difference": worst})


def _ranking(splits: int) -> Criterion:
    """Logistic regression against boosted trees; a case is clear when their debiased errors differ by over 0.01."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = load_breast_cancer(return_X_y=True)
    clear = agree = 0
    for split in range(splits):
        train, test, y_train, y_test = train_test_split(X, y, test_size=0.5, stratify=y, random_state=split)
        measures = []
        for model in (
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
            GradientBoostingClassifier(random_state=split),
        ):
            p = model.fit(train, y_train).predict_proba(test)[:, 1]
            measures.append((abs(balance_score(y_test, p).value), expected_calibration_error(y_test, p, BINS).value))
        (balance_a, error_a), (balance_b, error_b) = measures
        if abs(error_a - error_b) > 0.01:
            clear += 1
            agree += (balance_a > balance_b) == (error_a > error_b)
    numbers: dict[str, Estimate | float] = {"splits": splits, "clear": clear, "agree": agree}
    return Criterion(
        "(d) Breast cancer: of splits where the debiased errors of two classifiers differ clearly, |B| ranks them "
        "alike in at least 80 %",
        clear > 0 and agree >= 0.8 * clear,
        numbers,
    )


def _mean(values: Float[np.ndarray, " n"]) -> Estimate:
    return paired_difference(np.zeros(len(values)), values)


def _table(cells: list[Cell]) -> Table:
    return Table(
        "Distance from the true calibration error",
        ("p ~ Beta", "forecast", "n", "true error", "balance", "10 bins"),
        tuple(
            (
                f"({cell.shape[0]:g}, {cell.shape[1]:g})",
                cell.forecast,
                cell.n,
                cell.truth,
                _mean(cell.balance_errors),
                _mean(cell.binned_errors),
            )
            for cell in cells
        ),
        caption="Mean over repetitions of | measure - true error |.",
    )
