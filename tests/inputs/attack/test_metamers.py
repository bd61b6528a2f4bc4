"""Metamers: exact on linear layers, kept in range, and never worse for more work."""

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.attack.metamers import Metamer


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(features=6, seed=0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, features), nn.Linear(features, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
    return model.double().eval()


def references(n=5):
    return 0.2 + 0.6 * torch.rand(n, 2, 4, 4, generator=seeded(1), dtype=torch.float64)


def test_metamers_of_a_linear_layer_match_and_differ_from_their_references():
    model, x = network(), references()
    run = Metamer("1", steps=100)(model, x, seeded())
    reached, wanted = model[1](run.images.flatten(1)), model[1](x.flatten(1))
    error = torch.linalg.vector_norm(reached - wanted, dim=1) / torch.linalg.vector_norm(wanted, dim=1)
    torch.testing.assert_close(error, run.relative_error)
    assert float(run.relative_error.max()) < 5e-3
    assert bool(run.accepted().all())
    assert float((run.images - x).abs().flatten(1).amax(1).min()) > 0.2
    assert 0 <= float(run.images.min()) <= float(run.images.max()) <= 1


def test_an_invertible_layer_has_no_metamer_but_the_reference():
    model, x = nn.Sequential(nn.Flatten(), nn.Identity()), references()
    run = Metamer("1", steps=80)(model, x, seeded())
    torch.testing.assert_close(run.images, x, atol=2e-2, rtol=0)


def test_the_range_is_kept_in_any_units():
    x = 200 * references() - 50
    run = Metamer("1", steps=50, step=100.0)(network(), x, seeded(), valid=(-50, 150))
    assert float(run.images.min()) >= -50
    assert float(run.images.max()) <= 150
    assert float(run.start.max()) > 100


def test_more_steps_and_restarts_only_lower_the_error():
    model, x = network(20), references()
    one = Metamer("1", steps=10)(model, x, seeded())
    three = Metamer("1", steps=10, restarts=3)(model, x, seeded())
    assert bool((three.relative_error <= one.relative_error).all())
    assert bool((three.relative_error < one.relative_error).any())
    assert float(Metamer("1", steps=40)(model, x, seeded()).relative_error.mean()) < float(one.relative_error.mean())


def test_the_start_can_be_given_and_each_image_goes_its_own_way():
    model, x = network(), references()
    start = torch.rand(x.shape, generator=seeded(5), dtype=torch.float64)
    together = Metamer("1", steps=15)(model, x, start=start)
    alone = Metamer("1", steps=15)(model, x[2:3], start=start[2:3])
    torch.testing.assert_close(alone.images, together.images[2:3])
    assert torch.equal(together.start, start)


def test_the_model_is_left_as_it_was():
    model, x = network().train(), references()
    Metamer("1", steps=3)(model, x, seeded())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_input_is_told():
    model, x = network(), references()
    with pytest.raises(InputError, match="no layer 'conv'"):
        Metamer("conv", steps=1)(model, x)
    with pytest.raises(InputError, match="own metamer"):
        Metamer("1", steps=1)(model, x, start=x)
    with pytest.raises(InputError, match="shape"):
        Metamer("1", steps=1)(model, x, start=x[:2])
    with pytest.raises(InputError, match="leaves the valid range"):
        Metamer("1", steps=1)(model, x, start=x + 1)
    with pytest.raises(InputError, match="valid range"):
        Metamer("1", steps=1)(model, x, valid=None)
    with pytest.raises(InputError, match="all zeros"):
        Metamer("1", steps=1)(nn.Sequential(nn.Flatten(), nn.Threshold(9.0, 0.0)), x)
    for bad in ({"steps": 0}, {"restarts": 0}, {"step": 0.0}):
        with pytest.raises(InputError, match="at least 1"):
            Metamer("1", **bad)
