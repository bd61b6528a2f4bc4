"""Features are what the named modules give, pooled, in float64, without leaving a trace on the model."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.features import Features, last_linear


@pytest.fixture
def net():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 5))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net.train()


def test_pools_are_means_over_the_right_axes(net):
    x = torch.rand(7, 1, 8, 8)
    with torch.no_grad():
        conv = net[0](x).double().numpy()
    np.testing.assert_allclose(Features(net, ["0"])(x)[0], conv.mean((2, 3)), atol=1e-6)
    np.testing.assert_allclose(Features(net, ["0"], pool="flatten")(x)[0], conv.reshape(7, -1), atol=1e-6)
    np.testing.assert_allclose(Features(net, ["0"], pool="tokens")(x)[0], conv.mean((1, 2)), atol=1e-6)


def test_input_of_the_last_linear_is_the_penultimate_feature(net):
    x = torch.rand(7, 1, 8, 8)
    assert last_linear(net) == "4"
    (features,), logits = Features(net, ["4"], at="input").with_logits(x)
    np.testing.assert_allclose(
        features @ net[4].weight.detach().double().numpy().T + net[4].bias.detach().numpy(), logits, atol=1e-4
    )


def test_batching_does_not_matter_and_training_mode_is_put_back(net):
    x = torch.rand(7, 1, 8, 8)
    statistics = net[1].running_mean.clone()
    whole, parts = Features(net, ["2"])(x)[0], Features(net, ["2"], batch=2)(x)[0]
    np.testing.assert_allclose(whole, parts, atol=1e-7)
    assert whole.dtype == np.float64
    assert all(module.training for module in net.modules())
    assert torch.equal(net[1].running_mean, statistics)
    assert not net[2]._forward_hooks


def test_gradients_reach_the_input_when_asked(net):
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    (features,), _ = Features(net, ["2"]).tensors(x)
    features.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("layers", "message"), [(["conv9"], "no layer 'conv9'"), ([], "no layer was named")])
def test_bad_layers_are_refused(net, layers, message):
    with pytest.raises(InputError, match=message):
        Features(net, layers)


def test_a_layer_that_is_never_reached_is_refused(net):
    net.spare = nn.Linear(2, 2)
    net.forward = lambda x: net[4](net[3](net[0](x)))
    with pytest.raises(InputError, match="not reached"):
        Features(net, ["spare"])(torch.rand(1, 1, 8, 8))


def test_activations_are_what_the_module_gives_without_pooling():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, 2)).eval()
    x = torch.rand(2, 1, 6, 6)
    (maps,), output = Features(model, ("0",)).activations(x)
    torch.testing.assert_close(maps, model[0](x))
    torch.testing.assert_close(output, model(x))
