"""Preconditioned networks, adapters and scores against the exact denoiser of a Gaussian."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.noise.denoiser import Denoiser, EDMPrecond, EpsilonDenoiser, PathScore, VPPrecond
from holdfast.noise.networks import MLPDenoiser, noise_features
from holdfast.noise.schedule import VP, per_example

MEAN, VARIANCE = 0.4, 0.09


def exact(x, sigma, *, condition=None):
    """E[x_0 | x] for x_0 ~ N(MEAN, VARIANCE)."""
    gain = per_example(VARIANCE / (VARIANCE + sigma**2), x)
    return MEAN + gain * (x - MEAN)


class ExactNoise(nn.Module):
    """The ε that a perfect network would predict from c_in x, given 999 t."""

    def forward(self, scaled, noise, *, condition=None):
        sigma = VP().sigma(noise / 999)
        x = scaled * per_example((1 + sigma**2).sqrt(), scaled)
        return (x - exact(x, sigma)) / per_example(sigma, x)


def points():
    generator = torch_generator(0)
    return torch.randn(40, 3, generator=generator, dtype=torch.float64), torch.linspace(0.01, 5, 40).double()


def test_a_perfect_noise_network_gives_the_posterior_mean():
    x, sigma = points()
    assert torch.allclose(VPPrecond(ExactNoise())(x, sigma), exact(x, sigma))


def test_edm_keeps_input_and_target_at_unit_size():
    seen = {}

    class Spy(nn.Module):
        def forward(self, x, noise, *, condition=None):
            seen["std"], seen["noise"] = x.std().item(), noise
            return torch.zeros_like(x)

    generator = torch_generator(1)
    clean = 0.5 * torch.randn(100_000, 1, generator=generator)
    noisy = clean + 2.0 * torch.randn(100_000, 1, generator=generator)
    model = EDMPrecond(Spy(), sigma_data=0.5)
    linear = model(noisy, torch.full((100_000,), 2.0))
    assert seen["std"] == pytest.approx(1, rel=0.01)
    assert torch.allclose(seen["noise"], torch.tensor(2.0).log() / 4)
    c_out = 2.0 * 0.5 / (0.25 + 4) ** 0.5
    assert ((clean - linear) / c_out).std().item() == pytest.approx(1, rel=0.01)  # what the network has to say


def test_the_score_along_the_path_is_the_gradient_of_the_log_density():
    x, _ = points()
    t = torch.linspace(0.02, 1, len(x), dtype=torch.float64)
    path = VP()
    centre = MEAN * path.scale(t)
    variance = VARIANCE * path.scale(t) ** 2 + path.deviation(t) ** 2
    wanted = -(x - centre[:, None]) / variance[:, None]
    assert torch.allclose(PathScore(exact, path)(x, t), wanted)


def test_a_pretrained_network_is_read_at_and_between_its_steps():
    path, steps = VP(), torch.arange(1, 1001, dtype=torch.float64) / 1000
    asked = []

    class Pretrained(nn.Module):
        def forward(self, x, step):
            asked.append(step)
            return SimpleNamespace(sample=ExactNoise()(x, (step + 1) / 1000 * 999))

    model = EpsilonDenoiser(Pretrained(), path.scale(steps) ** 2)
    x, _ = points()
    sigma = path.sigma(steps[20:820:20])
    assert torch.allclose(model(x, sigma), exact(x, sigma), atol=1e-6)
    assert torch.allclose(asked[0], torch.arange(20, 820, 20).double(), atol=1e-6)
    between = (sigma[:1] * sigma[1:2]).sqrt()
    assert torch.allclose(model(x[:1], between), exact(x[:1], between), atol=1e-3)
    model(x[:2], torch.tensor([1e-9, 1e9]).double())
    assert asked[-1].tolist() == [0, 999]  # beyond its ends the nearest step


def test_wrong_shapes_and_levels_are_loud():
    levels = torch.tensor([0.9, 0.5, 0.1])

    class Doubled(nn.Module):
        def forward(self, x, step):
            return torch.cat([x, x], 1)

    with pytest.raises(InputError, match="variance"):
        EpsilonDenoiser(Doubled(), levels)(torch.zeros(1, 3), torch.ones(1))
    with pytest.raises(InputError, match="fall"):
        EpsilonDenoiser(Doubled(), levels.flip(0))
    with pytest.raises(InputError, match="sigma_data"):
        EDMPrecond(nn.Identity(), 0.0)


def test_networks_satisfy_the_interface_and_start_at_zero_noise():
    model = VPPrecond(MLPDenoiser(6, width=8, generator=torch_generator(2)))
    assert isinstance(model, Denoiser)
    x = torch.rand(4, 1, 2, 3)
    assert torch.equal(model(x, torch.ones(4)), x)


def test_conditions_reach_the_network_or_are_refused():
    net = MLPDenoiser(2, width=8, condition_features=3, generator=torch_generator(3))
    nn.init.normal_(net.read.weight, generator=torch_generator(4))
    x, noise = torch.rand(5, 2), torch.ones(5)
    told = net(x, noise, condition=torch.ones(5, 3))
    assert not torch.allclose(told, net(x, noise))
    assert torch.equal(net(x, noise), net(x, noise, condition=torch.zeros(5, 3)))
    with pytest.raises(InputError, match="condition"):
        MLPDenoiser(2)(x, noise, condition=torch.ones(5, 3))
    with pytest.raises(InputError, match="features"):
        MLPDenoiser(0)


def test_noise_levels_are_told_apart():
    features = noise_features(torch.tensor([0.0, 1.0, 500.0, 999.0]))
    assert torch.equal(features[0], torch.cat([torch.ones(16), torch.zeros(16)]))
    assert torch.cdist(features, features).add(torch.eye(4)).min() > 0.3
