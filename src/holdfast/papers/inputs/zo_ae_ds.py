"""Check of `zo-ae-ds`: gradients by queries against their known values, and certified accuracy at equal query budgets.

The black box is scikit-learn's `MLPClassifier.predict_proba` in float64, so differences at the paper's mu = 0.005 are
exact to about 1e-5; the networks before it are float32.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Table
from holdfast.core.intervals import clopper_pearson, paired_difference
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.smoothing.blackbox import BlackBoxDefence
from holdfast.inputs.smoothing.dense import DenseDenoiser, dense_autoencoder
from holdfast.inputs.smoothing.gaussian import Smoothed, SmoothedCertificate, certified_curve
from holdfast.inputs.smoothing.queries import BlackBox
from holdfast.inputs.smoothing.zeroth_order import zeroth_order_gradient
from holdfast.papers import datasets
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="zo-ae-ds",
    group="inputs",
    title="How to Robustify Black-Box ML Models? A Zeroth-Order Optimization Perspective",
    builds=(
        "holdfast.inputs.smoothing.blackbox.BlackBoxDefence",
        "holdfast.inputs.smoothing.blackbox.DenoisedSmoothing",
        "holdfast.inputs.smoothing.zeroth_order.zeroth_order_gradient",
        "holdfast.inputs.smoothing.zeroth_order.ZerothOrder",
        "holdfast.inputs.smoothing.queries.BlackBox",
    ),
    claim=(
        "A denoiser before a classifier that only answers queries can be trained by gradients guessed along the few "
        "coordinates of an auto-encoder's code; its certified accuracy is that of training with true gradients, while "
        "guessing along random directions of the input falls behind at the same number of queries."
    ),
    reference="Zhang, Yao, Jia, Yi, Hong, Chang and Liu, 2022 (arXiv:2203.14195)",
)

SEEDS = (0, 1, 2)
SIGMA = 0.5
RADII = (0.25, 0.5)
BUDGET = 1_000_000
LATENT = 16
MU = 5e-3
BATCH = 64
TESTED = 100  # a seed
DRAWS = 1000
UNDEFENDED, ZO_DS, ZO_AE_DS, FIRST_ORDER = "no defence", "ZO-DS", "ZO-AE-DS", "AE-DS, true gradients"
#: Beside the claim: a quarter of the directions, so that the same queries last for nearly four times the steps.
FEW, FEWER = 8, "ZO-DS, 8 directions"


@dataclass(frozen=True)
class Split:
    """Flat images: labels train the black box alone, never the defence."""

    x: np.ndarray
    y: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Certified:
    """Radius of every test point (0 where the label is wrong), and queries and steps of training."""

    radius: np.ndarray
    queries: int = 0
    steps: int = 0


def check(scale: Scale) -> Outcome:
    """Estimators against quadratics and a linear function; then digits and Fashion-MNIST at 10^6 queries each."""
    criteria = [_coordinates(), *_directions()]
    if scale is Scale.SMOKE:
        found = _contest("digits", 0, budget=15_000, tested=5, draws=100, reconstruction_steps=50)
        criteria.append(_budgets([found], 15_000))
        return Outcome(tuple(criteria), seeds=(0,))
    results = {name: [_contest(name, seed) for seed in SEEDS] for name in ("digits", "Fashion-MNIST 14x14")}
    for name, runs in results.items():
        criteria += _ordering(name, runs)
    criteria.append(_budgets([run for runs in results.values() for run in runs], BUDGET))
    digits = {method: _right(results["digits"], method, RADII[1]) for method in (ZO_AE_DS, ZO_DS)}
    ours, baseline = (clopper_pearson(int(right.sum()), len(right)) for right in digits.values())
    exhibits = [_table(name, runs) for name, runs in results.items()]
    curves = [_curve(name, runs) for name, runs in results.items()]
    return Outcome(
        tuple(criteria),
        ours,
        baseline,
        (*curves, *exhibits),
        SEEDS,
        f"sigma {SIGMA} with pixels in [0, 1], mu {MU}, code of {LATENT}.  ZO-DS asks {2 * LATENT} directions an "
        f"example and step, as many points as ZO-AE-DS does, so that both take about as many steps with "
        f"{BUDGET:,} queries in all.  True gradients take the steps of ZO-AE-DS.  How ZO-DS does at a fixed "
        f"number of queries depends on how they are spent: the tables show it with {FEW} directions and more steps as "
        "well, which the claim's comparison at equal queries a step leaves out.  Each seed has its own split, black "
        f"box and networks; {DRAWS} draws a certificate, alpha 0.001.",
    )


def _coordinates() -> Criterion:
    generator = torch_generator(0, PAPER.key, "quadratics")
    worst = 0.0
    for dimension in (1, 5, 20, 80):
        matrix, slope, z = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((dimension, dimension), (dimension,), (50, dimension))
        )
        guess = zeroth_order_gradient(lambda p, m=matrix, s=slope: (p @ m * p).sum(1) + p @ s, z, mu=MU)
        worst = max(worst, float((guess - z @ (matrix + matrix.T) - slope).abs().max()))
    return Criterion(
        "along coordinates the gradient of a quadratic is exact to 1e-6, in up to 80 dimensions",
        worst <= 1e-6,
        {"largest error": worst},
    )


def _directions() -> tuple[Criterion, Criterion]:
    generator = torch_generator(0, PAPER.key, "directions")
    dimension, draws = 10, 50_000
    matrix, slope, z = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((dimension, dimension), (dimension,), (1, dimension))
    )
    truth = (z @ (matrix + matrix.T) + slope)[0]
    guesses = zeroth_order_gradient(
        lambda p: (p @ matrix * p).sum(1) + p @ slope, z.expand(draws, dimension), "rge", 1, 1e-7, generator
    )
    away = float(((guesses.mean(0) - truth).abs() / (guesses.std(0) / draws**0.5)).max())
    ratios = {}
    for size in (8, 32, 128):
        unit = torch.full((size,), size**-0.5, dtype=torch.float64)
        origin = torch.zeros((10_000, size), dtype=torch.float64)
        spread = zeroth_order_gradient(lambda p, a=unit: p @ a, origin, "rge", 1, 1e-7, generator).var(0).sum()
        ratios[f"variance / (d - 1), d={size}"] = float(spread) / (size - 1)
    return (
        Criterion(
            f"along random directions the mean of {draws:,} guesses is within 3 standard errors in every coordinate",
            away <= 3,
            {"largest deviation in standard errors": away},
        ),
        Criterion(
            "their variance grows as the dimension: it is d - 1 for a linear function of unit slope, to 5%",
            all(abs(ratio - 1) < 0.05 for ratio in ratios.values()),
            ratios,
        ),
    )


def _split(name: str, seed: int, tested: int) -> Split:
    if name == "digits":
        x, y = datasets.digits()
        images, size = torch.from_numpy(x), 1497
    else:
        x, y = datasets.fashion_mnist("train", 8000)
        images, size = F.avg_pool2d(torch.from_numpy(x), 2), 4000
    flat = images.flatten(1).numpy()
    order = numpy_generator(seed, PAPER.key, name).permutation(len(flat))
    train, test = order[:size], order[size : size + tested]
    return Split(flat[train], y[train], flat[test], y[test])


def _black_box(split: Split, seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MLPClassifier((64,), max_iter=60, random_state=seed).fit(split.x.astype(np.float64), split.y)


def _white_box(classifier: Any) -> nn.Module:
    """The same function as a module with gradients, for the comparison with first-order training."""
    layers: list[nn.Module] = []
    for weight, bias in zip(classifier.coefs_, classifier.intercepts_, strict=True):
        linear = nn.utils.skip_init(nn.Linear, *weight.shape)
        linear.load_state_dict({"weight": torch.from_numpy(weight.T), "bias": torch.from_numpy(bias)})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Softmax(1))


def _contest(
    name: str,
    seed: int,
    budget: int = BUDGET,
    tested: int = TESTED,
    draws: int = DRAWS,
    reconstruction_steps: int = 1000,
) -> dict[str, Certified]:
    """Every method on one split, with the same test points, starting weights and noise of certification."""
    split = _split(name, seed, tested)
    classifier = _black_box(split, seed)
    features = split.x.shape[1]
    weights = torch_generator(seed, PAPER.key, name, "weights")
    denoiser = DenseDenoiser(features, (128, 128), weights)
    encoder, decoder = dense_autoencoder(features, LATENT, (64,), weights)

    def certify(smoothed: Smoothed | BlackBoxDefence, x: Any) -> np.ndarray:
        stream = torch_generator(seed, PAPER.key, name, "certificates")
        certificate: SmoothedCertificate = smoothed.certify(x, 100, draws, generator=stream)
        return np.where(certificate.label.numpy() == split.test_labels, certificate.radius.numpy(), 0.0)

    def defend(model: Any, budget: int, **settings: Any) -> Certified:
        defence = BlackBoxDefence(
            model, denoiser=copy.deepcopy(denoiser), sigma=SIGMA, query_budget=budget, mu=MU, batch=BATCH,
            reconstruction_steps=reconstruction_steps, random_state=seed, **settings,
        ).fit(split.x)  # fmt: skip
        return Certified(certify(defence, split.test), defence.queries_, len(defence.losses_))

    box = classifier.predict_proba
    coded = {"encoder": encoder, "decoder": decoder}
    alone = Smoothed(BlackBox(box), SIGMA, len(classifier.classes_))
    found = {
        UNDEFENDED: Certified(certify(alone, torch.from_numpy(split.test))),
        ZO_DS: defend(box, budget, method="rge", directions=2 * LATENT),
        ZO_AE_DS: defend(box, budget, method="cge", **coded),
    }
    if budget == BUDGET:
        found[FEWER] = defend(box, budget, method="rge", directions=FEW)
    examples = len(split.x) + found[ZO_AE_DS].steps * BATCH
    found[FIRST_ORDER] = defend(_white_box(classifier), examples, method="autograd", **coded)
    return found


def _right(runs: list[dict[str, Certified]], method: str, radius: float) -> np.ndarray:
    return np.concatenate([run[method].radius >= radius for run in runs])


def _ordering(name: str, runs: list[dict[str, Certified]]) -> list[Criterion]:
    def gaps(worse: str, better: str) -> dict[str, Estimate]:
        return {
            f"gain at r={radius}": paired_difference(_right(runs, worse, radius), _right(runs, better, radius))
            for radius in RADII
        }

    tested = len(runs) * TESTED
    criteria = []
    for worse, better in ((UNDEFENDED, ZO_DS), (ZO_DS, ZO_AE_DS)):
        found = gaps(worse, better)
        statement = f"{name}: {better} certifies more than {worse} at r = 0.25 and 0.5 (paired 95% on {tested} points)"
        criteria.append(Criterion(statement, all(gap.low > 0 for gap in found.values()), found))
    found = gaps(FIRST_ORDER, ZO_AE_DS)
    statement = f"{name}: {ZO_AE_DS} certifies at most 3 points less than {FIRST_ORDER} at both radii"
    criteria.append(Criterion(statement, all(gap.value >= -0.03 for gap in found.values()), found))
    return criteria


def _budgets(runs: list[dict[str, Certified]], budget: int) -> Criterion:
    spent = [run[method].queries for run in runs for method in (ZO_DS, ZO_AE_DS)]
    return Criterion(
        f"no defence asked more than its {budget:,} queries, and each left less than 1% of them, or one step",
        all(budget - max(budget // 100, BATCH * (2 * LATENT + 1)) < queries <= budget for queries in spent),
        {"fewest": min(spent), "most": max(spent)},
    )


def _table(name: str, runs: list[dict[str, Certified]]) -> Table:
    rows: list[tuple[str | Estimate | int, ...]] = []
    for method in (UNDEFENDED, ZO_DS, FEWER, ZO_AE_DS, FIRST_ORDER):
        shares = [_right(runs, method, radius) for radius in (1e-9, *RADII)]
        cells = [clopper_pearson(int(right.sum()), len(right)) for right in shares]
        rows.append((method, *cells, runs[0][method].queries, runs[0][method].steps))
    columns = ("method", "right, certified", *(f"certified at {radius}" for radius in RADII), "queries", "steps")
    return Table(f"Certified accuracy, {name}", columns, tuple(rows), "Queries and steps of the first seed.")


def _curve(name: str, runs: list[dict[str, Certified]]) -> Curve:
    pooled = {method: np.concatenate([run[method].radius for run in runs]) for method in runs[0]}
    return certified_curve(
        {method: (radius, radius > 0) for method, radius in pooled.items()}, title=f"Certified accuracy, {name}"
    )
