"""Beside auto_LiRPA 0.7.1, where it can be imported: equal or tighter where both are sound, and where it is not.

Clone github.com/Verified-Intelligence/auto_LiRPA and put it on PYTHONPATH (see `benchmarks.bounds`).
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Region, bounds
from holdfast.inputs.bounds.weights import PerturbedWeights, WeightPerturbation
from holdfast.threats import Linf

from .attack import excess
from .networks import drawn

peer = pytest.importorskip("auto_LiRPA", reason="the peer is not on the path")


class Block(nn.Module):
    """One head of attention and a smooth layer, in calls that the peer's tracer knows."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.enter, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.matmul(self.query(x), self.key(x).transpose(-1, -2)) / math.sqrt(6)
        x = x + torch.matmul(torch.softmax(scores, -1), self.value(x))
        return self.head(torch.relu(self.enter(x - x.mean(-1, keepdim=True)))[:, 0])


class Cell(nn.Module):
    """Two steps of an LSTM cell."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.recur, self.head = nn.Linear(4, 20), nn.Linear(5, 20), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, cell = torch.zeros(1, 5), torch.zeros(1, 5)
        for step in range(2):
            gates = self.enter(x[:, step]) + self.recur(hidden)
            enter, forget, new, leave = (gates[:, 5 * k : 5 * k + 5] for k in range(4))
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
        return self.head(hidden)


def curved(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), activation(), nn.Linear(10, 10), activation(), nn.Linear(10, 3))


CASES = {
    "transformer": (Block, (3, 6)),
    "lstm": (Cell, (2, 4)),
    "sigmoid": (lambda: curved(nn.Sigmoid), (6,)),
    "tanh": (lambda: curved(nn.Tanh), (6,)),
}


def compared(name: str, eps: float, method: str) -> tuple[float, float]:
    """Mean widths, ours and the peer's."""
    model = drawn(CASES[name][0](), 2, 1.5)
    x = torch.rand(1, *CASES[name][1], generator=torch_generator(0, "tests", "input"))
    given = peer.BoundedTensor(x, peer.PerturbationLpNorm(norm=math.inf, eps=eps))
    with torch.no_grad():
        found = bounds(model, Region(x, Linf(eps)), method=method)
        lower, upper = peer.BoundedModule(model, x).compute_bounds(
            x=(given,), method={"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}[method]
        )
    return float(found.width.mean()), float((upper - lower).mean())


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
@pytest.mark.parametrize("name", CASES)
def test_bounds_are_no_wider_than_the_peers(name, method, eps):
    ours, theirs = compared(name, eps, method)
    assert ours <= 1.01 * theirs


def weights(norm: str, eps: float) -> tuple[nn.Module, PerturbedWeights, nn.Module, Tensor]:
    """A model, its bounder, and the peer's, with the same sets around the weights."""
    model = drawn(nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)), 0)
    perturbation = WeightPerturbation(eps, norm)
    x = torch.rand(4, 20, generator=torch_generator(0, "tests", "input"))
    twin = copy.deepcopy(model)
    for layer in twin:
        if isinstance(layer, nn.Linear):
            weight = layer.weight.detach()
            size = peer.PerturbationLpNorm(norm=2 if norm == "l2" else math.inf, eps=perturbation.radius(weight))
            layer.weight = peer.BoundedParameter(weight, size)
    return model, PerturbedWeights(model, x, perturbation), peer.BoundedModule(twin, x), x


def test_boxes_of_weights_give_the_peers_bounds():
    _, traced, theirs, x = weights("linf", 0.01)
    with torch.no_grad():
        for method, name in (("ibp", "IBP"), ("crown-ibp", "CROWN-IBP")):
            found = traced.bounds(x, method=method)
            lower, upper = theirs.compute_bounds(x=(x,), method=name)
            assert float(found.width.mean()) <= 1.01 * float((upper - lower).mean())


def test_the_peers_bounds_over_balls_of_weights_are_left_and_ours_are_not():
    _, traced, theirs, x = weights("l2", 0.1)
    graph, region = traced.region(x)
    with torch.no_grad():
        ours = traced.bounds(x, method="crown", rounding="outward")
        lower, upper = theirs.compute_bounds(x=(x,), method="CROWN")
    assert excess(graph.model, region, ours, samples=5, steps=20) <= 0
    assert excess(graph.model, region, type(ours)(lower.detach(), upper.detach()), samples=5, steps=20) > 1e-3
