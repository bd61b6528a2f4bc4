"""lirpa: linear-relaxation bounds on general graphs, and the verification and training that stand on them.

(a) Random small graphs (convolutions of all kinds, batch normalisation, pooling, residual sums, concatenation, leaky
ReLU, smooth activations) are bounded over L-infinity, L2, L1 and L0 sets by every method; random points and gradient
steps try to leave the bounds.  (b) Affine networks have closed-form bounds.  (c) Widths on a convolutional network
trained on Fashion-MNIST.
(d) to (f), complete verification and loss fusion, stand in `lirpa_complete`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import paired_difference
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import METHODS, Bounds, Graph, Region, bounds, capture
from holdfast.papers.bench_models import load
from holdfast.papers.datasets import fashion_mnist
from holdfast.papers.inputs.lirpa_complete import completeness, fusion, public_instances
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale
from holdfast.threats import L0, L1, L2, Linf, Threat

PAPER = Paper(
    key="lirpa",
    group="inputs",
    title="Automatic perturbation analysis for scalable certified robustness and beyond",
    builds=(
        "holdfast.inputs.bounds.bounds",
        "holdfast.inputs.bounds.certify",
        "holdfast.inputs.bounds.capture",
        "holdfast.inputs.bounds.unsupported",
        "holdfast.inputs.bounds.margin_spec",
        "holdfast.inputs.bounds.optimize.minimise",
        "holdfast.inputs.bounds.verify.verify",
        "holdfast.inputs.bounds.vnnlib.Property",
        "holdfast.inputs.bounds.training.CertifiedLoss",
        "holdfast.inputs.bounds.training.FusedCertifiedLoss",
    ),
    claim=(
        "One pass of linear bounds over the traced graph of a network gives bounds that no admissible input leaves, "
        "that are exact where the network is affine and narrower than intervals; with split constraints they decide "
        "verification properties, and fused with the loss they make the cost of certified training independent of the "
        "number of classes."
    ),
    reference="Xu et al., NeurIPS 2020",
)

SEEDS = (0,)
VALID = (0.0, 1.0)
THREATS: tuple[Threat, ...] = (Linf(0.06), L2(0.4), L1(0.8), L0(2))


@dataclass(frozen=True)
class Effort:
    """How much a scale does."""

    graphs: int
    points: int
    steps: int
    images: int
    sets: int


EFFORT = {Scale.SMOKE: Effort(1, 100, 3, 3, 1), Scale.FULL: Effort(40, 2000, 20, 30, 4)}


def check(scale: Scale) -> Outcome:
    """Attack bounds of random graphs, compare affine ones with their closed form, measure widths."""
    effort = EFFORT[scale]
    attacked = [_attacked(seed, effort) for seed in range(effort.graphs)]
    gap = max(_gap(seed) for seed in range(max(1, effort.graphs // 4)))
    widths = _widths(scale, effort.images)
    worst = max(excess for excess, _ in attacked)
    tried = sum(count for _, count in attacked)
    looser = float((widths["alpha-crown"] - widths["crown"]).max())
    saved = {name: paired_difference(widths[name].mean(1), widths["ibp"].mean(1)) for name in ("crown", "crown-ibp")}
    criteria = [
        Criterion(
            "(a) no sampled or attacked point of a random graph leaves its bounds, by any method, for four sets",
            worst <= 0,
            {"graphs": effort.graphs, "outputs tried": tried, "largest excess": worst},
        ),
        Criterion("(b) affine networks are bounded exactly (to 1e-9)", gap <= 1e-9, {"largest difference": gap}),
        Criterion(
            "(c) CROWN is narrower on average than intervals on a Fashion-MNIST convolutional network",
            saved["crown"].low > 0,
            {"interval width minus CROWN width": saved["crown"], "minus CROWN-IBP width": saved["crown-ibp"]},
        ),
        Criterion(
            "(c) optimised slopes are never looser than CROWN's, bound by bound",
            looser <= 1e-5,
            {"largest excess of a width": looser, "bounds": widths["crown"].size},
        ),
        completeness(SEEDS[0], effort.graphs // 2 or 1),
    ]
    if scale is Scale.FULL:  # minutes of search, and timings that a smoke run cannot make
        criteria += [*public_instances(), *fusion(SEEDS[0])]
    rows = tuple((name, float(np.mean(widths[name])), float(np.median(widths[name]))) for name in METHODS)
    return Outcome(
        criteria=tuple(criteria),
        ours=_mean(widths["alpha-crown"].mean(1)),
        baseline=_mean(widths["ibp"].mean(1)),
        exhibits=(Table("Width of the bounds on the logits, radius 0.01", ("method", "mean", "median"), rows),),
        seeds=SEEDS,
        notes="Intervals are exact for one affine layer only, so (b) asks them for one layer and the other methods for "
        "several. Published times in (e) were taken on other machines and are used only to choose the instances. "
        "Perturbed weights, attention and recurrent cells are checked by the library's tests, not here. The smoke run "
        "takes a small random network and noise images for (c), one network for (d), and leaves out (e) and (f).",
    )


class RandomGraph(nn.Module):
    """A small network on (1, 8, 8); kernel, stride, groups, pooling, shortcut, join and activations are drawn."""

    SMOOTH = (torch.relu, torch.sigmoid, torch.tanh, F.gelu, F.silu, F.softplus)

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        draw = torch.randint(0, 1 << 30, (10,), generator=generator).tolist()
        self.activation = self.SMOOTH[draw[8] % len(self.SMOOTH)]
        kernel, stride, self.pool, self.slope = 1 + draw[0] % 4, 1 + draw[1] % 2, draw[2] % 4, (draw[3] % 3) * 0.15
        self.stem = nn.Conv2d(1, 4, kernel, stride, padding=draw[4] % 2)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 4, 3, padding=1, groups=1 + draw[5] % 2)
        self.join, self.shortcut = draw[6] % 2, draw[7] % 2
        self.head = nn.LazyLinear(6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.stem((x - 0.4) / 0.7)), self.slope)
        y = self.body(x)
        if self.shortcut:
            y += x
        y = F.relu_(y)
        if self.join:
            y = torch.cat([y, 0.5 - x], dim=1)
        if self.pool == 1:
            y = F.max_pool2d(y, 2)
        elif self.pool == 2:
            y = F.avg_pool2d(y, 2)
        elif self.pool == 3:
            y = F.max_pool2d(y, 3, stride=2, padding=1)
        return self.last(self.activation(self.head(y.view(y.size(0), -1))))


def _random_graph(seed: int) -> nn.Module:
    generator = torch_generator(SEEDS[0], "lirpa", "graph", seed)
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global stream; it is given back
        model = RandomGraph(generator).eval()
        model(torch.zeros(1, 1, 8, 8))
    _draw_weights(model, generator)
    return model.double()


@torch.no_grad()
def _draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 / fan**0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def _attacked(seed: int, effort: Effort) -> tuple[float, int]:
    """Furthest that an attacked output lies outside its bounds, and how many outputs were compared."""
    model = _random_graph(seed)
    generator = torch_generator(SEEDS[0], "lirpa", "points", seed)
    x = torch.rand(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    graph = capture(model, x)
    worst, count = -np.inf, 0
    for threat in THREATS[: effort.sets]:
        with torch.no_grad():
            found = [bounds(graph, Region(x, threat, VALID), method=method, rounding="outward") for method in METHODS]
        outputs = torch.cat(
            [_sampled(model, x, threat, effort.points, generator), _climbed(model, x, threat, effort, generator)]
        )
        worst = max(worst, *(_excess(outputs, bound) for bound in found))
        count += outputs.numel() * len(found)
    return worst, count


@torch.no_grad()
def _sampled(model: nn.Module, x: Tensor, threat: Threat, points: int, generator: torch.Generator) -> Tensor:
    inside = threat.random_start(x.expand(points, -1, -1, -1), VALID, generator=generator)
    return torch.cat([model(inside), model(x)])


def _climbed(model: nn.Module, x: Tensor, threat: Threat, effort: Effort, generator: torch.Generator) -> Tensor:
    """Outputs along gradient ascent and descent of every output."""
    outputs = model(x).shape[1]
    signs = torch.cat([torch.eye(outputs), -torch.eye(outputs)]).double()
    start = x.expand(len(signs), -1, -1, -1)
    point, seen = threat.random_start(start, VALID, generator=generator), []
    for step in range(effort.steps):
        point = point.detach().requires_grad_()
        reached = model(point)
        (gradient,) = torch.autograd.grad((signs * reached).sum(), point)
        stride = 2 * threat.stride(VALID) / (1 + step)
        point = threat.project(point.detach() + stride * threat.steepest(gradient), start, VALID)
        seen.append(model(point).detach())
    return torch.cat(seen)


def _excess(outputs: Tensor, bound: Bounds) -> float:
    return float(torch.maximum(bound.lower - outputs, outputs - bound.upper).max())


def _gap(seed: int) -> float:
    """Largest difference between the bounds of affine networks and their closed form."""
    generator = torch_generator(SEEDS[0], "lirpa", "affine", seed)
    layers: Sequence[nn.Module] = [
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 3, 2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(3),
    ]
    several = _made(nn.Sequential(*layers), generator)
    single = _made(nn.Sequential(nn.Conv2d(1, 3, 3, stride=2)), generator)
    x = torch.rand(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    return max(
        _affine_gap(model, graph, x, threat, method)
        for model, graph, methods in (
            (several, capture(several, x), ("crown-ibp", "crown")),
            (single, capture(single, x), METHODS),
        )
        for method in methods
        for threat in THREATS
    )


def _made(model: nn.Module, generator: torch.Generator) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        model.eval()(torch.zeros(1, 1, 8, 8))
    _draw_weights(model, generator)
    return model.double()


def _affine_gap(model: nn.Module, graph: Graph, x: Tensor, threat: Threat, method: str) -> float:
    with torch.no_grad():
        found = bounds(graph, Region(x, threat, VALID), method=method)  # type: ignore[arg-type]
        value = model(x).flatten(1)
    slope = torch.func.jacrev(lambda one: model(one[None]).flatten())(x[0]).expand(len(x), -1, -1, -1, -1)
    low, high = value + threat.worst(slope, x, VALID), value - threat.worst(-slope, x, VALID)
    return float(torch.maximum((found.lower - low).abs(), (found.upper - high).abs()).max().detach())


@torch.no_grad()
def _widths(scale: Scale, images: int) -> dict[str, np.ndarray]:
    """Widths (images, outputs) of every method."""
    if scale is Scale.FULL:
        model, x = load("cnn"), torch.from_numpy(fashion_mnist("test", images)[0])
    else:
        model = _random_graph(0)
        x = torch.rand(images, 1, 8, 8, generator=torch_generator(SEEDS[0], "lirpa", "images"), dtype=torch.float64)
    graph = capture(model, x)
    region = Region(x, Linf(0.01), VALID)
    return {name: bounds(graph, region, method=name).width.double().numpy() for name in METHODS}


def _mean(values: np.ndarray) -> Estimate:
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    mean = float(values.mean())
    return Estimate(mean, mean - half, mean + half, n=len(values), method="normal")
