"""The head takes a linear layer's place, its score is bounded, and it says who is warm."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.detection import AblatedEnergy, LearnedTemperatureHead, attach_temperature_head
from holdfast.inputs.detection.learned_temperature import fit_head
from holdfast.papers.datasets import digits


def features(n=40, d=6, seed=0):
    return torch.randn(n, d, generator=torch_generator(seed))


@given(st.integers(0, 1000), st.floats(-40, 3))
def test_the_score_is_bounded_by_the_largest_logit(seed, bias):
    head = LearnedTemperatureHead(6, 4, generator=torch_generator(seed)).eval()
    head.temperature.bias.data.fill_(bias)  # down to temperatures of 1e-12, where exp(c / T) overflows
    parts = AblatedEnergy(head).components(features(seed=seed))
    with torch.no_grad():
        found = head.temper(features(seed=seed))
    largest = (found.cosine.double() / found.temperature.double()[:, None]).amax(1).numpy()
    slack = 1e-9 * np.abs(largest)
    assert (parts.ablated >= largest - slack).all()
    assert (parts.ablated <= largest + math.log(4) + slack).all()
    assert (found.temperature > 0).all()
    assert (found.temperature <= 1).all()


def test_the_parts_are_those_of_the_definition():
    head = LearnedTemperatureHead(6, 4, generator=torch_generator(1)).eval()
    x = features()
    parts, found = AblatedEnergy(head).components(x), head.temper(x)
    raw = (x @ head.temperature.weight.T)[:, 0] / math.sqrt(1 + head.normalise.eps)  # running mean 0, variance 1
    temperature = torch.sigmoid(raw).double().detach().numpy()
    cosine = F.cosine_similarity(x[:, None], head.weight[None], dim=-1).double().detach().numpy()
    np.testing.assert_allclose(found.logits.detach().numpy(), cosine / temperature[:, None], rtol=1e-4)
    np.testing.assert_allclose(parts.ablated, logsumexp(cosine / temperature[:, None], axis=1), rtol=1e-5)
    np.testing.assert_allclose(parts.tempered, temperature * parts.ablated, rtol=1e-5)
    np.testing.assert_allclose(parts.temperature, -temperature, rtol=1e-5)


def test_the_length_of_features_does_not_turn_cosines():
    head = LearnedTemperatureHead(6, 4, generator=torch_generator(2)).eval()
    torch.testing.assert_close(head.temper(9 * features()).cosine, head.temper(features()).cosine)


def test_boxes_and_pixels_have_their_own_scores():
    head = LearnedTemperatureHead(6, 4, generator=torch_generator(3)).eval()
    x = features(24).reshape(2, 3, 4, 6)
    assert head(x).shape == (2, 3, 4, 4)
    ours = AblatedEnergy(head).fit(x)
    assert ours.predict(x).shape == (2, 3, 4)
    np.testing.assert_allclose(ours.score_samples(x).ravel(), ours.score_samples(x.reshape(24, 6)), rtol=1e-6)


def test_temperature_is_normalised_over_every_position():
    head = LearnedTemperatureHead(6, 4, generator=torch_generator(4)).train()
    x = features(30).reshape(5, 6, 6)
    torch.testing.assert_close(head(x).reshape(30, 4), LearnedTemperatureHead.forward(head, x.reshape(30, 6)))


def test_attaching_changes_a_copy_and_keeps_sizes():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Sequential(nn.Linear(32, 10)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    changed = attach_temperature_head(net, generator=torch_generator(5))
    assert isinstance(changed[3][0], LearnedTemperatureHead)
    assert changed(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert isinstance(attach_temperature_head(nn.Linear(3, 2)), LearnedTemperatureHead)
    assert isinstance(attach_temperature_head(net, "1")[1], LearnedTemperatureHead)


def test_a_head_on_frozen_features_learns_and_scores_its_errors_low():
    x, y = (torch.from_numpy(part) for part in digits())
    flat = x.flatten(1)
    head = LearnedTemperatureHead(64, 10, generator=torch_generator(6))
    fit_head(head, flat[:1200], y[:1200], epochs=10, generator=torch_generator(7))
    detector = AblatedEnergy(head)
    held, truth = flat[1200:], y[1200:]
    right = (head(held).argmax(1) == truth).numpy()
    scores = detector.score_samples(held)
    assert right.mean() > 0.85
    assert (scores[right][:, None] > scores[~right]).mean() > 0.75
    assert detector.fit(held).predict(held).mean() == pytest.approx(0.9, abs=0.02)  # 95 % typical


def test_scoring_does_not_touch_the_model():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model = attach_temperature_head(net, generator=torch_generator(8)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    AblatedEnergy(model, batch=7).fit(features())
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model[2]._forward_pre_hooks


def test_what_cannot_work_is_loud():
    head = LearnedTemperatureHead(6, 4)
    with pytest.raises(InputError, match="training mode"):
        head.train()(features(1))
    assert head.eval()(features(1)).shape == (1, 4)
    with pytest.raises(InputError, match="zero"):
        head(torch.zeros(3, 6))
    with pytest.raises(InputError, match="takes features"):
        head(features(d=5))
    with pytest.raises(InputError, match="two classes"):
        LearnedTemperatureHead(6, 1)
    with pytest.raises(InputError, match="attach_temperature_head"):
        AblatedEnergy(nn.Linear(6, 4)).score_samples(features())
    with pytest.raises(InputError, match="no layer"):
        attach_temperature_head(nn.Sequential(nn.Linear(2, 2)), "7")
    with pytest.raises(InputError, match="no linear layer"):
        attach_temperature_head(nn.Sequential(nn.ReLU()))
    with pytest.raises(UnsupportedError, match="ReLU"):
        attach_temperature_head(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), "0")
    with pytest.raises(InputError, match="labels"):
        fit_head(head, features(), torch.full((40,), 4))
    with pytest.raises(InputError, match="NaN"):
        AblatedEnergy(head).score_samples(features() * float("nan"))
    with pytest.raises(InputError, match="contamination"):
        AblatedEnergy(head, contamination=0.9).fit(features())

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, x):
            return self.head(x) + self.head(x)

    with pytest.raises(UnsupportedError, match="2 times"):
        AblatedEnergy(Twice()).score_samples(features())


def test_arrays_take_the_type_of_the_model():
    model = LearnedTemperatureHead(6, 4, generator=torch_generator(3)).double().eval()
    x = features().double()
    np.testing.assert_array_equal(AblatedEnergy(model).score_samples(x.numpy()), AblatedEnergy(model).score_samples(x))
