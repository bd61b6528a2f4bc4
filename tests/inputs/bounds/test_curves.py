"""Lines around curves: below and above everywhere, as tight as a line can be, exact on points, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import METHODS, Region, bounds, capture
from holdfast.inputs.bounds.curves import Curve, lines, tangents
from holdfast.inputs.bounds.operator import Box
from holdfast.inputs.bounds.smooth import Sine, Smooth
from holdfast.threats import Linf

#: Name to (function, part of the line on which it is tested).
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float]]] = {
    "sigmoid": (torch.sigmoid, (-1e6, 1e6)),
    "tanh": (torch.tanh, (-1e6, 1e6)),
    "erf": (torch.erf, (-1e6, 1e6)),
    "gelu": (F.gelu, (-1e6, 1e6)),
    "gelu by tanh": (lambda z: F.gelu(z, approximate="tanh"), (-1e6, 1e6)),
    "silu": (F.silu, (-1e6, 1e6)),
    "mish": (F.mish, (-1e6, 1e6)),
    "softplus": (F.softplus, (-1e6, 1e6)),
    "sharp softplus": (lambda z: F.softplus(z, 3.0, 5.0), (-1e6, 1e6)),
    "log sigmoid": (F.logsigmoid, (-1e6, 1e6)),
    "elu": (F.elu, (-1e6, 1e6)),
    "steep elu": (lambda z: F.elu(z, 2.5), (-1e6, 1e6)),
    "selu": (F.selu, (-1e6, 1e6)),
    "celu": (lambda z: F.celu(z, 0.7), (-1e6, 1e6)),
    "hardswish": (F.hardswish, (-1e6, 1e6)),
    "abs": (torch.abs, (-1e6, 1e6)),
    "square": (torch.square, (-1e4, 1e4)),
    "cube": (lambda z: z**3, (-1e3, 1e3)),
    "fourth power": (lambda z: z**4, (-1e3, 1e3)),
    "root of the cube": (lambda z: z**1.5, (1e-3, 1e4)),
    "fourth root": (lambda z: z**0.25, (1e-3, 1e4)),
    "inverse square": (lambda z: z**-2, (1e-2, 1e3)),
    "power of two": (lambda z: torch.pow(2.0, z), (-60.0, 60.0)),
    "exp": (torch.exp, (-80.0, 60.0)),
    "expm1": (torch.expm1, (-80.0, 60.0)),
    "log": (torch.log, (1e-3, 1e6)),
    "log1p": (torch.log1p, (-0.999, 1e6)),
    "sqrt": (torch.sqrt, (0.0, 1e6)),
    "rsqrt": (torch.rsqrt, (1e-3, 1e6)),
    "reciprocal": (torch.reciprocal, (1e-3, 1e6)),
    "negative reciprocal": (torch.reciprocal, (-1e6, -1e-3)),
    "sin": (torch.sin, (-1e2, 1e2)),
    "cos": (torch.cos, (-1e2, 1e2)),
}


class Pointwise(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@cache
def node(name: str) -> Smooth:
    function, (low, high) = FUNCTIONS[name]
    graph = capture(Pointwise(function), torch.full((1, 1), max(low, min(high, 1.0))))
    found = graph.bind(torch.float64, torch.device("cpu"))[0].operator
    assert isinstance(found, Smooth)
    return found


def curve(name: str) -> Curve:
    return node(name).curve


def boxes(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Intervals of all widths from none to the whole domain, most of them near the origin."""
    generator = torch_generator(0, "tests", name)
    low, high = FUNCTIONS[name][1]
    count = 1000
    centre = torch.randn(count, generator=generator, dtype=torch.float64) * 3
    width = 10 ** (torch.rand(count, generator=generator, dtype=torch.float64) * 19 - 13)
    width = torch.where(torch.rand(count, generator=generator) < 0.02, 0.0, width)
    lower = (centre - width * torch.rand(count, generator=generator)).clamp(low, high).to(dtype)
    upper = torch.maximum(lower, (lower.double() + width).clamp(low, high).to(dtype))
    if isinstance(curve(name), Sine):
        upper = torch.minimum(upper, lower + 6)
    return lower, upper


def excess(name: str, line: tuple[Tensor, Tensor], lower: Tensor, upper: Tensor, sign: float) -> float:
    """How far sign * line rises above sign * function anywhere on a grid, evaluated in float64."""
    share = torch.cat([torch.linspace(0, 1, 101, dtype=torch.float64), torch.logspace(-12, -3, 20).double()])[:, None]
    low, high = lower.double(), upper.double()
    z = torch.cat([low + (high - low) * share, high - (high - low) * share]).clamp(low, high)
    return float((sign * (line[0].double() * z + line[1].double() - FUNCTIONS[name][0](z))).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_lines_and_intervals_hold_to_the_last_digit(name, dtype):
    lower, upper = boxes(name, dtype)
    below, above = lines(curve(name), lower, upper)
    assert excess(name, below, lower, upper, 1.0) <= 0
    assert excess(name, above, lower, upper, -1.0) <= 0
    low, high = curve(name).interval(lower, upper)
    zero = torch.zeros_like(low)
    assert excess(name, (zero, low), lower, upper, 1.0) <= 0
    assert excess(name, (zero, high), lower, upper, -1.0) <= 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_choice_of_tangents_holds(name):
    lower, upper = boxes(name, torch.float64)
    operator = node(name)
    free = torch.rand(2, 4, len(lower), generator=torch_generator(1, "free"), dtype=torch.float64)
    free[:, 0], free[:, 1] = 0.0, 1.0
    found = operator.relax(Box(lower[None], upper[None]), free=free)
    for row in range(4):
        assert excess(name, (found.lower_slope[row], found.lower_bias[row]), lower, upper, 1.0) <= 0
        assert excess(name, (found.upper_slope[row], found.upper_bias[row]), lower, upper, -1.0) <= 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_start_of_the_choices_is_the_default(name):
    box = Box(*boxes(name, torch.float64))
    operator = node(name)
    plain, chosen = operator.relax(box), operator.relax(box, free=operator.start(box))
    reach = box.magnitude.clamp(min=1)
    for side in ("lower", "upper"):
        (s, b), (t, c) = (
            (getattr(found, f"{side}_slope"), getattr(found, f"{side}_bias")) for found in (plain, chosen)
        )
        middle = (box.lower + box.upper) / 2
        scale = 1e-7 * (FUNCTIONS[name][0](box.upper).abs() + FUNCTIONS[name][0](box.lower).abs() + s.abs() * reach + 1)
        assert ((s * middle + b - t * middle - c).abs() <= scale).all()


@pytest.mark.parametrize(
    "name", sorted(set(FUNCTIONS) - {"exp", "power of two", "sharp softplus", "steep elu", "selu", "sin", "cos"})
)
def test_no_line_below_is_higher_at_the_middle(name):
    # The best of many slopes, each with the largest intercept that a fine grid allows, is an upper bound on any line.
    low, high = FUNCTIONS[name][1]
    lower = torch.tensor([-3.0, -2.0, -0.5, -1.0, 0.3, -6.0, -1.2], dtype=torch.float64).clamp(low, high)
    upper = torch.tensor([3.0, 0.5, 4.0, -0.2, 5.0, -1.0, 1.2], dtype=torch.float64).clamp(low, high)
    lower = torch.where(upper - lower < 0.1, (upper - 0.1).clamp(low, high), lower)
    upper = torch.where(upper - lower < 0.1, lower + 0.1, upper)
    z = lower + (upper - lower) * torch.linspace(0, 1, 801, dtype=torch.float64)[:, None]
    value, middle = FUNCTIONS[name][0](z), (lower + upper) / 2
    steps = (value[1:] - value[:-1]) / (z[1:] - z[:-1])
    share = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
    slopes = steps.amin(0) + (steps.amax(0) - steps.amin(0)) * share
    below, above = lines(curve(name), lower, upper)
    best_below = torch.stack([(value - s * z).amin(0) + s * middle for s in slopes]).amax(0)
    best_above = torch.stack([(value - s * z).amax(0) + s * middle for s in slopes]).amin(0)
    tolerance = 2e-4 * (value.amax(0) - value.amin(0) + 1e-3)
    assert (below.slope * middle + below.bias >= best_below - tolerance).all()
    # Around two concave pieces the upper line is the chord, which need not be the best one; it is where it touches.
    several = Tensor([name in ("gelu", "gelu by tanh", "silu", "mish", "hardswish")]).bool()
    assert (several | (above.slope * middle + above.bias <= best_above + tolerance)).all()


def test_lines_of_the_sigmoid_by_hand():
    # Convex left of 0, concave right of it; across 0 the upper line leaves from the lower end and touches the curve.
    lower, upper = torch.tensor([[-3.0, 1.0, -2.0]] * 1).double()[0], torch.tensor([-1.0, 3.0, 4.0]).double()
    below, above = lines(curve("sigmoid"), lower, upper)
    slope = lambda z: torch.sigmoid(z) * torch.sigmoid(-z)  # noqa: E731
    chord = (torch.sigmoid(upper) - torch.sigmoid(lower)) / (upper - lower)
    torch.testing.assert_close(below.slope[0], slope(torch.tensor(-2.0).double()))
    torch.testing.assert_close(above.slope[0], chord[0])
    torch.testing.assert_close(below.slope[1], chord[1])
    torch.testing.assert_close(above.slope[1], slope(torch.tensor(2.0).double()))
    touching = above.slope[2] * -2.0 + above.bias[2] - torch.sigmoid(torch.tensor(-2.0).double())
    assert abs(float(touching)) < 1e-12 or math.isclose(float(above.slope[2]), float(slope(torch.tensor(1.0).double())))
    first = tangents(curve("sigmoid"), lower, upper)[1].first[2]
    tangent_there = torch.sigmoid(first) + slope(first) * (-2.0 - first)
    assert tangent_there.item() == pytest.approx(torch.sigmoid(torch.tensor(-2.0)).item(), abs=1e-6)


def test_the_tangent_of_exp_stays_positive():
    lower, upper = torch.tensor([-1.0, -5.0, 0.0]).double(), torch.tensor([0.0, 20.0, 50.0]).double()
    below, _ = lines(curve("exp"), lower, upper)
    assert (below.slope * lower + below.bias > 0).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_single_point_is_met(name):
    low, high = FUNCTIONS[name][1]
    z = torch.linspace(max(low, -5.0), min(high, 5.0), 101, dtype=torch.float64)
    value = FUNCTIONS[name][0](z)
    dropped = {"softplus": 1e-8, "sharp softplus": 1e-2}.get(name, 1e-12)  # torch's softplus has a threshold
    for line in lines(curve(name), z, z):
        torch.testing.assert_close(line.slope * z + line.bias, value, rtol=1e-12, atol=dropped)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "erf", "gelu", "silu", "softplus", "exp", "elu", "square"])
def test_lines_are_differentiable_in_the_interval(name):
    lower = torch.tensor([-2.0, -0.7, -4.0, 0.4, -2.3], dtype=torch.float64, requires_grad=True)
    upper = torch.tensor([-0.5, 2.5, 0.9, 1.6, 5.0], dtype=torch.float64, requires_grad=True)

    def both(low: Tensor, high: Tensor) -> Tensor:
        return torch.stack([part for line in lines(curve(name), low, high) for part in line])

    assert torch.autograd.gradcheck(both, (lower, upper), eps=1e-6, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("function", [torch.log, torch.sqrt, torch.rsqrt, torch.reciprocal, lambda z: z**-0.5])
def test_leaving_the_domain_names_the_operator_and_its_line(function):
    model = nn.Sequential(nn.Linear(2, 2), Pointwise(function))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.fill_(0.5)
    region = Region(torch.zeros(1, 2), Linf(0.6))
    for method in METHODS:
        with pytest.raises(InputError, match=r"(log|sqrt|rsqrt|reciprocal|pow).*test_curves\.py:\d+"):
            bounds(model, region, method=method)
        assert torch.isfinite(bounds(model, Region(torch.zeros(1, 2), Linf(0.4)), method=method).lower).all()


def test_a_sine_over_more_than_a_period_is_its_range():
    model = Pointwise(torch.sin)
    found = bounds(model, Region(torch.zeros(1, 3).double(), Linf(4.0)), method="crown")
    torch.testing.assert_close(found.lower, -torch.ones(1, 3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.upper, torch.ones(1, 3).double(), atol=1e-6, rtol=0)
