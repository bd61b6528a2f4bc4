"""ibp-tightness: intervals are loose at initialisation as a formula says, training on them makes them tight, and tight
is not the same as robust.

(a) Monte-Carlo tightness of Gaussian networks and growth under random embeddings against the closed forms.  (b)
Tightness never exceeds 1, is 1 without negative weights, and which entries of a product are exact is a matter of signs.
(c), (d) A network of two convolutions and a linear layer on Fashion-MNIST, shrunk to 14 x 14, trained in four ways on
three seeds.  Certified accuracy is that of optimised backward bounds (alpha-CROWN), tried where plain ones fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import paired_difference
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Graph, capture, certify
from holdfast.inputs.bounds.schedule import Ramp
from holdfast.inputs.bounds.tightness import (
    embedding_growth,
    gaussian_tightness,
    is_propagation_invariant,
    propagation_tightness,
)
from holdfast.inputs.bounds.training import BoundLoss, CertifiedLoss, SmallBoxLoss
from holdfast.papers.bench_models.networks import initialise
from holdfast.papers.datasets import fashion_mnist
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale
from holdfast.subject.embedded import one_thread
from holdfast.threats import Linf

PAPER = Paper(
    key="ibp-tightness",
    group="inputs",
    title="Understanding certified training with interval bound propagation",
    builds=(
        "holdfast.inputs.bounds.tightness.propagation_tightness",
        "holdfast.inputs.bounds.tightness.gaussian_tightness",
        "holdfast.inputs.bounds.tightness.embedding_growth",
        "holdfast.inputs.bounds.tightness.is_propagation_invariant",
        "holdfast.inputs.bounds.training.CertifiedLoss",
        "holdfast.inputs.bounds.training.SmallBoxLoss",
    ),
    claim=(
        "How far interval propagation over-estimates falls polynomially with width and exponentially with depth at "
        "initialisation; training on intervals makes them tight, more so at a larger radius; training on small boxes "
        "gives better accuracy at lower tightness, so tightness is not what certified accuracy needs."
    ),
    reference="Mao et al., ICLR 2024",
)

EPS, SMALL_EPS, LAM = 0.1, 0.02, 0.4
VALID = (0.0, 1.0)
BATCH = 128
WHOLE_BOX, SMALL_BOX = "interval, 0.1", "small box, 0.1"
CERTIFIED = (WHOLE_BOX, SMALL_BOX)


@dataclass(frozen=True)
class Effort:
    """How much a scale does."""

    draws: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    seeds: tuple[int, ...]
    examples: int
    epochs: int
    tests: int
    certified: int


EFFORT = {
    Scale.SMOKE: Effort(20, (10, 50), (2, 4), (0,), 512, 5, 100, 20),
    Scale.FULL: Effort(20, (10, 50, 200), (2, 3, 4, 5, 6), (0, 1, 2), 6000, 6, 1000, 400),
}


def check(scale: Scale) -> Outcome:
    """Formulas by simulation, signs, and four ways of training."""
    effort = EFFORT[scale]
    ways = [way for way in WAYS if scale is Scale.FULL or way != SMALL_BOX]
    with one_thread():
        formulas, rows = _formulas(effort)
        data = _images(scale, effort)
        nets = {way: [_trained(way, seed, effort, data) for seed in effort.seeds] for way in ways}
        criteria = (*formulas, _signs(), *_training(nets))
    if scale is Scale.FULL:
        criteria = (*criteria, *_small_boxes(nets))
    return Outcome(
        criteria=criteria,
        ours=_pooled(nets[WHOLE_BOX], "tightness"),
        baseline=_pooled(nets["standard"], "tightness"),
        exhibits=(
            Table("Simulation and closed form", ("quantity", "simulated", "closed form", "difference"), rows),
            _ways(nets),
        ),
        seeds=effort.seeds,
        notes="Tightness is the local one at radius 0.1, margins folded into the last layer. Intervals pool the seeds, "
        "whose test images are the same. The smoke run makes its own images, ten blurred patterns and noise, and "
        "trains on no small boxes.",
    )


def _formulas(effort: Effort) -> tuple[tuple[Criterion, ...], tuple[tuple[str, float, float, float], ...]]:
    """Criteria (a) and their table."""
    generator = torch_generator(0, "ibp-tightness", "formulas")
    pairs: list[tuple[str, float, float]] = []
    for width in effort.widths:
        pairs.append(
            (f"two layers, width {width}", _simulated([width], effort, generator), gaussian_tightness([width]))
        )
    for depth in effort.depths:
        hidden = [50] * (depth - 1)
        pairs.append((f"{depth} layers, width 50", _simulated(hidden, effort, generator), gaussian_tightness(hidden)))
    growths = []
    for k in (20, 80):
        layerwise, optimal = _embedded(784, k, effort.draws, generator)
        limit, exact = embedding_growth(k), embedding_growth(k, 784)
        pairs.append((f"layer-wise growth, {k} of 784", layerwise, limit.layerwise))
        pairs.append((f"optimal growth, {k} of 784, exact", optimal, exact.optimal))
        growths.append((f"optimal growth, {k} of 784, limit", optimal, limit.optimal))
    table = tuple((name, seen, form, seen / form - 1) for name, seen, form in [*pairs, *growths])
    off = max(abs(seen / form - 1) for _, seen, form in pairs)
    off_limit = max(abs(seen / form - 1) for _, seen, form in growths)
    masked = _simulated([200], effort, generator, relu=True)
    factor = masked / _simulated([200], effort, generator)
    return (
        Criterion(
            "(a) tightness of Gaussian networks and growth under embeddings follow the closed forms within 3 %",
            off <= 0.03,
            {"largest relative difference": off},
        ),
        Criterion(
            "(a) the optimal growth follows its limit for 1 << k << d within 6 %",
            off_limit <= 0.06,
            {"largest relative difference": off_limit},
        ),
        Criterion(
            "(a) a ReLU multiplies the tightness of a two-layer network by about the root of 2 (within 5 %)",
            abs(factor / 2**0.5 - 1) <= 0.05,
            {"factor": factor},
        ),
    ), table


def _simulated(hidden: list[int], effort: Effort, generator: torch.Generator, relu: bool = False) -> float:
    """Mean optimal radius over mean layer-wise radius of Gaussian networks with 100 inputs and outputs."""
    optimal = layerwise = 0.0
    for _ in range(effort.draws):
        x = torch.randn(100, generator=generator, dtype=torch.float64)
        signed = torch.eye(100, dtype=torch.float64)
        absolute = signed
        for depth, width in enumerate([*hidden, 100]):
            weight = torch.randn(width, len(x), generator=generator, dtype=torch.float64)
            x, signed, absolute = weight @ x, weight @ signed, weight.abs() @ absolute
            if relu and depth < len(hidden):
                mask = (x > 0).double()
                x, signed, absolute = x * mask, signed * mask[:, None], absolute * mask[:, None]
        optimal, layerwise = optimal + float(signed.abs().sum()), layerwise + float(absolute.sum())
    return optimal / layerwise


def _embedded(d: int, k: int, draws: int, generator: torch.Generator) -> tuple[float, float]:
    """Mean growth of a unit box under U U', by intervals and at best."""
    layerwise = optimal = 0.0
    for _ in range(draws):
        basis = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0]
        layerwise += float((basis.abs() @ basis.abs().sum(0)).mean()) / draws
        optimal += float((basis @ basis.T).abs().sum(1).mean()) / draws
    return layerwise, optimal


def _signs() -> Criterion:
    """Criterion (b)."""
    generator = torch_generator(0, "ibp-tightness", "signs")
    largest, gap = 0.0, 0.0
    model, x = _network(0), torch.rand(8, 1, 14, 14, generator=generator)
    graph = capture(model, x)
    for _ in range(5):
        initialise(model, generator)
        largest = max(largest, float(propagation_tightness(graph, x, EPS).per_output.max()))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.abs_()
        gap = max(gap, float((propagation_tightness(graph, x, EPS).per_output - 1).abs().max()))
    # Four products of independent signs agree with probability 2 / 2^4.
    weights = [torch.randn(4, 300, generator=generator), torch.randn(300, 4, generator=generator)]
    agreeing = is_propagation_invariant(weights).fraction
    exact = bool(is_propagation_invariant([weight.abs() for weight in weights]))
    return Criterion(
        "(b) tightness is at most 1, and 1 without negative weights; a Gaussian product over 4 hidden units is exact "
        "in 1/8 of its entries (within 0.01)",
        largest <= 1 and gap <= 1e-9 and exact and abs(agreeing - 0.125) <= 0.01,
        {"largest tightness": largest, "largest gap to 1": gap, "exact entries": agreeing},
    )


def _network(seed: int) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    initialise(model, torch_generator(seed, "ibp-tightness", "weights"))
    return model.eval()


@dataclass(frozen=True)
class Trained:
    """One network: per test example its tightness, and whether it is right and provably right."""

    tightness: np.ndarray
    right: np.ndarray
    certified: np.ndarray


def _ways(nets: Mapping[str, list[Trained]]) -> Table:
    rows = tuple(
        (
            way,
            _pooled(found, "tightness"),
            _pooled(found, "right"),
            _pooled(found, "certified") if way in CERTIFIED else "not measured",
        )
        for way, found in nets.items()
    )
    return Table(
        "Ways of training, means over the seeds", ("training", "tightness", "accuracy", "certified at 0.1"), rows
    )


def _pooled(found: list[Trained], name: str) -> Estimate:
    values = np.concatenate([getattr(net, name) for net in found])
    return paired_difference(np.zeros_like(values), values)


#: How a way of training makes its loss, from the number of steps and a generator.
WAYS: dict[str, Callable[[int, torch.Generator], BoundLoss]] = {
    "standard": lambda steps, _: CertifiedLoss(eps=0.0),
    "interval, 0.02": lambda steps, _: CertifiedLoss(eps=_grown(SMALL_EPS, steps)),
    WHOLE_BOX: lambda steps, _: CertifiedLoss(eps=_grown(EPS, steps)),
    SMALL_BOX: lambda steps, generator: SmallBoxLoss(_grown(EPS, steps), LAM, generator=generator),
}


def _grown(eps: float, steps: int) -> Ramp:
    return Ramp(0.0, eps, steps // 20, steps // 2)


def _trained(way: str, seed: int, effort: Effort, data: Data) -> Trained:
    graph = capture(_network(seed), data.x)
    steps = effort.epochs * -(-len(data.x) // BATCH)
    _fit(graph, WAYS[way](steps, torch_generator(seed, "ibp-tightness", "attack")), steps, data, seed)
    with torch.no_grad():
        right = (graph.model(data.x_test).argmax(1) == data.y_test).numpy()
    x, y = data.x_test[: effort.certified], data.y_test[: effort.certified]
    tightness = propagation_tightness(graph, x, EPS, y, VALID).per_output.mean(1).numpy()
    proven = _certified(graph, x, y, right[: len(x)]) if way in CERTIFIED else np.zeros(0, bool)
    return Trained(tightness, right, proven)


def _fit(graph: Graph, loss: BoundLoss, steps: int, data: Data, seed: int) -> None:
    order = torch_generator(seed, "ibp-tightness", "order")
    optimizer = torch.optim.Adam(graph.model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    while int(loss.step) < steps:
        for index in torch.randperm(len(data.x), generator=order).split(BATCH):
            optimizer.zero_grad()
            loss(graph, data.x[index], data.y[index]).backward()
            optimizer.step()
            schedule.step()
            loss.advance()


@dataclass(frozen=True)
class Data:
    """Images of 14 x 14 pixels and their labels."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def _images(scale: Scale, effort: Effort) -> Data:
    if scale is Scale.FULL:
        parts = [fashion_mnist("train", effort.examples), fashion_mnist("test", effort.tests)]
        (x, y), (x_test, y_test) = ((F.avg_pool2d(torch.from_numpy(x), 2), torch.from_numpy(y)) for x, y in parts)
        return Data(x, y, x_test, y_test)
    generator, count = torch_generator(0, "ibp-tightness", "images"), effort.examples + effort.tests
    patterns = F.interpolate(torch.rand(10, 1, 4, 4, generator=generator), size=(14, 14), mode="bilinear")
    y = torch.randint(0, 10, (count,), generator=generator)
    x = (patterns[y] + 0.15 * torch.randn(count, 1, 14, 14, generator=generator)).clamp(0, 1)
    known = slice(0, effort.examples), slice(effort.examples, count)
    return Data(*(part[some] for some in known for part in (x, y)))


def _certified(graph: Graph, x: Tensor, y: Tensor, right: np.ndarray) -> np.ndarray:
    """Which examples are proven by plain backward bounds or, where those fail, by optimised ones."""
    proven = certify(graph, x, y, Linf(EPS), VALID, "crown").certified
    rest = torch.from_numpy(right) & ~proven
    if bool(rest.any()):
        proven[rest] = certify(graph, x[rest], y[rest], Linf(EPS), VALID, "alpha-crown").certified
    return proven.numpy()


def _training(nets: Mapping[str, list[Trained]]) -> tuple[Criterion, ...]:
    """Criteria (c)."""
    tau = {way: np.array([net.tightness.mean() for net in found]) for way, found in nets.items()}
    factors = tau[WHOLE_BOX] / tau["standard"]
    rises = tau[WHOLE_BOX] - tau["interval, 0.02"]
    return (
        Criterion(
            "(c) tightness after interval training is at least 5 times that after standard training, on every seed",
            float(factors.min()) >= 5,
            {"smallest factor": float(factors.min())},
        ),
        Criterion(
            "(c) it is larger after training at radius 0.1 than at 0.02, on every seed",
            float(rises.min()) > 0,
            {"smallest rise": float(rises.min())},
        ),
    )


def _small_boxes(nets: Mapping[str, list[Trained]]) -> tuple[Criterion, ...]:
    """Criteria (d)."""

    def gained(name: str) -> Estimate:
        whole, small = (np.concatenate([getattr(net, name) for net in nets[way]]) for way in CERTIFIED)
        return paired_difference(whole, small)

    tightness, right, certified = gained("tightness"), gained("right"), gained("certified")
    return (
        Criterion("(d) training on small boxes (0.4) gives lower tightness", tightness.high < 0, {"gain": tightness}),
        Criterion("(d) and higher accuracy", right.low > 0, {"gain": right}),
        Criterion("(d) and loses less than 5 points of certified accuracy", certified.low > -0.05, {"gain": certified}),
    )
