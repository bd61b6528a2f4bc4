"""Optimised multipliers: never below where they started, sound under splits, and what they return can be used again."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Graph, Region, bounds, capture, patches
from holdfast.inputs.bounds.backward import Pass
from holdfast.inputs.bounds.bounding import MEMORY, propagate
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.operator import Box
from holdfast.inputs.bounds.optimize import Multipliers, minimise
from holdfast.inputs.bounds.rounding import Rounding
from holdfast.threats.balls import L2, Linf

from .attack import excess
from .networks import NAMES, captured, drawn, networks
from .test_soundness import THREATS, inputs


def reached(graph: Graph, region: Region, dtype: torch.dtype = torch.float64, outward: bool = False) -> Propagation:
    """The state of a CROWN propagation."""
    with torch.no_grad():
        state = Propagation(
            graph.bind(dtype, torch.device("cpu")), region, Rounding(outward, graph.longest_sum if outward else 0)
        )
        propagate(state, "crown", MEMORY)
    return state


def small(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Graph, Propagation]:
    """A network of two inputs and seven ReLUs, bounded over one square."""
    layers = [nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)]
    model = drawn(nn.Sequential(*layers), seed, 2.0)
    x = torch.randn(1, 2, dtype=dtype, generator=torch_generator(seed, "tests", "points"))
    graph = capture(model, x.float())
    return graph, reached(graph, Region(x, Linf(1.0)), dtype)


def halves(state: Propagation, position: int) -> tuple[Propagation, dict[int, Tensor]]:
    """One example for either sign of every open entry of the value at `position`, boxes clamped accordingly."""
    box = state.boxes[position]
    entries = ((box.lower < 0) & (box.upper > 0)).flatten().nonzero().flatten().tolist()
    sign = torch.zeros(2 * len(entries), box.lower.numel())
    for i, entry in enumerate(entries):
        sign[2 * i, entry], sign[2 * i + 1, entry] = 1, -1
    sign = sign.reshape(-1, *box.lower.shape[1:])
    boxes = [Box(*(end.expand(len(sign), *end.shape[1:]).clone() for end in b)) for b in state.boxes]
    low, high = boxes[position]
    boxes[position] = Box(torch.where(sign > 0, low.clamp(min=0), low), torch.where(sign < 0, high.clamp(max=0), high))
    return Propagation.resume(state.nodes, state.region, state.rounding, boxes), {position: sign}


def default(state: Propagation, output: int, rows: Tensor) -> Tensor:
    shaped = rows.reshape(*rows.shape[:2], *state.boxes[output].lower.shape[1:])
    return Pass(state, slice(0, len(rows)), both=False).run(output, shaped).lower


def grid(model: nn.Module, state: Propagation, position: int) -> tuple[Tensor, Tensor]:
    """A fine grid of the square: the values at `position` and the outputs."""
    low, high = (end.flatten() for end in state.boxes[0])
    axes = [torch.linspace(float(a), float(b), 201, dtype=torch.float64) for a, b in zip(low, high)]
    points = torch.cartesian_prod(*axes)
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        return model[:position](points), model(points)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("position", [1, 3])
def test_bounds_under_splits_hold_on_the_part_of_the_square_that_they_speak_of(seed, position):
    graph, state = small(seed)
    parts, splits = halves(state, position)
    count = len(parts.boxes[0].lower)
    if count == 0:
        pytest.skip("every entry has one sign only")
    rows = torch.cat([torch.eye(2), -torch.eye(2)]).double().expand(count, -1, -1)
    plain = default(parts, graph.output, rows)
    without, _ = minimise(parts, graph.output, rows, iterations=30)
    lower, multipliers = minimise(parts, graph.output, rows, iterations=30, splits=splits)
    assert (without >= plain).all()
    assert (lower >= plain).all()
    assert lower.mean() > without.mean(), "the splits' multipliers add nothing"
    assert all((beta >= 0).all() for beta in multipliers.beta.values())
    assert all(((free >= 0) & (free <= 1)).all() for free in multipliers.free.values())
    values, outputs = grid(graph.model, state, position)
    (sign,) = splits.values()
    for i in range(count):
        inside = ((sign[i].flatten() * values) >= 0).all(1)
        if inside.any():
            assert ((outputs[inside] @ rows[i].mT).amin(0) >= lower[i] - 1e-9).all()


def test_one_split_neuron_is_decided_exactly():
    # f(x) = relu(x) - x/2 on [-1, 2] is at least 0; halves: x/2 on [0, 2], -x/2 on [-1, 0].  Without multipliers the
    # half x >= 0 is bounded over all of [-1, 2] by x/2 >= -1/2; the multiplier 1/2 makes the row vanish.
    class Tent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = 1.0 * x
            return torch.relu(z) - 0.5 * z

    region = Region(torch.tensor([[0.5]], dtype=torch.float64), Linf(1.5))
    graph = capture(Tent(), region.x)
    parts, splits = halves(reached(graph, region), 1)
    rows = torch.ones(2, 1, 1, dtype=torch.float64)
    assert default(parts, graph.output, rows).flatten().tolist() == pytest.approx([-0.5, -1.0])
    lower, multipliers = minimise(parts, graph.output, rows, iterations=100, splits=splits)
    assert lower.flatten().tolist() == pytest.approx([0.0, 0.0], abs=0.02)
    assert multipliers.beta[1].flatten().tolist() == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_warm_start_gives_its_bound_again_and_never_loses(name, dtype):
    graph = captured(name)
    state = reached(graph, Region(inputs(3, 4).to(dtype), L2(0.6), (0.0, 1.0)), dtype)
    rows = torch.eye(graph.outputs, dtype=dtype).expand(4, -1, -1)
    first, multipliers = minimise(state, graph.output, rows, iterations=5)
    again, _ = minimise(state, graph.output, rows, iterations=0, start=multipliers)
    torch.testing.assert_close(again, first, rtol=1e-5, atol=1e-5 if dtype is torch.float32 else 1e-9)
    further, _ = minimise(state, graph.output, rows, iterations=5, start=multipliers)
    assert (further >= again).all()
    assert (first >= default(state, graph.output, rows)).all()
    # A choice of the examples, in another order, keeps its bounds: what branching does.
    chosen = torch.tensor([2, 0])
    part, _ = minimise(state.part(chosen), graph.output, rows[chosen], iterations=0, start=multipliers.examples(chosen))
    torch.testing.assert_close(part, again[chosen], rtol=1e-5, atol=1e-5 if dtype is torch.float32 else 1e-9)


def test_what_float32_finds_holds_in_float64_with_outward_rounding():
    graph = captured("residual")
    region = Region(inputs(3, 2), Linf(0.1))
    rows = torch.eye(graph.outputs).expand(2, -1, -1)
    found, multipliers = minimise(reached(graph, region, torch.float32), graph.output, rows)
    exact = reached(graph, Region(region.x.double(), region.threat), outward=True)
    proven, _ = minimise(exact, graph.output, rows.double(), iterations=0, start=multipliers)
    torch.testing.assert_close(proven, found.double(), rtol=1e-3, atol=1e-3)
    nearest = reached(graph, Region(region.x.double(), region.threat))
    rounded, _ = minimise(nearest, graph.output, rows.double(), iterations=0, start=multipliers)
    assert (proven < rounded).all(), "outward rounding charges something"


@settings(max_examples=12)
@given(st.sampled_from(NAMES), st.sampled_from(sorted(THREATS)), st.integers(0, 2**31), st.sampled_from((True, False)))
def test_optimised_bounds_are_never_looser_row_by_row(name, threat, seed, intersect):
    graph = captured(name, 99)
    model = drawn(graph.model, seed, 1.5)
    region = Region(inputs(seed, 2).double(), THREATS[threat], (0.0, 1.0))
    with torch.no_grad():
        plain = bounds(graph, region, method="crown", intersect=intersect)
        found = bounds(graph, region, method="alpha-crown", intersect=intersect, iterations=2)
    assert (found.lower >= plain.lower).all()
    assert (found.upper <= plain.upper).all()
    assert excess(model, region, found, samples=10, steps=3) <= 1e-9


@pytest.mark.parametrize("name", ["residual", "multilayer", "sequence"])
def test_optimising_pays_and_more_steps_pay_more(name):
    graph = captured(name)
    region = Region(inputs(4).double(), Linf(0.15), (0.0, 1.0))
    with torch.no_grad():
        plain = bounds(graph, region, method="crown").width.mean()
        few, many = (bounds(graph, region, method="alpha-crown", iterations=n).width.mean() for n in (1, 20))
    assert plain > few > many


@pytest.mark.parametrize("name", ["residual", "pooled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_optimised_bounds_do_not_depend_on_blocks_windows_or_neighbours(name, dtype, monkeypatch):
    graph = captured(name)
    region = Region(inputs(8, 3).to(dtype), L2(0.5), (0.0, 1.0))
    close = {"rtol": 0, "atol": 1e-3 if dtype is torch.float32 else 1e-7}

    def found(region: Region, memory: int = MEMORY) -> Tensor:
        with torch.no_grad():
            return bounds(graph, region, iterations=3, memory=memory).lower

    whole = found(region)
    torch.testing.assert_close(found(region, 1 << 20), whole, **close)
    torch.testing.assert_close(torch.cat([found(region.part(slice(i, i + 1))) for i in range(3)]), whole, **close)
    for most in (2.0, -1.0):
        monkeypatch.setattr(patches, "MOST", most)
        torch.testing.assert_close(found(region), whole, **close)


def strided(kernel: int) -> nn.Module:
    """Strided convolutions in a row, whose windows reach over the edge."""
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(1, 4, kernel, 2, padding),
        nn.ReLU(),
        nn.Conv2d(4, 6, kernel, 2, padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_rows_sorted_by_phase_give_the_same_optimised_bounds(kernel):
    # Only float32 sorts rows by phase; what they carry beyond the edge of the image must not count.
    model = strided(kernel)
    model(inputs(0))
    graph = capture(drawn(model, kernel, 1.5), inputs(0))
    found = []
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            found.append(bounds(graph, Region(inputs(kernel).to(dtype), Linf(0.2)), iterations=3).lower.double())
    torch.testing.assert_close(*found, rtol=1e-3, atol=2e-3)


def test_linear_functions_with_optimised_slopes_enclose_the_network():
    graph = captured("residual")
    model = copy.deepcopy(graph.model).double()
    x = inputs(6).double()
    with torch.no_grad():
        found = bounds(graph, Region(x, Linf(0.05)), linear=True, iterations=3)
    A_l, b_l, A_u, b_u = found.linear
    generator = torch_generator(0, "points")
    for _ in range(50):
        point = Linf(0.05).random_start(x, generator=generator)
        output = model(point)
        assert (torch.einsum("nrchw,nchw->nr", A_l, point) + b_l <= output + 1e-9).all()
        assert (torch.einsum("nrchw,nchw->nr", A_u, point) + b_u >= output - 1e-9).all()


def test_gradients_in_weights_are_those_at_the_parameters_found():
    # The envelope theorem does not apply to a search that stopped early, but the bound with its parameters fixed is an
    # ordinary function of the weights: its gradient is checked by a difference quotient along a random direction.
    model = drawn(networks()["multilayer"].double(), 5)
    graph = capture(model, inputs(0).double())
    region = Region(inputs(0).double(), Linf(0.1), (0.0, 1.0))
    weight = model[3].weight
    direction = torch.randn(weight.shape, dtype=weight.dtype, generator=torch_generator(0, "tests", "direction"))

    def lower(iterations: int) -> Tensor:
        return bounds(graph, region, iterations=iterations, upper=False).lower.sum()

    (gradient,) = torch.autograd.grad(lower(0), weight)
    with torch.no_grad():
        weight.add_(1e-6 * direction)
        above = lower(0)
        weight.sub_(2e-6 * direction)
        below = lower(0)
        weight.add_(1e-6 * direction)
    assert float((gradient * direction).sum()) == pytest.approx(float(above - below) / 2e-6, rel=1e-4)
    (optimised,) = torch.autograd.grad(lower(5), weight)
    assert torch.isfinite(optimised).all()
    assert not torch.allclose(optimised, gradient)


def test_rows_that_are_good_enough_are_left_alone():
    graph = captured("multilayer")
    state = reached(graph, Region(inputs(3).double(), Linf(0.1)))
    rows = torch.eye(graph.outputs, dtype=torch.float64).expand(3, -1, -1)
    plain = default(state, graph.output, rows)
    settled, _ = minimise(state, graph.output, rows, stop_at=-1e9)
    torch.testing.assert_close(settled, plain, rtol=0, atol=1e-12)
    aim = torch.full_like(plain, -1e9)
    aim[1, 2] = 1e9
    moved, _ = minimise(state, graph.output, rows, stop_at=aim)
    assert moved[1, 2] > plain[1, 2]
    torch.testing.assert_close(moved[0], plain[0], rtol=0, atol=1e-12)


def test_nothing_leaks_a_gradient():
    graph = captured("multilayer")
    region = Region(inputs(3).double(), Linf(0.1))
    state = Propagation(graph.bind(torch.float64, torch.device("cpu")), region, Rounding(False, 0))
    propagate(state, "crown", MEMORY)
    rows = torch.eye(graph.outputs, dtype=torch.float64).expand(3, -1, -1)
    lower, multipliers = minimise(state, graph.output, rows, iterations=3)
    assert not lower.requires_grad
    assert not any(value.requires_grad for value in (*multipliers.free.values(), *multipliers.beta.values()))
    assert all(parameter.grad is None for parameter in graph.model.parameters())


def test_recorded_rows_are_those_that_arrive():
    graph, state = small(2)
    rows = torch.eye(2, dtype=torch.float64)[None, None, 0]
    backward = Pass(state, slice(0, 1), both=False, record=True)
    backward.run(graph.output, rows.reshape(1, 1, 1, 2))
    torch.testing.assert_close(backward.recorded[4].flatten(), graph.model[4].weight[0].double())
    assert sorted(backward.recorded) == [2, 4]


def test_bad_input_is_one_clear_error():
    graph, state = small(0)
    rows = torch.ones(1, 1, 2, dtype=torch.float64)
    with pytest.raises(InputError, match="negative"):
        minimise(state, graph.output, rows, iterations=-1)
    with pytest.raises(InputError, match="rows"):
        minimise(state, graph.output, rows[..., :1])
    with pytest.raises(InputError, match="float32"):
        minimise(state, graph.output, rows.float())
    with pytest.raises(InputError, match="splits of value 1"):
        minimise(state, graph.output, rows, splits={1: torch.ones(1, 3)})
    with pytest.raises(InputError, match="negative"):
        bounds(graph, Region(torch.zeros(1, 2), Linf(0.1)), iterations=-1)
    with pytest.raises(InputError, match="start"):
        minimise(state, graph.output, rows, start=Multipliers({2: torch.ones(1, 5, 1, 1, 4)}))
