"""Check of `logit-gap-scaling`: exponents of adversarial error, their prediction without attacks, gap densities.

Answers are decided in float64: at radii of 1e-4 the logit gaps that decide them are lost in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from holdfast.core.exhibit import Curve, Series, Table
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.attack.gradient import FGSM, PGD
from holdfast.inputs.attack.scaling import (
    Attack,
    ErrorCurve,
    adversarial_error_curve,
    gap_density,
    predict_small_radius_error,
)
from holdfast.papers import datasets
from holdfast.papers.bench_models import empty, load
from holdfast.papers.bench_models.networks import initialise
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale
from holdfast.threats.balls import Linf

PAPER = Paper(
    key="logit-gap-scaling",
    group="inputs",
    title="Intriguing Properties of Adversarial Examples",
    builds=(
        "holdfast.inputs.attack.scaling.adversarial_error_curve",
        "holdfast.inputs.attack.scaling.logit_gaps",
        "holdfast.inputs.attack.scaling.gap_density",
        "holdfast.inputs.attack.scaling.predict_small_radius_error",
        "holdfast.inputs.attack.scaling.EntropyRegularized",
    ),
    claim=(
        "Adversarial error grows as a power of the radius with an exponent near 1, whatever the data, the model or its "
        "training, because the gap between the two largest logits has a finite density at zero."
    ),
    reference="Cubuk, Zoph, Schoenholz and Le, 2017 (arXiv:1711.02846)",
)

SEED = 0
BAND = (0.8, 1.3)
RADII = np.geomspace(1e-4, 3e-2, 8)
MARGIN = "PGD-5 on the margin"
COUNTED = 20  # changed answers; below, one example more or less is a miss of 5% or more
CLASSES = 10
Setting = tuple[str, nn.Module, Tensor]


def check(scale: Scale) -> Outcome:
    """Exponents of FGSM and PGD-5 on every setting, the gradient-only prediction, and the mean-field gap densities."""
    settings = _settings(scale)
    curves: dict[tuple[str, str], ErrorCurve] = {}
    predicted: dict[str, np.ndarray] = {}
    for name, model, x in settings:
        for attack_name, factory in _attacks(model).items():
            curves[name, attack_name] = adversarial_error_curve(
                model, x, factory, RADII.tolist(), generator=numpy_generator(SEED, PAPER.key, name, attack_name)
            )
        predicted[name] = predict_small_radius_error(model, x, RADII.tolist(), Linf(1.0), (0.0, 1.0))
    draws = 1_000_000 if scale is Scale.FULL else 50_000
    lead = settings[0][0]
    return Outcome(
        criteria=(_exponents(curves), *_predictions(curves, predicted), *_densities(draws)),
        ours=curves[lead, "PGD-5"].exponent,
        exhibits=(_figure(curves, predicted), _table(curves)),
        seeds=(SEED,),
        notes="Error is counted against the model's own answer to the clean input, so it is 0 at radius 0.  Points "
        "with error outside 0.2% to 30% are left out of the fit, which is unweighted, so a few changed answers at the "
        "smallest radius move it.  On nearly equal logits cross-entropy does not climb towards the nearest answer, so "
        "the prediction is held against PGD-5 on the margin as well.  Not re-tested here: the architecture search, and "
        "whether the entropy penalty helps against strong attacks.",
    )


def _settings(scale: Scale) -> list[Setting]:
    """(name, model, inputs) in float64."""
    if scale is Scale.SMOKE:
        generator = torch_generator(SEED, PAPER.key, "smoke")
        linear = nn.utils.skip_init(nn.Linear, 64, CLASSES, dtype=torch.float64).eval()
        initialise(linear, generator)
        return [("random linear model, noise", linear, torch.rand((8000, 64), generator=generator).double())]
    images = torch.from_numpy(datasets.fashion_mnist("test", 4000)[0]).double()
    untrained = empty("cnn")
    initialise(untrained, torch_generator(SEED, PAPER.key, "untrained"))
    noise = torch.rand((4000, 1, 28, 28), generator=torch_generator(SEED, PAPER.key, "noise")).double()
    return [
        ("standard CNN", load("cnn").double(), images),
        ("adversarially trained CNN", load("cnn_linf").double(), images),
        ("untrained CNN, noise", untrained.double().eval(), noise),
        ("logistic regression, 8x8 digits", *_regression(datasets.digits(), datasets.digits()[0])),
        ("logistic regression, MNIST", *_regression(datasets.mnist("train", 5000), datasets.mnist("test", 4000)[0])),
    ]


def _regression(train: tuple[np.ndarray, np.ndarray], inputs: np.ndarray) -> tuple[nn.Module, Tensor]:
    from sklearn.linear_model import LogisticRegression

    x, y = train
    fitted = LogisticRegression(C=0.1, max_iter=200).fit(x.reshape(len(x), -1).astype(np.float64), y)
    linear = nn.utils.skip_init(nn.Linear, fitted.coef_.shape[1], CLASSES, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(fitted.coef_))
        linear.bias.copy_(torch.from_numpy(fitted.intercept_))
    return linear.eval(), torch.from_numpy(inputs.reshape(len(inputs), -1)).double()


def _attacks(model: nn.Module) -> dict[str, Callable[[float], Attack]]:
    """Attacks that climb on a float32 copy of `model`, several times as fast; what they return is judged in float64."""
    single = deepcopy(model).float()

    def cast(attack: Attack) -> Attack:
        return lambda _, x, y, valid: attack(single, x.float(), y, valid=valid).double()

    def fgsm(radius: float) -> Attack:
        return cast(FGSM(Linf(radius)))

    def pgd(radius: float, loss: str = "ce") -> Attack:
        stream = torch_generator(SEED, PAPER.key, loss, str(radius))
        return cast(partial(PGD(Linf(radius), steps=5, loss=loss), generator=stream))

    return {"FGSM": fgsm, "PGD-5": pgd, MARGIN: partial(pgd, loss="margin")}


def _exponents(curves: dict[tuple[str, str], ErrorCurve]) -> Criterion:
    estimates = {f"{name}, {attack}": curve.exponent for (name, attack), curve in curves.items()}
    return Criterion(
        f"every exponent's 95% interval lies within {list(BAND)}",
        all(BAND[0] <= estimate.low and estimate.high <= BAND[1] for estimate in estimates.values()),
        estimates,
    )


def _predictions(curves: dict[tuple[str, str], ErrorCurve], predicted: dict[str, np.ndarray]) -> list[Criterion]:
    """Against the attack the theory is about (it climbs the margin), and against the usual one (cross-entropy)."""
    criteria = []
    for attack in (MARGIN, "PGD-5"):
        worst: dict[str, float] = {}
        for name, error in predicted.items():
            measured = curves[name, attack].error
            told = (measured < 0.10) & (curves[name, attack].flipped.sum(axis=1) >= COUNTED)
            worst[name] = float(np.abs(error[told] / measured[told] - 1).max(initial=0.0))
        statement = (
            f"gaps and gradients alone predict the error under {attack} within 20% wherever it is below 10% and at "
            f"least {COUNTED} answers changed"
        )
        numbers = {f"largest relative miss, {name}": gap for name, gap in worst.items()}
        criteria.append(Criterion(statement, all(gap <= 0.20 for gap in worst.values()), numbers))
    return criteria


def _densities(draws: int) -> tuple[Criterion, Criterion]:
    logits = np.sort(numpy_generator(SEED, PAPER.key, "gaps").standard_normal((draws, CLASSES)), axis=1)
    grid = np.linspace(0, 12, 601)
    small = np.geomspace(1e-3, 1e-2, 9)
    chances: dict[str, float] = {}
    slopes: dict[str, float] = {}
    for j in (2, 3, 4):
        gaps = logits[:, -1] - logits[:, -j]
        density = gap_density(CLASSES, j, grid)
        steps = (density[1:] + density[:-1]) / 2 * np.diff(grid)
        cumulative = np.concatenate([[0.0], np.cumsum(steps)])
        chances[f"p-value, j={j}"] = float(stats.kstest(gaps, lambda d, c=cumulative: np.interp(d, grid, c)).pvalue)
        slopes[f"slope, j={j}"] = float(np.polyfit(np.log(small), np.log(gap_density(CLASSES, j, small)), 1)[0])
    return (
        Criterion(
            f"the analytic gap density agrees with {draws:,} draws of 10 Gaussian logits (Kolmogorov-Smirnov p > 0.01)",
            all(chance > 0.01 for chance in chances.values()),
            chances,
        ),
        Criterion(
            "near zero the density of the gap to the j-th logit grows as d^(j-2)",
            all(abs(slope - (j - 2)) < 0.05 for j, slope in zip((2, 3, 4), slopes.values(), strict=True)),
            slopes,
        ),
    )


def _figure(curves: dict[tuple[str, str], ErrorCurve], predicted: dict[str, np.ndarray]) -> Curve:
    series: list[Series] = []
    for name, error in predicted.items():
        measured = curves[name, MARGIN]
        series.append(_positive(f"{name}, {MARGIN}", measured.radii, measured.error))
        series.append(_positive(f"{name}, predicted", measured.radii, error))
    return Curve(
        "Adversarial error against radius",
        "radius (Linf)",
        "share of answers changed",
        tuple(series),
        x_log=True,
        y_log=True,
        caption="A power law is a straight line here, and its exponent the slope.",
    )


def _positive(name: str, radii: Sequence[float] | np.ndarray, error: np.ndarray) -> Series:
    kept = np.asarray(error) > 0
    return Series(name, tuple(map(float, np.asarray(radii)[kept])), tuple(map(float, error[kept])))


def _table(curves: dict[tuple[str, str], ErrorCurve]) -> Table:
    return Table(
        "Fitted power laws",
        ("setting", "attack", "exponent", "prefactor", "points"),
        tuple(
            (name, attack, curve.exponent, curve.prefactor, int(curve.fitted.sum()))
            for (name, attack), curve in curves.items()
        ),
    )
