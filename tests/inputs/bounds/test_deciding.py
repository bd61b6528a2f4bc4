"""Passes that stop at signs: the same answers where zero stays between the bounds, sound ones where it does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Region, bounds, capture, deciding
from holdfast.inputs.bounds.backward import Pass, refine
from holdfast.inputs.bounds.deciding import DecidingPass
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.rounding import Rounding
from holdfast.threats.balls import L2, Linf

from .attack import excess
from .networks import NAMES, captured, drawn
from .test_soundness import inputs


@pytest.fixture(autouse=True)
def look_at_small_values(monkeypatch):
    monkeypatch.setattr(deciding, "LARGE_VALUE", 0)


def deep() -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(64, 30), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(30, 30), nn.ReLU()]
    return drawn(nn.Sequential(*layers, nn.Linear(30, 5)), 3)


def states(model: nn.Module, outward: bool) -> tuple[Propagation, Propagation]:
    """Two equal propagations up to the last ReLU's input, everything before refined by ordinary passes."""
    graph = capture(model, inputs(3))
    region = Region(inputs(3, 4).double(), Linf(0.02), (0.0, 1.0))
    nodes = graph.bind(torch.float64, torch.device("cpu"))
    made = []
    for _ in range(2):
        state = Propagation(nodes, region, Rounding(outward, graph.longest_sum if outward else 0))
        for node in nodes[:-2]:
            for parent, wanted in zip(node.inputs, node.operator.wanted(*(state.boxes[i] for i in node.inputs))):
                if wanted is not None:
                    refine(state, parent, wanted, 1 << 24)
            state.advance()
        made.append(state)
    return made[0], made[1]


@pytest.mark.parametrize("outward", [False, True])
def test_open_signs_get_the_bounds_of_an_ordinary_pass_and_decided_ones_are_decided_there_too(outward):
    plain, other = states(deep(), outward)
    position = len(plain.boxes) - 1
    position -= plain.nodes[position - 1].operator.by_sign  # the value that the last ReLU takes
    wanted = torch.ones_like(plain.boxes[position].lower, dtype=torch.bool)
    refine(plain, position, wanted, 1 << 24, intersect=False)
    refine(other, position, wanted, 1 << 24, intersect=False, passes=DecidingPass)
    full, quick = plain.boxes[position], other.boxes[position]
    decided = (quick.lower >= 0) | (quick.upper <= 0)
    assert bool(decided.any()), "nothing left the pass: the test shows nothing"
    assert bool((~decided).any()), "everything left the pass: the test shows nothing"
    torch.testing.assert_close(quick.lower[~decided], full.lower[~decided], rtol=0, atol=1e-12)
    torch.testing.assert_close(quick.upper[~decided], full.upper[~decided], rtol=0, atol=1e-12)


def test_rows_really_leave(monkeypatch):
    plain, other = states(deep(), outward=False)
    position = len(plain.boxes) - 1
    position -= plain.nodes[position - 1].operator.by_sign
    reached = []
    at_input = Pass._at_input
    monkeypatch.setattr(Pass, "_at_input", lambda self, rows: reached.append(rows.shape[1]) or at_input(self, rows))
    wanted = torch.ones_like(plain.boxes[position].lower, dtype=torch.bool)
    refine(plain, position, wanted, 1 << 24)
    refine(other, position, wanted, 1 << 24, passes=DecidingPass)
    assert reached[1] < reached[0] == 2 * wanted[0].numel()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.5)])
def test_bounds_stay_sound(name, threat):
    graph = captured(name)
    region = Region(inputs(5).double(), threat, (0.0, 1.0))
    with torch.no_grad():
        found = bounds(graph, region, method="crown", rounding="outward")
    assert excess(graph.model, region, found, samples=50, steps=5) <= 0


def test_bounds_do_not_depend_on_blocks_or_neighbours():
    graph = capture(deep(), inputs(3))
    region = Region(inputs(8, 5).double(), Linf(0.02), (0.0, 1.0))
    with torch.no_grad():
        whole, pieces = (bounds(graph, region, method="crown", memory=memory) for memory in (1 << 30, 1 << 14))
        alone = [bounds(graph, region.part(slice(i, i + 1)), method="crown") for i in range(5)]
    torch.testing.assert_close(whole.lower, pieces.lower, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.cat([b.lower for b in alone]), whole.lower, rtol=0, atol=1e-9)


def test_bounds_are_those_of_ordinary_passes_when_gradients_are_wanted():
    model = deep().double()
    region = Region(inputs(8, 2).double(), Linf(0.02), (0.0, 1.0))
    found = bounds(model, region, method="crown")
    assert found.lower.requires_grad
    generator = torch_generator(0, "points")
    points = torch.stack([Linf(0.02).random_start(region.x, (0.0, 1.0), generator=generator) for _ in range(100)])
    assert bool((model(points.flatten(0, 1)).unflatten(0, points.shape[:2]) >= found.lower - 1e-9).all())
