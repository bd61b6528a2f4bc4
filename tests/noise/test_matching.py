"""AR-DAE finds the score it should, and the loop leaves what it promises."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.noise.denoiser import VPPrecond
from holdfast.noise.matching import AmortizedResidual, DenoisingScoreMatching, fit
from holdfast.noise.networks import MLPDenoiser
from holdfast.noise.schedule import VP


class Line(nn.Module):
    """s(x) = slope x + shift."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.slope * x + self.shift


def test_a_line_learns_the_score_of_a_smoothed_gaussian():
    data = 1.0 + 0.8 * torch.randn(5000, 1, generator=torch_generator(0))
    model = Line()
    losses = fit(model, AmortizedResidual(0.5, 0.5), data, steps=400, batch=512, lr=3e-2, generator=torch_generator(1))
    precision = 1 / (data.var().item() + 0.25)
    assert model.slope.item() == pytest.approx(-precision, rel=0.1)
    assert model.shift.item() == pytest.approx(precision * data.mean().item(), rel=0.15)
    assert losses[-100:].mean() < losses[:100].mean()
    assert not model.training


def test_the_loss_is_least_at_the_true_score():
    data = torch.randn(20_000, 1, generator=torch_generator(2))
    loss, model = AmortizedResidual(0.5, 0.5), Line()
    values = []
    for slope in (-1.2, -0.8, -0.4):
        model.slope.data.fill_(slope)
        values.append(loss(model, data, generator=torch_generator(3)).mean().item())
    assert np.argmin(values) == 1


def test_the_schedule_runs_from_first_to_last():
    seen = []

    class Zero(nn.Module):
        def forward(self, x):
            seen.append(x.std().item())
            return torch.zeros_like(x)

    loss = AmortizedResidual(2.0, 0.5)
    for progress in (0.0, 1.0):
        loss(Zero(), torch.zeros(5000, 1), progress=progress, generator=torch_generator(4))
    assert seen == pytest.approx([2.0, 0.5], rel=0.05)


def test_training_depends_on_the_generator_alone():
    data = torch.randn(50, 1, generator=torch_generator(5))
    runs = []
    for _ in range(2):
        model = Line()
        fit(model, AmortizedResidual(1.0, 0.1), data, steps=20, generator=torch_generator(6))
        torch.rand(3)
        runs.append(model.slope.item())
    assert runs[0] == runs[1] != 0


def test_divergence_and_bad_settings_are_loud():
    class Broken(Line):
        def forward(self, x):
            return self.slope * x + float("nan")

    with pytest.raises(InputError, match="diverged"):
        fit(Broken(), AmortizedResidual(1.0, 0.1), torch.zeros(5, 1), steps=3)
    with pytest.raises(InputError, match="steps"):
        fit(Line(), AmortizedResidual(1.0, 0.1), torch.zeros(5, 1), steps=0)
    for first, last in ((0.1, 0.5), (1.0, 1e-9)):
        with pytest.raises(InputError, match="sigma"):
            AmortizedResidual(first, last)


class LineDenoiser(Line):
    """D(x; σ) = slope x + shift, told σ and a condition it ignores."""

    def forward(self, x, sigma, *, condition=None):
        assert sigma.shape == (len(x),)
        return super().forward(x)


@pytest.mark.parametrize("weighting", ["epsilon", "edm"])
def test_denoising_is_least_at_the_posterior_mean(weighting):
    path, t = VP(), 0.3
    sigma = path.sigma(torch.tensor([t])).item()
    data = 0.5 * torch.randn(200_000, 1, generator=torch_generator(10))
    loss = DenoisingScoreMatching(path, weighting, times=(t - 1e-6, t))
    values, model = [], LineDenoiser()
    best = 0.25 / (0.25 + sigma**2)
    for slope in (best - 0.05, best, best + 0.05):
        model.slope.data.fill_(slope)
        values.append(loss(model, data, generator=torch_generator(11)).mean().item())
    assert np.argmin(values) == 1
    weight = 1 / sigma**2 if weighting == "epsilon" else (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    assert values[1] == pytest.approx(weight * 0.25 * sigma**2 / (0.25 + sigma**2), rel=0.02)


def test_a_network_learns_the_score_of_a_gaussian_at_every_level():
    data = 0.3 + 0.2 * torch.randn(4000, 2, generator=torch_generator(12))
    model = VPPrecond(MLPDenoiser(2, width=48, depth=2, generator=torch_generator(13)))
    fit(model, DenoisingScoreMatching(VP()), data, steps=600, batch=256, lr=3e-3, generator=torch_generator(14))
    x = torch.tensor([[0.1, 0.5], [0.3, 0.3], [0.5, 0.2]])
    for t in (0.05, 0.3):
        sigma = VP().sigma(torch.full((3,), t))
        gain = (0.04 / (0.04 + sigma**2))[:, None]
        with torch.no_grad():
            wrong = (model(x, sigma) - 0.3 - gain * (x - 0.3)) / sigma[:, None]  # in units of the noise
        assert wrong.abs().max() < 0.1


def test_conditions_go_with_their_examples():
    class Check(nn.Module):
        def forward(self, model, x, *, condition, progress=1.0, generator=None):
            assert torch.equal(x, condition)
            return (model.slope * x).square().mean(1)

    data = torch.arange(20.0)[:, None]
    fit(Line(), Check(), data, condition=data.clone(), steps=5, generator=torch_generator(15))
    with pytest.raises(InputError, match="condition"):
        fit(Line(), Check(), data, condition=data[:3], steps=5)


def test_bad_denoising_settings_are_loud():
    with pytest.raises(InputError, match="weighting"):
        DenoisingScoreMatching(VP(), "best")
    for times in ((0.0, 1.0), (0.5, 0.2), (0.5, 1.1)):
        with pytest.raises(InputError, match="times"):
            DenoisingScoreMatching(VP(), times=times)
