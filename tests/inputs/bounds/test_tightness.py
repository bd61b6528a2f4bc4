"""Tightness against dense matrices, against the bounds of the network itself, and against its theory."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Region, bounds, capture, margin_spec
from holdfast.inputs.bounds.tightness import (
    embedding_growth,
    gaussian_tightness,
    is_propagation_invariant,
    propagation_tightness,
)
from holdfast.threats import Linf

from .networks import NAMES, captured, drawn


def points(n: int = 3, *shape: int) -> Tensor:
    return torch.rand(n, *(shape or (1, 8, 8)), generator=torch_generator(0, "tests", "points"))


def linear_network(*widths: int, seed: int = 0) -> nn.Sequential:
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    parts = [part for layer in layers for part in (layer, nn.ReLU())][:-1]
    return drawn(nn.Sequential(*parts), seed)


SMALL = capture(linear_network(4, 6, 5, 3), points(1, 4))


def matrices(model: nn.Sequential) -> list[Tensor]:
    return [layer.weight.detach().double() for layer in model if isinstance(layer, nn.Linear)]


def test_linear_tightness_is_the_ratio_of_the_two_products():
    model, x = linear_network(6, 5, 7, 3), points(2, 6)
    first, second, third = matrices(model)
    eps = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.1, 0.05])
    box = torch.stack([torch.clamp(x + eps, 0, 1), torch.clamp(x - eps, 0, 1)]).double()
    radius = (box[0] - box[1]) / 2
    optimal = radius @ (third @ second @ first).abs().T
    layerwise = radius @ (third.abs() @ second.abs() @ first.abs()).T
    report = propagation_tightness(model, x, eps, relu="linear")
    torch.testing.assert_close(report.per_output, optimal / layerwise, rtol=1e-6, atol=0)
    assert report.mean.value == pytest.approx(float((optimal / layerwise).mean()), rel=1e-6)
    # Tail networks: drop the box behind layer 4 (the second matrix is "2", the third "4"), then the one behind "0".
    last = (radius @ first.abs().T) @ (third @ second).abs().T / layerwise
    assert list(report.per_layer_loss) == ["0", "2"]
    assert report.per_layer_loss["2"] == pytest.approx(float(last.mean()), rel=1e-6)
    assert report.per_layer_loss["0"] == pytest.approx(report.mean.value / float(last.mean()), rel=1e-6)


def slope(name: str, x: Tensor) -> Tensor:
    """(outputs, inputs) of a captured network at x, by automatic differentiation."""
    double = {key: value.detach().double() for key, value in captured(name).model.state_dict().items()}

    def call(point: Tensor) -> Tensor:
        return torch.func.functional_call(captured(name).model, double, (point[None],))[0]

    return torch.func.jacrev(call)(x).flatten(1)


@pytest.mark.parametrize("name", NAMES)
def test_local_tightness_is_the_limit_of_the_network_s_own_boxes(name):
    x, eps = points().double(), 1e-7
    report = propagation_tightness(captured(name), x, eps)
    region = Region(x, Linf(eps), (0.0, 1.0))
    low, high = region.interval()
    best = torch.stack([slope(name, one).abs() @ width for one, width in zip(x, (high - low).flatten(1))])
    loose = bounds(captured(name), region, method="ibp").width
    torch.testing.assert_close(report.per_output, best / loose, rtol=1e-4, atol=1e-6)
    assert math.prod(report.per_layer_loss.values()) == pytest.approx(report.mean.value, rel=1e-9)
    assert all(0 < factor <= 1 + 1e-12 for factor in report.per_layer_loss.values())
    assert report.mean.value < 0.9


def test_labels_fold_the_margin_into_the_last_layer():
    x, y, eps = points().double(), torch.tensor([1, 0, 3]), 1e-7
    report = propagation_tightness(captured("multilayer"), x, eps, y)
    region, spec = Region(x, Linf(eps), (0.0, 1.0)), margin_spec(y, 4)
    low, high = region.interval()
    slopes = spec @ torch.stack([slope("multilayer", one) for one in x])
    best = (slopes.abs() @ (high - low).flatten(1)[..., None]).squeeze(-1)
    loose = bounds(captured("multilayer"), region, method="ibp", spec=spec).width
    torch.testing.assert_close(report.per_output, best / loose, rtol=1e-4, atol=1e-6)
    assert report.per_output.shape == (3, 3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["local", "linear"]))
def test_it_lies_between_zero_and_one_and_is_one_for_weights_that_are_not_negative(seed, relu):
    drawn(SMALL.model, seed)
    tau = propagation_tightness(SMALL, points(2, 4), 0.1, relu=relu).per_output
    assert (tau >= 0).all()
    assert (tau <= 1).all()
    with torch.no_grad():
        for parameter in SMALL.model.parameters():
            parameter.abs_()
    tau = propagation_tightness(SMALL, points(2, 4), 0.1, relu=relu).per_output
    torch.testing.assert_close(tau, torch.ones(2, 3, dtype=torch.float64))


def test_width_one_loses_nothing_and_dead_outputs_count_as_one():
    assert propagation_tightness(linear_network(5, 1, 4), points(2, 5), 0.1, relu="linear").mean.value == pytest.approx(
        1
    )
    dead = linear_network(5, 4, 3)
    dead[0].bias.data.fill_(-100)
    report = propagation_tightness(dead, points(2, 5), 0.1)
    assert (report.per_output == 1).all()


def test_products_that_cancel_have_tightness_zero():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False), nn.Linear(1, 2))
    model[0].weight.data, model[2].weight.data = torch.ones(2, 1), torch.tensor([[1.0, -1.0]])
    report = propagation_tightness(model.eval(), points(2, 1), 0.1)
    assert (report.per_output == 0).all()
    assert report.per_layer_loss == {"0": 0.0, "2": 1.0}


def test_examples_do_not_depend_on_how_many_are_evaluated_together(monkeypatch):
    whole = propagation_tightness(captured("pooled"), points(), 0.1)
    monkeypatch.setattr("holdfast.inputs.bounds.tightness._LARGEST", 1)
    torch.testing.assert_close(propagation_tightness(captured("pooled"), points(), 0.1).per_output, whole.per_output)


class Twice(nn.Module):
    """A layer with two uses and a residual sum, which have no path of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + torch.relu(self.mix(torch.relu(self.mix(x)))))


def test_layers_without_a_path_of_their_own_have_the_tracer_s_names():
    report = propagation_tightness(drawn(Twice(), 1), points(2, 5), 0.1)
    assert list(report.per_layer_loss) == ["linear", "linear_1", "add"]


def monte_carlo(widths: list[int], relu: bool, draws: int = 200) -> float:
    """Mean optimal radius over mean layer-wise radius, by dense matrices."""
    rng = np.random.default_rng(0)
    optimal = layerwise = 0.0
    for _ in range(draws):
        x = rng.normal(size=(8, 1))
        signed, absolute = np.eye(8), np.eye(8)
        for depth, width in enumerate([*widths, 12]):
            weight = rng.normal(size=(width, len(x)))
            x = weight @ x
            mask = (x > 0) if relu and depth < len(widths) else np.ones_like(x)
            signed, absolute, x = mask * (weight @ signed), mask * (np.abs(weight) @ absolute), mask * x
        optimal, layerwise = optimal + np.abs(signed).sum(), layerwise + absolute.sum()
    return optimal / layerwise


@pytest.mark.parametrize("widths", [[1], [10], [40], [20, 15], [10, 20, 10]])
@pytest.mark.parametrize("relu", [False, True])
def test_gaussian_networks_have_the_tightness_of_the_formula(widths, relu):
    assert monte_carlo(widths, relu) == pytest.approx(gaussian_tightness(widths, relu), rel=0.04)


def test_limits_of_the_gaussian_formula():
    assert gaussian_tightness([1]) == 1
    assert gaussian_tightness([4000]) == pytest.approx(math.sqrt(math.pi / 8000), rel=1e-3)
    assert gaussian_tightness([300] * 5) == pytest.approx((math.pi / 600) ** 2.5, rel=1e-2)
    assert gaussian_tightness([4000], relu=True) / gaussian_tightness([4000]) == pytest.approx(math.sqrt(2), rel=1e-3)


@pytest.mark.parametrize(("d", "k"), [(784, 20), (60, 5), (10, 9)])
def test_growth_of_a_random_embedding(d, k):
    generator = torch_generator(0, "tests", "embedding")
    layerwise, optimal = [], []
    for _ in range(40):
        basis = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0]
        layerwise.append(float((basis.abs() @ basis.abs().sum(0)).mean()))
        optimal.append(float((basis @ basis.T).abs().sum(1).mean()))
    exact = embedding_growth(k, d)
    assert np.mean(layerwise) == pytest.approx(exact.layerwise, rel=0.01)
    assert np.mean(optimal) == pytest.approx(exact.optimal, rel=0.01)


def test_the_limit_of_the_growth():
    limit, exact = embedding_growth(100), embedding_growth(100, 1_000_000)
    assert exact.layerwise == pytest.approx(limit.layerwise, rel=1e-3)
    assert exact.optimal == pytest.approx(limit.optimal, rel=1e-2)


def test_propagation_invariance_is_a_matter_of_signs():
    generator = torch_generator(0, "tests", "signs")
    first, second = (torch.randn(4, 5, generator=generator), torch.randn(3, 4, generator=generator))
    products = second[:, :, None] * first[None]  # (i, k, j)
    one_sign = (products >= 0).all(1) | (products <= 0).all(1)
    found = is_propagation_invariant([first, second])
    assert found.fraction == pytest.approx(float(one_sign.double().mean()))
    assert not found
    # Flipping hidden units, inputs and outputs of a network without negative weights keeps it exact: d_in + d_out - 1
    # signs of the product are free, and no more.
    unit, entry, leaving = (torch.randn(n, generator=generator).sign() for n in (4, 5, 3))
    exact = [unit[:, None] * first.abs() * entry, leaving[:, None] * second.abs() * unit]
    assert is_propagation_invariant(exact)
    exact[0][0, 0] *= -1
    assert is_propagation_invariant(exact).fraction == pytest.approx(1 - 3 / 15)


class Squashed(nn.Module):
    """A curve that is not piecewise linear."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


def test_bad_input_is_refused():
    model, x = linear_network(4, 3, 2), points(2, 4)
    for eps in (0.0, -0.1):
        with pytest.raises(InputError, match="must be positive"):
            propagation_tightness(model, x, eps)
    with pytest.raises(InputError, match=r"\[1, 0\] is empty"):
        propagation_tightness(model, x, 0.1, valid=(1, 0))
    with pytest.raises(InputError, match="outside the valid range"):
        propagation_tightness(model, x + 1, 0.1)
    with pytest.raises(UnsupportedError, match=r"also has \w+ \(1\)"):
        propagation_tightness(nn.Sequential(model, Squashed()).eval(), x, 0.1)
    with pytest.raises(UnsupportedError, match=r"affine layers and ReLU; the path also has MaxPool \(body\.2\)"):
        propagation_tightness(captured("pooled"), points(), 0.1, relu="linear")
    with pytest.raises(InputError, match="hidden widths"):
        gaussian_tightness([4, 0])
    with pytest.raises(InputError, match="1 <= k < d"):
        embedding_growth(5, 5)
    with pytest.raises(InputError, match="at least two"):
        is_propagation_invariant([torch.eye(2)])
    with pytest.raises(InputError, match="cannot follow"):
        is_propagation_invariant([torch.ones(2, 3), torch.ones(2, 3)])
    with pytest.raises(InputError, match="NaN"):
        is_propagation_invariant([torch.eye(2), torch.full((2, 2), torch.nan)])
