"""Layers are scored apart, moved towards typicality, and never added up without weights."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.detection import LayerwiseMahalanobis, MahalanobisDetector


@pytest.fixture(scope="module")
def setting():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    centres = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
    y = torch.arange(300) % 3
    x = centres[y] + 0.3 * torch.randn(300, 4, generator=generator)
    other = 1.5 * torch.randn(150, 4, generator=generator)
    return net, x, y.numpy(), other


def test_layer_scores_are_those_of_a_detector_on_each_layer(setting):
    net, x, y, other = setting
    ours = LayerwiseMahalanobis(net, ["1", "3"]).fit(x, y)
    hidden = net[:2](x).detach().double().numpy()
    expected = MahalanobisDetector().fit(hidden, y).score_samples(net[:2](other).detach().double().numpy())
    np.testing.assert_allclose(ours.score_layers(other)[:, 0], expected, rtol=1e-6)


def test_the_step_moves_every_input_towards_typicality(setting):
    net, x, y, other = setting
    ours = LayerwiseMahalanobis(net, ["1"]).fit(x, y)
    still, moved = ours.score_layers(other), ours.score_layers(other, magnitude=1e-3)
    assert (moved > still).mean() > 0.99


def test_the_combination_beats_nothing_less_than_its_layers(setting):
    net, x, y, other = setting
    ours = LayerwiseMahalanobis(net, ["1", "3"]).fit(x, y)
    ours.fit_combiner(x[:100], other[:75], magnitudes=(0.0, 0.01))
    assert ours.magnitude_ in (0.0, 0.01)
    typical, foreign = ours.score_samples(x[100:]), ours.score_samples(other[75:])
    assert (typical[:, None] > foreign).mean() > 0.9
    assert abs((ours.predict(x[:100]) == -1).mean() - 0.05) < 0.02


def test_several_layers_without_weights_are_refused(setting):
    net, x, y, _ = setting
    with pytest.raises(InputError, match="fit_combiner"):
        LayerwiseMahalanobis(net, ["1", "3"]).fit(x, y).score_samples(x)
    assert LayerwiseMahalanobis(net, ["1"]).fit(x, y).score_samples(x).shape == (300,)


def test_inputs_take_the_type_of_the_model(setting):
    net, x, y, other = setting
    double = copy.deepcopy(net).double()
    from_tensor = LayerwiseMahalanobis(double, ["1"]).fit(x.double(), y).score_layers(other.double(), magnitude=0.01)
    from_array = LayerwiseMahalanobis(double, ["1"]).fit(x.double().numpy(), y).score_layers(other.numpy(), 0.01)
    np.testing.assert_array_equal(from_tensor, from_array)
    pixels = (x.abs() * 20).byte()
    ours = LayerwiseMahalanobis(net, ["1"]).fit(x, y)
    np.testing.assert_array_equal(ours.score_layers(pixels), ours.score_layers(pixels.float()))


def test_negative_magnitudes_are_refused_wherever_they_enter(setting):
    net, x, y, other = setting
    ours = LayerwiseMahalanobis(net, ["1"]).fit(x, y)
    for call in (
        lambda: ours.score_layers(x, magnitude=-0.5),
        lambda: ours.fit_combiner(x[:50], other[:50], magnitudes=(-0.5, 0.0)),
        lambda: ours.fit_combiner(x[:50], other[:50], magnitudes=(float("nan"),)),
    ):
        with pytest.raises(InputError, match="negative"):
            call()
    with pytest.raises(InputError, match="empty"):
        ours.fit_combiner(x[:50], other[:50], magnitudes=())


@pytest.mark.parametrize(("settings", "message"), [({"magnitude": -0.1}, "negative"), ({"layers": ["9"]}, "no layer")])
def test_bad_settings_are_refused(setting, settings, message):
    net, x, y, _ = setting
    with pytest.raises(InputError, match=message):
        LayerwiseMahalanobis(net, **{"layers": ["1"], **settings}).fit(x, y)


def test_not_a_number_is_refused(setting):
    net, x, y, _ = setting
    with pytest.raises(InputError, match="NaN"):
        LayerwiseMahalanobis(net, ["1"]).fit(x.clone().fill_(float("nan")), y)
