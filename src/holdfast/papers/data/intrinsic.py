"""Check of `intrinsic`: dimension and label sharpness of a data set foretell generalisation and robustness.

(a) The estimators on manifolds of known dimension in R^50.  (b) Over pairs of classes: does label sharpness K_F go with
accuracy under a small sign attack and with clean error?  (c) Does test loss fall with training size, faster in lower
dimension?  (d) Is the last hidden layer of lower dimension than the data?
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Cell, Table
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.data.dimension import (
    MLEDimension,
    TwoNN,
    label_sharpness,
    representation_dimension,
    scaling_fit,
)
from holdfast.data.neighbours import nearest
from holdfast.papers import datasets
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="intrinsic",
    group="data",
    title="The Effect of Intrinsic Dataset Properties on Generalization: Unraveling Learning Differences Between "
    "Natural and Medical Images",
    builds=(
        "holdfast.data.dimension.MLEDimension",
        "holdfast.data.dimension.TwoNN",
        "holdfast.data.dimension.GeoMLE",
        "holdfast.data.dimension.label_sharpness",
        "holdfast.data.dimension.representation_dimension",
        "holdfast.data.dimension.scaling_fit",
        "holdfast.data.dimension.predict_vulnerability",
    ),
    claim="Two numbers of a data set, its intrinsic dimension and how sharply labels change with inputs, go with how "
    "fast a network's loss falls, how low-dimensional its representation is and how easily it is attacked.",
    reference="Konz and Mazurowski, ICLR 2024",
)

SEED = 0
ATTACKS = (1 / 255, 2 / 255, 4 / 255)
DECIDING = 2 / 255
NOTES = (
    "Label sharpness marks unequal labels (public code marks equal ones). A correlation over pairs says that the two "
    "go together, not that one makes the other. Estimators are low on cubes, whose points near an edge see half a "
    "neighbourhood; spheres have no edge. The order of slopes by dimension holds for the nearest-neighbour predictor, "
    "which attains the covering rate behind the law; networks trained for a fixed number of steps gave the opposite "
    "order, since training limits their loss more than size does."
)


@dataclass(frozen=True)
class Plan:
    """How much of everything a scale does."""

    dimensions: tuple[int, ...]
    points: int
    pairs: int
    train: int
    sizes: tuple[int, ...]
    steps: int
    manifolds: tuple[int, ...]


PLANS = {
    Scale.SMOKE: Plan((1, 5), 700, 6, 200, (125, 250, 500), 60, (2, 12)),
    Scale.FULL: Plan((1, 2, 5, 10), 2000, 20, 1000, (125, 250, 500, 1000, 2000), 250, (2, 6, 12)),
}


def check(scale: Scale) -> Outcome:
    """Run all four parts; the smoke scale uses scikit-learn's digits, the full one Fashion-MNIST."""
    plan, digits = PLANS[scale], scale == Scale.SMOKE
    known, dimension_table = _known_dimensions(plan)
    pairs = [_pair(x, y, plan, name, digits) for name, x, y in _class_pairs(scale, plan)]
    robust, correlation = _sharpness_criterion(pairs, digits)
    ordered, slope_table = _manifold_criteria(plan, networks=not digits)
    falling = () if digits else (_falling_criterion(pairs),)
    columns = ("pair", "K_F", "d_data", "d_repr", "slope of log loss", "clean accuracy")
    table = Table(
        "Pairs of classes",
        (*columns, *(f"under {eps * 255:g}/255" for eps in ATTACKS)),
        tuple(
            (p.name, p.sharpness, p.dimension, p.representation, p.slope, p.accuracy, *(p.robust[e] for e in ATTACKS))
            for p in pairs
        ),
        "Networks trained on the same number of examples a pair; K_F over 1000 random examples of the pair.",
    )
    return Outcome(
        criteria=(*known, robust, *falling, *ordered, _representation_criterion(pairs)),
        ours=correlation,
        exhibits=(table, dimension_table, slope_table),
        seeds=(SEED,),
        notes=NOTES,
    )


def _manifold(dimension: int, points: int, ambient: int, kind: str) -> np.ndarray:
    """Points spread evenly on a cube or sphere, put into R^ambient by a random turn and a smooth map."""
    rng = numpy_generator(SEED, "manifold", kind, dimension)
    if kind == "cube":
        core = rng.random((points, dimension))
    else:
        core = rng.standard_normal((points, dimension + 1))
        core /= np.linalg.norm(core, axis=1, keepdims=True)
    turns = [np.linalg.qr(rng.standard_normal((ambient, ambient)))[0] for _ in range(2)]
    flat = core @ turns[0][: core.shape[1]]
    return flat + 0.1 * np.sin(flat @ turns[1])


def _known_dimensions(plan: Plan) -> tuple[list[Criterion], Table]:
    rows: list[tuple[Cell, ...]] = []
    criteria = []
    for kind in ("sphere", "cube"):
        errors: dict[int, float] = {}
        for dimension in plan.dimensions:
            X = _manifold(dimension, plan.points, 50, kind)
            fits = (MLEDimension(20).fit(X), TwoNN().fit(X))
            errors[dimension] = max(abs(fit.dimension_ / dimension - 1) for fit in fits)
            rows.append((f"{kind}, {dimension}", *(fit.estimate_ for fit in fits)))
        criteria.append(
            Criterion(
                f"(a) on a {kind}, MLE and TwoNN come within 10 % of dimensions up to 5 and 20 % of 10",
                all(error <= (0.1 if dimension <= 5 else 0.2) for dimension, error in errors.items()),
                {f"larger error in {dimension} dimensions": error for dimension, error in errors.items()},
            )
        )
    X = _manifold(2, 300, 50, "sphere")
    turn, _ = np.linalg.qr(numpy_generator(SEED, "turn").standard_normal((60, 60)))
    moved = 3 * np.pad(X, ((0, 0), (0, 10))) @ turn
    drift = abs(MLEDimension(10).fit(moved).dimension_ / MLEDimension(10).fit(X).dimension_ - 1)
    criteria.append(
        Criterion("(a) turning, scaling and padding change MLE by less than 1e-10", drift < 1e-10, {"change": drift})
    )
    return criteria, Table("Known dimensions", ("manifold, dimension", "MLE (k = 20)", "TwoNN"), tuple(rows))


@dataclass(frozen=True)
class _Pair:
    name: str
    sharpness: Estimate
    dimension: Estimate
    representation: Estimate
    accuracy: float
    robust: dict[float, float]
    slope: Estimate | None


def _class_pairs(scale: Scale, plan: Plan) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Rows in [0, 1] and 0/1 labels of randomly chosen pairs of classes."""
    x, y = datasets.digits() if scale == Scale.SMOKE else datasets.fashion_mnist("train")
    rows = x.reshape(len(x), -1)
    rng = numpy_generator(SEED, "pairs")
    every = list(combinations(range(10), 2))
    chosen = [every[place] for place in sorted(rng.choice(len(every), plan.pairs, replace=False))]
    pairs = []
    for a, b in chosen:
        member = rng.permutation(np.flatnonzero((y == a) | (y == b)))[:6000]
        pairs.append((f"{a} against {b}", rows[member], (y[member] == b).astype(np.int64)))
    return pairs


def _network(features: int, seed: int) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    generator = torch_generator(seed, "weights")
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    return network


def _trained(x: Tensor, y: Tensor, steps: int, seed: int) -> nn.Sequential:
    network = _network(x.shape[1], seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    generator = torch_generator(seed, "batches")
    for _ in range(steps):
        batch = torch.randint(len(x), (min(100, len(x)),), generator=generator)
        loss = functional.cross_entropy(network(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def _pair(rows: np.ndarray, labels: np.ndarray, plan: Plan, name: str, digits: bool) -> _Pair:
    held = min(1000, len(rows) // 3)
    x, y = torch.from_numpy(rows).float(), torch.from_numpy(labels)
    test_x, test_y, train_x, train_y = x[:held], y[:held], x[held:], y[held:]
    network = _trained(train_x[: plan.train], train_y[: plan.train], plan.steps, SEED)
    with torch.no_grad():
        accuracy = float((network(test_x).argmax(1) == test_y).double().mean())
    return _Pair(
        name,
        label_sharpness(rows, labels, 1000, 5, generator=numpy_generator(SEED, "sharpness", name)),
        MLEDimension(20).fit(rows[held : held + plan.train]).estimate_,
        representation_dimension(network, "3", train_x[: plan.train]).estimate_,
        accuracy,
        {eps: _robust_accuracy(network, test_x, test_y, eps) for eps in ATTACKS},
        None if digits else _loss_slope((train_x, train_y), (test_x, test_y), plan),
    )


def _robust_accuracy(network: nn.Module, x: Tensor, y: Tensor, eps: float) -> float:
    """Accuracy after one step along the sign of the gradient, clipped to [0, 1]."""
    probe = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(network(probe), y), probe)
    with torch.no_grad():
        moved = (x + eps * gradient.sign()).clamp(0, 1)
        return float((network(moved).argmax(1) == y).double().mean())


def _loss_slope(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], plan: Plan) -> Estimate:
    losses = []
    sizes = [size for size in plan.sizes if size <= len(train[0])]
    for size in sizes:
        network = _trained(train[0][:size], train[1][:size], plan.steps, SEED)
        with torch.no_grad():
            losses.append(float(functional.cross_entropy(network(test[0]), test[1])))
    return scaling_fit(np.array(sizes, dtype=float), np.array(losses)).slope


def _sharpness_criterion(pairs: list[_Pair], digits: bool) -> tuple[Criterion, Estimate]:
    sharpness = np.log([pair.sharpness.value for pair in pairs])
    numbers: dict[str, Estimate | float] = {}
    for eps in ATTACKS:
        result = stats.pearsonr(sharpness, [pair.robust[eps] for pair in pairs])
        numbers[f"correlation with accuracy under {eps * 255:g}/255"] = float(result.statistic)
        if eps == DECIDING:
            ends = result.confidence_interval(0.95)
            deciding = Estimate(result.statistic, ends.low, ends.high, n=len(pairs), method="fisher z")
            chance = float(result.pvalue)
    error = float(stats.pearsonr(sharpness, [1 - pair.accuracy for pair in pairs]).statistic)
    numbers |= {"p-value at 2/255": chance, "correlation with clean error": error}
    if digits:
        statement = "(b) over pairs of digits, log K_F goes with lower accuracy under a 2/255 sign attack"
        return Criterion(statement, deciding.value < 0, numbers), deciding
    criterion = Criterion(
        "(b) over pairs of clothing, log K_F correlates below -0.4 with accuracy under a 2/255 sign attack (p < 0.01) "
        "and above 0.4 with clean error",
        deciding.value < -0.4 and chance < 0.01 and error > 0.4,
        numbers,
    )
    return criterion, deciding


def _falling_criterion(pairs: list[_Pair]) -> Criterion:
    slopes = [pair.slope for pair in pairs if pair.slope is not None]
    negative = sum(slope.value < 0 for slope in slopes)
    return Criterion(
        "(c) test loss falls with training size for every pair",
        negative == len(slopes),
        {"pairs where it falls": negative, "pairs": len(slopes), "flattest slope": max(s.value for s in slopes)},
    )


def _manifold_criteria(plan: Plan, networks: bool) -> tuple[list[Criterion], Table]:
    """A function of Lipschitz constant 1 on cubes in R^50, learnt by nearest neighbour; its sign, by networks."""
    rng = numpy_generator(SEED, "manifold functions")
    slopes, trained, rows = [], [], []
    for dimension in plan.manifolds:
        core = rng.random((max(plan.sizes) + 1000, dimension))
        X = core @ np.linalg.qr(rng.standard_normal((50, 50)))[0][:dimension]
        values = np.sin(2 * np.pi * core).sum(1) / (2 * np.pi * dimension**0.5)
        queries, reference = X[:1000], X[1000:]
        losses = []
        for size in plan.sizes:
            _, closest = nearest(queries, reference[:size], 1)
            losses.append(float(np.abs(values[1000:][closest[:, 0]] - values[:1000]).mean()))
        slopes.append(scaling_fit(np.array(plan.sizes, dtype=float), np.array(losses)).slope)
        network = None
        if networks:
            x, y = torch.from_numpy(X).float(), torch.from_numpy((values > 0).astype(np.int64))
            network = _loss_slope((x[1000:], y[1000:]), (x[:1000], y[:1000]), plan)
            trained.append(network)
        rows.append((dimension, -1 / dimension, slopes[-1], network))
    columns = ("dimension", "-1 / dimension", "slope, nearest neighbour", "slope, network on its sign")
    learners = [("nearest-neighbour loss of a Lipschitz function", slopes)]
    if networks:
        learners.append(("networks' test loss on its sign", trained))
    criteria = [
        Criterion(
            f"(c) on manifolds, {learner} falls faster in lower dimension",
            all(a.value < b.value for a, b in pairwise(found)),
            {f"slope in {d} dimensions": slope for d, slope in zip(plan.manifolds, found, strict=True)},
        )
        for learner, found in learners
    ]
    return criteria, Table("How loss falls with size on manifolds", columns, tuple(rows))


def _representation_criterion(pairs: list[_Pair]) -> Criterion:
    below = sum(pair.representation.value <= pair.dimension.value for pair in pairs)
    return Criterion(
        "(d) the last hidden layer has at most the dimension of the data on 90 % of the pairs",
        below >= 0.9 * len(pairs),
        {"pairs where it has": below, "pairs": len(pairs)},
    )
