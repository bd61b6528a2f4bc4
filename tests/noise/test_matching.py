"""AR-DAE finds the score it should, and the loop leaves what it promises."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.noise.matching import AmortizedResidual, fit


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
