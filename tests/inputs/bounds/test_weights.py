"""Networks whose weights move: exact for one layer, never beaten by an attack on the weights, errors that say what to
do.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Method, Region
from holdfast.inputs.bounds.weights import PerturbedWeights, WeightPerturbation, weight_bounds
from holdfast.threats import L2, Linf

from .attack import excess
from .networks import drawn

METHODS: tuple[Method, ...] = ("ibp", "crown-ibp", "crown")


def multilayer() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 3)]
    return nn.Sequential(*layers)


NETWORKS = {
    "multilayer": (multilayer, (4,)),
    "convolutional": (convolutional, (1, 4, 4)),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), (2, 4)),
}


def points(name: str, batch: int = 2) -> Tensor:
    return torch.rand(batch, *NETWORKS[name][1], generator=torch_generator(0, "tests", "inputs"), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("method", METHODS)
def test_one_layer_is_exact(method, norm):
    model = drawn(nn.Linear(4, 3), 0).double()
    x = points("multilayer")
    found = weight_bounds(model, x, WeightPerturbation(0.1, norm, relative=False), method=method)
    reach = 0.1 * (x.norm(dim=1) if norm == "l2" else x.abs().sum(1))
    torch.testing.assert_close(found.lower, model(x) - reach[:, None], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.upper, model(x) + reach[:, None], rtol=0, atol=1e-9)


def test_the_default_ball_is_relative_to_the_weights():
    model = drawn(nn.Linear(4, 3), 0).double()
    x = points("multilayer")
    found = weight_bounds(model, x, WeightPerturbation(0.1))
    reach = 0.1 * model.weight.norm() * x.norm(dim=1)
    torch.testing.assert_close(found.upper, model(x) + reach[:, None], rtol=0, atol=1e-9)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_attack_on_weights_leaves_the_bounds(name, norm, moving):
    model, x = drawn(NETWORKS[name][0](), 1).double(), points(name)
    given = Region(x, L2(0.02) if norm == "l2" else Linf(0.02), (0.0, 1.0)) if moving else x
    traced = PerturbedWeights(model, x, WeightPerturbation(0.03, norm))
    graph, region = traced.region(given)
    for method in METHODS:
        with torch.no_grad():
            found = traced.bounds(given, method=method, rounding="outward")
        for place in range(len(x)):
            one = region.part(slice(place, place + 1))
            side = type(found)(found.lower[place : place + 1], found.upper[place : place + 1])
            assert excess(graph.model.double(), one, side, samples=10, steps=3) <= 0


def test_bounds_close_in_on_the_output_and_are_ordered():
    model, x = drawn(multilayer(), 1).double(), points("multilayer")
    widths = [weight_bounds(model, x, WeightPerturbation(eps)).width.mean() for eps in (1e-10, 1e-3, 1e-2)]
    assert widths[0] < 1e-7
    assert widths[0] < widths[1] < widths[2]
    ibp, crown = (weight_bounds(model, x, WeightPerturbation(0.05), method=method).width for method in ("ibp", "crown"))
    assert (crown <= ibp + 1e-12).all()
    only_last = weight_bounds(model, x, WeightPerturbation(0.05, names=("4.weight",)))
    assert (only_last.width < crown).all()


def test_an_example_does_not_depend_on_its_batch():
    model, x = drawn(multilayer(), 1).double(), points("multilayer", 3)
    for norm in ("l2", "linf"):
        whole = weight_bounds(model, x, WeightPerturbation(0.05, norm))
        alone = weight_bounds(model, x[1:2], WeightPerturbation(0.05, norm))
        torch.testing.assert_close(whole.lower[1:2], alone.lower, rtol=0, atol=1e-9)


def test_bounds_follow_the_weights_and_are_differentiable_in_them():
    model, x = drawn(multilayer(), 1).double(), points("multilayer")
    traced = PerturbedWeights(model, x, WeightPerturbation(0.02))
    before = traced.bounds(x, method="crown").lower
    gradients = torch.autograd.grad(before.sum(), list(model.parameters()))
    assert all(bool(torch.isfinite(g).all()) and float(g.abs().sum()) > 0 for g in gradients)
    with torch.no_grad():
        model[4].bias.add_(1.0)
    torch.testing.assert_close(traced.bounds(x, method="crown").lower, before + 1, rtol=0, atol=1e-9)


def test_bad_requests_are_clear_errors():
    model, x = drawn(multilayer(), 1), points("multilayer").float()
    with pytest.raises(InputError, match="positive and finite"):
        WeightPerturbation(0.0)
    with pytest.raises(InputError, match=r"no parameters 7\.weight; it has 0\.weight"):
        weight_bounds(model, x, WeightPerturbation(0.1, names=("7.weight",)))
    with pytest.raises(InputError, match="name those you mean"):
        weight_bounds(nn.LayerNorm(4).eval(), x, WeightPerturbation(0.1))
    with pytest.raises(InputError, match="training mode"):
        weight_bounds(multilayer().train(), x, WeightPerturbation(0.1))
    grouped = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 2, 1, groups=2), nn.Flatten()).eval()
    with pytest.raises(UnsupportedError, match="conv1d"):
        weight_bounds(grouped, x, WeightPerturbation(0.1))
