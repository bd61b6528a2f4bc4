"""Quantised, noisy and damaged weights: what the formulas promise, and that the model is left alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from holdfast.core.errors import InputError
from holdfast.weights.noise import noisy_weights
from holdfast.weights.quantise import flip_bits, quantisation_codes, quantise, quantised_weights, weight_names


def network(seed=0):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 2),
        nn.Flatten(),
        nn.Linear(6 * 49, 5),
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.eval()


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def test_weights_are_matrices_and_kernels_with_their_output_axis():
    assert dict(weight_names(network())) == {"0.weight": 0, "3.weight": 1, "5.weight": 0}


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 12), axis=st.sampled_from([0, 1, None]))
def test_the_error_is_at_most_half_a_step_and_a_second_time_changes_nothing(seed, bits, axis):
    weight = torch.randn(5, 7, 3, generator=stream(seed)) * torch.logspace(-3, 3, 5)[:, None, None]
    codes, scale = quantisation_codes(weight, bits, axis)
    made = quantise(weight, bits, axis)
    assert ((made - weight).abs() <= scale / 2 * (1 + 1e-4)).all()
    assert int(codes.abs().max()) == 2 ** (bits - 1) - 1
    torch.testing.assert_close(quantise(made, bits, axis), made, rtol=1e-5, atol=0)


def test_torch_quantises_to_the_same_grid():
    weight = torch.randn(6, 20, generator=stream())
    _, scale = quantisation_codes(weight, 8, 0)
    zeros = torch.zeros(6, dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(weight, scale.flatten(), zeros, 0, -127, 127)
    torch.testing.assert_close(quantise(weight, 8, 0), theirs)


def test_one_scale_a_channel_is_never_coarser():
    model = network()
    fine, coarse = (quantised_weights(model, 4, per_channel=choice) for choice in (True, False))
    for name in weight_names(model):
        weight = model.get_parameter(name)
        assert (fine[name] - weight).square().sum() <= (coarse[name] - weight).square().sum()


def test_a_channel_of_zeros_stays_zero():
    weight = torch.zeros(2, 3)
    weight[1] = 1.0
    torch.testing.assert_close(quantise(weight, 8, 0), weight)


def test_the_model_is_not_touched_and_can_be_run_with_the_weights():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 1, 8, 8, generator=stream())
    output = model(x)
    for weights in (
        quantised_weights(model, 3),
        noisy_weights(model, 0.3, generator=stream()),
        flip_bits(model, 0.1, generator=stream()),
    ):
        assert not torch.equal(functional_call(model, weights, (x,)), output)
    torch.testing.assert_close(functional_call(model, quantised_weights(model, 16), (x,)), output, rtol=1e-2, atol=1e-1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_noise_has_the_size_of_its_layer():
    model = nn.Linear(300, 300)
    for scale in (1e-3, 10.0):
        model.weight.data = scale * torch.randn(300, 300, generator=stream(1))
        noise = noisy_weights(model, 0.1, generator=stream(2))["weight"] - model.weight.detach()
        assert float(noise.std() / scale) == pytest.approx(0.1, rel=0.02)
    torch.testing.assert_close(noisy_weights(model, 0.0, generator=stream())["weight"], model.weight)


def test_flipped_bits_at_the_ends_of_the_rate():
    model = network()
    whole = quantised_weights(model, 8)
    torch.testing.assert_close(flip_bits(model, 0.0, generator=stream()), whole)
    codes, scale = quantisation_codes(model.get_parameter("5.weight").detach(), 8, 0)
    torch.testing.assert_close(
        flip_bits(model, 1.0, generator=stream())["5.weight"], (-codes - 1) * scale
    )  # ~q = -q - 1


def test_flipped_bits_come_at_their_rate():
    model = nn.Linear(500, 400)
    codes, scale = quantisation_codes(model.weight.detach(), 8, 0)
    damaged = torch.round(flip_bits(model, 0.01, generator=stream())["weight"] / scale).int()
    assert float((damaged != codes).double().mean()) == pytest.approx(1 - 0.99**8, rel=0.03)


def test_bad_input_is_told():
    with pytest.raises(InputError, match="2 to 16 bits"):
        quantised_weights(network(), 1)
    with pytest.raises(InputError, match="at least 0"):
        noisy_weights(network(), -0.1, generator=stream())
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        flip_bits(network(), 2.0, generator=stream())
