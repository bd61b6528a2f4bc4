"""Simplex maps: projections, limits and slopes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.smoothing.simplex import SimplexMap, hardmax, softmax, sparsemax

LOGITS = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 7)), elements=st.floats(-50, 50))


@given(LOGITS, st.floats(0.01, 100))
@settings(max_examples=150, deadline=None)
def test_sparsemax_is_the_nearest_point_of_the_simplex(logits, temperature):
    p = sparsemax(torch.from_numpy(logits), temperature)
    assert (p >= 0).all()
    assert torch.allclose(p.sum(-1), torch.ones(len(p), dtype=torch.float64))
    # Optimality: going from p towards any vertex must not come nearer to t z.
    gradient = p - temperature * torch.from_numpy(logits)
    slope = gradient.min(-1).values - (gradient * p).sum(-1)
    assert (slope >= -1e-9 * max(1.0, temperature * np.abs(logits).max())).all()


@pytest.mark.parametrize("kind", ["softmax", "sparsemax"])
def test_a_large_temperature_is_hardmax_and_a_small_one_is_uniform(kind):
    logits = torch.randn(50, 6, generator=torch_generator(0, "maps"), dtype=torch.float64)
    assert torch.allclose(SimplexMap(kind, 1e7)(logits), hardmax(logits), atol=1e-6)
    assert torch.allclose(SimplexMap(kind, 1e-7)(logits), torch.full((50, 6), 1 / 6, dtype=torch.float64), atol=1e-6)


def test_temperatures_broadcast():
    logits = torch.randn(5, 4, generator=torch_generator(0, "broadcast"))
    temperatures = torch.tensor([0.5, 3.0])[:, None, None]
    for function in (softmax, sparsemax):
        both = function(logits[None], temperatures)
        assert torch.allclose(both[1], function(logits, 3.0))


def test_a_class_that_cannot_be_had_gets_nothing():
    logits = torch.tensor([[0.0, 0.3, -torch.inf]])
    for function in (softmax, sparsemax):
        assert function(logits)[0, 2] == 0
        assert function(logits).sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize(("kind", "temperature"), [("softmax", 1.0), ("softmax", 7.0), ("sparsemax", 2.0)])
def test_no_margin_is_steeper_than_said_and_some_is_nearly(kind, temperature):
    one = SimplexMap(kind, temperature)
    generator = torch_generator(0, kind, int(temperature))
    z = torch.randn(400, 4, generator=generator, dtype=torch.float64) / temperature
    z[:200, 2:] = -20  # two classes alone attain it
    z[:200, 1] = z[:200, 0] + 1e-3 * torch.randn(200, generator=generator, dtype=torch.float64)
    z.requires_grad_()
    p = one(z)
    (slope,) = torch.autograd.grad((p[:, 0] - p[:, 1]).sum(), z)
    steepest = float(slope.norm(dim=1).max())
    assert steepest <= one.margin_lipschitz * (1 + 1e-9)
    assert steepest >= one.margin_lipschitz * 0.99


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_temperature(temperature):
    with pytest.raises(InputError, match="temperature"):
        SimplexMap("softmax", temperature)


@pytest.mark.usefixtures("unannotated")
def test_no_other_map_is_taken_for_one_of_the_three():
    with pytest.raises(InputError, match="'gumbel'; there are softmax, sparsemax, hardmax"):
        SimplexMap("gumbel")
