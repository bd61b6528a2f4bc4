"""Bounds of a Transformer block, an LSTM cell and perturbed weights beside auto_LiRPA.

The peer is the one of `benchmarks.bounds`, found in the same way.  Both sides are built once; what is timed is one call
that bounds all outputs, in float32 on one thread.  As many of these bounds rest on different relaxations, they are not
equal: a benchmark is accepted when ours are on average at most 1 % wider, and the ratio of mean widths, peer / ours,
stands among the settings.  Both sides run as they come: ours intersects backward bounds with intervals.

Perturbed weights are compared over L-infinity sets.  Over L2 balls version 0.7.1 of the peer gives bounds that weights
inside the ball leave (tests/inputs/bounds/test_peer.py shows some), so there is nothing to compare.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Benchmark
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Graph, Method, Region, bounds, capture
from holdfast.inputs.bounds.weights import PerturbedWeights, WeightPerturbation
from holdfast.threats import Linf

PEER = "auto_LiRPA"
PEER_METHOD = {"crown-ibp": "CROWN-IBP", "crown": "CROWN"}


class Block(nn.Module):
    """A Transformer block with normalisation by the mean only, as the peer's paper verifies; a linear head on token 0.

    Written with the calls that the peer's tracer knows.
    """

    def __init__(self, tokens: int = 6, width: int = 16, heads: int = 2, inner: int = 32) -> None:
        super().__init__()
        self.tokens, self.width, self.heads = tokens, width, heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.join, self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, inner), nn.Linear(inner, width)
        self.head = nn.Linear(width, 3)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.tokens, self.heads, self.width // self.heads).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.width // self.heads)
        mixed = torch.matmul(torch.softmax(scores, -1), value).permute(0, 2, 1, 3)
        x = x + self.join(mixed.reshape(-1, self.tokens, self.width))
        x = x - x.mean(-1, keepdim=True)
        x = x + self.leave(torch.relu(self.enter(x)))
        return self.head((x - x.mean(-1, keepdim=True))[:, 0])


class LSTM(nn.Module):
    """Three steps of a cell and a linear head."""

    def __init__(self, inputs: int = 8, size: int = 16) -> None:
        super().__init__()
        self.enter, self.recur, self.head = nn.Linear(inputs, 4 * size), nn.Linear(size, 4 * size), nn.Linear(size, 3)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        hidden, cell = torch.zeros(1, self.size), torch.zeros(1, self.size)
        for step in range(3):
            gates = self.enter(x[:, step]) + self.recur(hidden)
            enter, forget, new, leave = (gates[:, k * self.size : (k + 1) * self.size] for k in range(4))
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
        return self.head(hidden)


def multilayer() -> nn.Module:
    """What weights are perturbed of."""
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Case:
    """Both sides, built: each gives lower and upper bounds of all outputs."""

    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]


def peer_version() -> str | None:
    """Version of the auto_LiRPA on the path, None when there is none."""
    if find_spec(PEER) is None:
        return None
    import auto_LiRPA

    return str(auto_LiRPA.__version__)


def _drawn(model: nn.Module) -> nn.Module:
    generator = torch_generator(0, "benchmarks", "transformer")
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 1 / math.sqrt(parameter.shape[1]) if parameter.ndim > 1 else 0.1
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _ours(graph: Graph, region: Region, method: Method) -> Tensor:
    found = bounds(graph, region, method=method)
    return torch.stack([found.lower, found.upper])


def _theirs(peer: Any, given: Any, method: Method) -> Tensor:
    return torch.stack(peer.compute_bounds(x=(given,), method=PEER_METHOD[method]))


def prepare_inputs(model: Callable[[], nn.Module], shape: tuple[int, ...], eps: float, method: Method) -> Case:
    """Inputs that move."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    torch.set_num_threads(1)
    net = _drawn(model())
    x = torch.rand(1, *shape, generator=torch_generator(0, "benchmarks", "input"))
    graph, peer = capture(net, x), BoundedModule(net, x)
    perturbed = BoundedTensor(x, PerturbationLpNorm(norm=math.inf, eps=eps))
    region = Region(x, Linf(eps))
    return Case(partial(_ours, graph, region, method), partial(_theirs, peer, perturbed, method))


def prepare_weights(eps: float, method: Method) -> Case:
    """Weights that move."""
    from auto_LiRPA import BoundedModule, BoundedParameter, PerturbationLpNorm

    torch.set_num_threads(1)
    net, perturbation = _drawn(multilayer()), WeightPerturbation(eps, "linf")
    x = torch.rand(16, 64, generator=torch_generator(0, "benchmarks", "input"))
    twin = copy.deepcopy(net)
    for layer in twin.modules():
        if isinstance(layer, nn.Linear):
            size = PerturbationLpNorm(norm=math.inf, eps=perturbation.radius(layer.weight.detach()))
            layer.weight = BoundedParameter(layer.weight.detach(), size)
    graph, region = PerturbedWeights(net, x, perturbation).region(x)
    return Case(partial(_ours, graph, region, method), partial(_theirs, BoundedModule(twin, x), x, method))


@torch.no_grad()
def ours(case: Case) -> Tensor:
    """Lower and upper bounds of all outputs."""
    return case.ours()


@torch.no_grad()
def theirs(case: Case) -> Tensor:
    """The peer's."""
    return case.theirs()


def as_tight(settings: dict[str, Any], mine: Tensor, peers: Tensor) -> bool:
    """Whether ours are on average no more than 1 % wider; notes the ratio of widths."""
    width, theirs_ = (float((ends[1] - ends[0]).mean()) for ends in (mine, peers))
    settings["width, peer / ours"] = round(theirs_ / width, 3)
    return width <= 1.01 * theirs_


def _benchmark(name: str, subject: str, prepare: Callable[[], Case], settings: dict[str, Any]) -> Benchmark:
    settings |= {"dtype": "float32", "threads": 1}
    return Benchmark(name, subject, PEER, peer_version(), prepare, ours, theirs, partial(as_tight, settings), settings)


INPUTS = (
    ("transformer", "Transformer block, 6 tokens", 0.01, partial(prepare_inputs, Block, (6, 16), 0.01)),
    ("lstm", "LSTM cell, 3 steps", 0.05, partial(prepare_inputs, LSTM, (3, 8), 0.05)),
)
BENCHMARKS = (
    *(
        _benchmark(f"{kind}-{method}", subject, partial(prepare, method=method), {"method": method, "eps": eps})
        for kind, subject, eps, prepare in INPUTS
        for method in ("crown-ibp", "crown")
    ),
    _benchmark(
        "weights-crown-ibp",
        "3-layer network, weights moved, 16 inputs",
        partial(prepare_weights, 0.01, "crown-ibp"),
        {"method": "crown-ibp", "eps": "0.01 of the largest weight"},
    ),
)
