"""Bounds are attacked; a bound that can be beaten is a bug.  One deliberately unsound operator shows the attack would
notice.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import METHODS, Region, bounds, certify
from holdfast.inputs.bounds.activation import LeakyReLU
from holdfast.inputs.bounds.operator import Box, Relaxation
from holdfast.threats.balls import L0, L1, L2, Linf
from holdfast.threats.balls import Box as BoxThreat

from .attack import excess
from .networks import NAMES, captured, drawn

THREATS = {
    "linf": Linf(0.08),
    "l2": L2(0.4),
    "l1": L1(0.8),
    "l0": L0(2),
    "box": BoxThreat(-0.02, 0.1),
}


def inputs(seed: int, batch: int = 3) -> Tensor:
    return torch.rand(batch, 1, 8, 8, generator=torch_generator(seed, "tests", "inputs"))


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("name", NAMES)
def test_no_sampled_or_attacked_point_leaves_the_bounds(name, threat):
    graph = captured(name)
    model = graph.model
    for method in METHODS:
        region = Region(inputs(1).double(), THREATS[threat], (0.0, 1.0))
        with torch.no_grad():
            found = bounds(graph, region, method=method, rounding="outward", iterations=3)
        assert excess(model, region, found, samples=20, steps=4) <= 0


@pytest.mark.parametrize("radius", [1e-9, 1e-7, 1e-6, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_outward_rounding_holds_at_radii_near_the_unit_roundoff(name, dtype, radius):
    graph = captured(name, 7)
    model = graph.model
    for method in METHODS:
        region = Region(inputs(3).to(dtype), Linf(radius))
        with torch.no_grad():
            found = bounds(graph, region, method=method, rounding="outward", iterations=3)
        # Points are formed in float64, so that they are inside the region to float64's precision.
        inside = Region(region.x.double(), Linf(radius * (1 - 1e-6)))
        assert excess(model, inside, found, samples=10, steps=3) <= 0


def test_huge_weights_do_not_break_outward_rounding():
    # Cancellation of large terms is where bounds in plain float32 are off by more than their width.
    layers = [nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)]
    model = drawn(nn.Sequential(*layers), 3)
    with torch.no_grad():
        model[1].bias.add_(1e6)
        model[3].weight.mul_(1e3)
        model[3].bias.add_(-1e8)
    region = Region(inputs(5), Linf(1e-6))
    with torch.no_grad():
        plain = bounds(model, region, method="crown")
        outward = bounds(model, region, method="crown", rounding="outward")
    inside = Region(region.x.double(), Linf(9e-7))
    assert excess(model, inside, plain, samples=20, steps=2) > 0, (
        "the case is meant to be one where nearest rounding fails"
    )
    assert excess(model, inside, outward, samples=20, steps=2) <= 0


@settings(max_examples=40)
@given(*map(st.sampled_from, (NAMES, sorted(THREATS), METHODS)), st.integers(0, 2**31), st.floats(0.2, 3.0))
def test_random_weights_threats_and_methods(name, threat, method, seed, scale):
    graph = captured(name, 99)
    model = drawn(graph.model, seed, scale)
    region = Region(inputs(seed, 2).double(), THREATS[threat], (0.0, 1.0))
    with torch.no_grad():
        found = bounds(graph, region, method=method, rounding="outward", iterations=3)
    assert (found.lower <= found.upper).all()
    assert excess(model, region, found, samples=10, steps=2) <= 0


def test_the_attack_catches_an_unsound_operator(monkeypatch):
    sound = LeakyReLU.relax

    def unsound(self, *boxes: Box, **options) -> Relaxation:
        lines = sound(self, *boxes, **options)
        return replace(lines, upper_bias=0.5 * lines.upper_bias)

    monkeypatch.setattr(LeakyReLU, "relax", unsound)
    graph = captured("multilayer")
    region = Region(inputs(1).double(), Linf(0.08), (0.0, 1.0))
    with torch.no_grad():
        found = bounds(graph, region, method="crown", rounding="outward")
    assert excess(graph.model, region, found, samples=30, steps=6) > 0


def test_certified_examples_survive_the_attack_and_ordering_of_methods():
    graph = captured("residual")
    model = graph.model
    x = inputs(2, 20)
    y = model(x).argmax(1)
    margins = {method: certify(graph, x, y, Linf(0.1), (0.0, 1.0), method, iterations=3).margin for method in METHODS}
    assert margins["crown"].mean() > margins["crown-ibp"].mean() > margins["ibp"].mean()
    proven = margins["crown"] > 0
    assert proven.any()
    assert not proven.all()
    generator = torch_generator(0, "points")
    for _ in range(100):
        point = Linf(0.1).random_start(x, (0.0, 1.0), generator=generator)
        assert torch.equal(model(point).argmax(1)[proven], y[proven])
