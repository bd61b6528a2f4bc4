"""Forward functions: enclose every value, exactly where the network is affine, and pay where inputs are few."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from holdfast.inputs.bounds import Region, bounds, capture
from holdfast.inputs.bounds.forward import Forward
from holdfast.inputs.bounds.interval import Propagation
from holdfast.inputs.bounds.rounding import Rounding
from holdfast.threats.balls import L2, Linf

from .attack import excess
from .networks import NAMES, captured, drawn
from .test_soundness import THREATS, inputs


def functions_of(name: str, outward: bool) -> tuple[Forward, Tensor, Tensor, Region]:
    graph = captured(name)
    region = Region(inputs(4).double(), Linf(0.1), (0.0, 1.0))
    rounding = Rounding(outward, graph.longest_sum if outward else 0)
    with torch.no_grad():
        forward = Forward(Propagation(graph.bind(torch.float64, torch.device("cpu")), region, rounding))
        functions = forward.run(graph.output)
    return forward, functions.lower, functions.upper, region


@pytest.mark.parametrize("name", NAMES)
def test_the_functions_enclose_the_network(name):
    _, lower, upper, region = functions_of(name, outward=False)
    model = captured(name).model.double()
    try:
        for seed in range(30):
            generator = torch.Generator().manual_seed(seed)
            point = region.threat.random_start(region.x, region.valid, generator=generator)
            columns = torch.cat([torch.ones(len(point), 1).double(), point.flatten(1)], 1)[:, None]
            below, above = ((columns @ side.flatten(2)).squeeze(1) for side in (lower, upper))
            output = model(point).detach()
            assert (below <= output + 1e-9).all()
            assert (above >= output - 1e-9).all()
    finally:
        model.float()


# Max pooling picks other winners among equals when boxes move by rounding; then functions are not comparable.
@pytest.mark.parametrize("name", ["multilayer", "residual", "viewed"])
def test_outward_rounding_moves_the_constants_apart(name):
    _, lower, upper, _ = functions_of(name, outward=False)
    _, charged_lower, charged_upper, _ = functions_of(name, outward=True)
    assert (charged_lower[:, 0] < lower[:, 0]).all()
    assert (charged_upper[:, 0] > upper[:, 0]).all()
    torch.testing.assert_close(charged_lower, lower, rtol=0, atol=1e-9)


@pytest.mark.parametrize("threat", THREATS)
def test_forward_bounds_of_a_sum_that_cancels_are_exact(threat):
    # Intervals see x and -x as two unknowns; functions of the input see one.
    class Cancelling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = 3.0 * x.flatten(1) + 1.0
            return y[:, :4] - 3.0 * x.flatten(1)[:, :4]

    x = inputs(0).double()
    for method in ("forward", "forward+backward"):
        found = bounds(Cancelling(), Region(x, THREATS[threat], (0.0, 1.0)), method=method)
        torch.testing.assert_close(found.lower, torch.ones(3, 4).double(), rtol=0, atol=1e-9)
        torch.testing.assert_close(found.upper, torch.ones(3, 4).double(), rtol=0, atol=1e-9)


def test_one_relu_by_hand():
    # relu(x) on [-1, 3]: upper line 3/4 (x + 1), lower line x; both reach their ends.
    region = Region(torch.ones(1, 1).double(), Linf(2.0))
    found = bounds(nn.Sequential(nn.Identity(), nn.ReLU()), region, method="forward", linear=True, intersect=False)
    A_l, b_l, A_u, b_u = (part.item() for part in found.linear)
    assert (A_l, b_l, A_u, b_u) == pytest.approx((1.0, 0.0, 0.75, 0.75))
    assert (found.lower.item(), found.upper.item()) == pytest.approx((-1.0, 3.0))


def test_order_of_the_modes_on_a_network_with_few_inputs():
    layers = [nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)]
    model = drawn(nn.Sequential(*layers), 1)
    region = Region(torch.zeros(4, 2).double(), Linf(0.5))
    graph = capture(model, region.x.float())
    width = {m: bounds(graph, region, method=m).width.mean() for m in ("ibp", "forward", "forward+backward", "crown")}
    assert width["crown"] < width["forward+backward"] < width["forward"] < width["ibp"]


@pytest.mark.parametrize("name", ["pooled", "viewed"])
def test_blocks_of_examples_change_nothing(name):
    region = Region(inputs(8, 3).double(), L2(0.5), (0.0, 1.0))
    for method in ("forward", "forward+backward"):
        whole, pieces = (bounds(captured(name), region, method=method, memory=m) for m in (1 << 30, 1))
        torch.testing.assert_close(whole.lower, pieces.lower, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_huge_offsets_are_charged_for(seed):
    layers = [nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)]
    model = drawn(nn.Sequential(*layers), seed)
    with torch.no_grad():
        model[0].bias.add_(1e6)
        model[2].weight.mul_(1e3)
        model[2].bias.add_(-1e8)
    region = Region(torch.rand(3, 3, generator=torch.Generator().manual_seed(seed)), Linf(1e-6))
    inside = Region(region.x.double(), Linf(9e-7))
    for method in ("forward", "forward+backward"):
        with torch.no_grad():
            found = bounds(model, region, method=method, rounding="outward")
        assert excess(model, inside, found, samples=20, steps=2) <= 0
