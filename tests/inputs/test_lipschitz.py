"""Spectral norms against dense singular values; bounds of networks never exceeded, and exact where they can be."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.lipschitz import lipschitz_bound, spectral_norm

from .bounds.networks import NAMES, drawn, networks

CONVOLUTIONS = {
    "plain": (nn.Conv2d(2, 3, 3), (2, 6, 5)),
    "padded": (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 5)),
    "strided": (nn.Conv2d(1, 4, 3, stride=2, padding=1), (1, 7, 7)),
    "dilated": (nn.Conv2d(2, 2, 2, dilation=2), (2, 6, 6)),
    "grouped": (nn.Conv2d(4, 4, 3, groups=2, padding=1), (4, 4, 4)),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "one axis": (nn.Conv1d(2, 3, 4, stride=3), (2, 13)),
    "transposed": (nn.ConvTranspose2d(2, 3, 3, stride=2), (2, 3, 3)),
}


def dense(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The layer's matrix, in float64."""
    double = {name: parameter.detach().double() for name, parameter in layer.named_parameters()}

    def call(v: Tensor) -> Tensor:
        return torch.func.functional_call(layer, double, (v.reshape(1, *shape),)).flatten()

    return torch.func.jacrev(call)(torch.zeros(torch.Size(shape).numel(), dtype=torch.float64))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_norm_of_a_convolution_is_that_of_its_matrix(name):
    layer, shape = CONVOLUTIONS[name]
    drawn(layer, 0)
    truth = float(torch.linalg.svdvals(dense(layer, shape))[0])
    assert spectral_norm(layer, shape, exact=True).item() == pytest.approx(truth, rel=1e-10)
    estimate = spectral_norm(layer, shape).item()
    assert truth * (1 - 1e-2) <= estimate <= truth * (1 + 1e-5)


def test_linear_layers_and_matrices():
    matrix = torch.diag(torch.tensor([3.0, -5.0, 1.0]))[:, :2]
    layer = nn.Linear(2, 3)
    layer.weight.data = matrix
    for thing in (matrix, layer):
        assert spectral_norm(thing, exact=True).item() == pytest.approx(5)
        assert spectral_norm(thing).item() == pytest.approx(5, rel=1e-4)
    assert float(spectral_norm(torch.zeros(3, 2))) == 0


def test_the_gradient_is_the_outer_product_of_singular_vectors():
    weight = torch.randn(5, 4, generator=torch_generator(0, "tests"), dtype=torch.float64, requires_grad=True)
    u, _, vh = torch.linalg.svd(weight.detach())
    spectral_norm(weight, iterations=2000, tolerance=0.0).backward()
    torch.testing.assert_close(weight.grad, torch.outer(u[:, 0], vh[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_no_pair_of_inputs_moves_further_than_the_bound(name):
    model = networks()[name].double()
    generator = torch_generator(0, "tests", "pairs")
    x = torch.randn(64, 1, 8, 8, generator=generator, dtype=torch.float64) * 2
    bound = lipschitz_bound(model, x)
    worst = torch.stack([torch.linalg.matrix_norm(slope(model, one), 2) for one in x[:16]]).max()
    assert worst.item() <= bound
    apart = (model(x)[:, None] - model(x)[None]).norm(dim=2) / (x[:, None] - x[None]).flatten(2).norm(dim=2)
    assert apart[~torch.eye(64, dtype=torch.bool)].max().item() <= bound


def slope(model: nn.Module, x: Tensor) -> Tensor:
    return torch.func.jacrev(lambda one: model(one[None])[0])(x).flatten(1)


def test_affine_networks_are_bounded_exactly_and_through_their_normalisation():
    model = drawn(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 4)), 3
    )
    x = torch.rand(1, 1, 8, 8)
    bound = lipschitz_bound(model, x)
    truth = float(torch.linalg.matrix_norm(slope(model.double(), x[0].double()), 2))
    assert truth <= bound <= truth * (1 + 1e-8)


def test_rounding_is_charged_where_layers_cancel():
    # The second layer undoes the first up to 1e-14 of its size, less than rounding leaves of the product.
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    first.weight.data = torch.tensor([[1.0, 3.0], [1 / 3, 1.0]], dtype=torch.float64)
    second.weight.data = torch.tensor([[1.0, -3.0]], dtype=torch.float64)
    exact = [Fraction(1) - 3 * Fraction(float(first.weight[1, 0])), Fraction(0)]
    truth = float(max(abs(entry) for entry in exact))
    assert 0 < truth < 1e-15
    assert truth <= lipschitz_bound(nn.Sequential(first, second), torch.zeros(1, 2, dtype=torch.float64)) < 1e-5


def test_the_exact_norm_of_a_convolution_can_be_differentiated():
    layer = drawn(nn.Conv2d(1, 2, 3), 1).double()
    norm = spectral_norm(layer, (1, 5, 5), exact=True)
    (slope,) = torch.autograd.grad(norm, layer.weight)
    # The norm is homogeneous in the weights, so its slope along them is the norm (Euler).
    assert (slope * layer.weight).sum().item() == pytest.approx(norm.item(), rel=1e-9)


def test_a_chain_of_relus_multiplies_the_norms_of_its_layers():
    model = drawn(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), 4)
    product = spectral_norm(model[0], exact=True) * spectral_norm(model[2], exact=True)
    assert lipschitz_bound(model, torch.zeros(1, 6)) == pytest.approx(product.item(), rel=1e-9)


class Shortcut(nn.Module):
    """x + relu(x) scaled: slope 3 where x is positive."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 2 * torch.relu(x)


def test_both_ways_of_adding_paths_are_tried():
    # Separate paths: 1 + 2 = 3, which is exact; together sqrt(2 * 5) = 3.16.
    assert lipschitz_bound(Shortcut(), torch.zeros(1, 3)) == pytest.approx(3, rel=1e-9)


def test_shared_pooling_windows_count():
    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.max_pool1d(x, 2, stride=1)

    x = torch.tensor([[[0.0, 0.0, 0.0]]])
    moved = torch.tensor([[[0.0, 1.0, 0.0]]])  # both windows follow the middle input
    assert float((Pool()(moved) - Pool()(x)).norm()) == pytest.approx(2**0.5)
    assert lipschitz_bound(Pool(), x) == pytest.approx(2**0.5, rel=1e-9)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="got ReLU"):
        spectral_norm(nn.ReLU())
    with pytest.raises(InputError, match="give input_shape with 2 channels"):
        spectral_norm(nn.Conv2d(2, 3, 3), (3, 4, 4))
    with pytest.raises(InputError, match="a matrix"):
        spectral_norm(torch.zeros(2, 2, 2))
    with pytest.raises(InputError, match="NaN"):
        spectral_norm(torch.full((2, 2), torch.nan))
    with pytest.raises(InputError, match="at least one iteration"):
        spectral_norm(torch.ones(2, 2), iterations=0)
    broken = nn.Linear(2, 2)
    broken.weight.data[0, 0] = torch.inf
    with pytest.raises(InputError, match="weight of the model"):
        lipschitz_bound(broken, torch.zeros(1, 2))
    with pytest.raises(UnsupportedError, match="too large"):
        lipschitz_bound(nn.AvgPool2d(3, stride=1, padding=1), torch.zeros(1, 1, 100, 100))
