"""Detectors that look at what enters the last layer: limiting cases in which they are the plain energy."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.detection import LinearHead, RectifiedEnergy, VirtualLogit
from holdfast.inputs.detection.rectified import SAMPLE, quantile_of_many
from holdfast.inputs.detection.scores import energy
from holdfast.inputs.features import Features


@pytest.fixture(scope="module")
def model():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


def entering(model, n, seed=0):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    (features,), logits = Features(model, ("2",), at="input").with_logits(x)
    return features, logits


def test_the_head_gives_the_models_own_logits(model):
    features, logits = entering(model, 30)
    np.testing.assert_allclose(LinearHead.of(model).logits(features), logits, rtol=1e-4, atol=1e-5)
    assert LinearHead.of(nn.Linear(3, 2, bias=False)).bias.tolist() == [0, 0]


def test_rectified_energy_clips_and_is_the_energy_without(model):
    features, _ = entering(model, 200)
    head = LinearHead.of(model)
    plain = RectifiedEnergy(head, quantile=1.0).fit(features)
    np.testing.assert_allclose(plain.score_samples(features), energy(head.logits(features)))
    clipped = RectifiedEnergy(head, quantile=0.8).fit(features)
    assert (features <= clipped.clip_).mean() == pytest.approx(0.8, abs=0.01)
    wanted = energy(np.minimum(features, clipped.clip_) @ head.weight.T + head.bias)
    np.testing.assert_allclose(clipped.score_samples(features), wanted)


def test_the_virtual_logit_has_the_mean_of_the_largest(model):
    features, _ = entering(model, 400)
    head = LinearHead.of(model)
    detector = VirtualLogit(head, dimension=8).fit(features)
    centred = features - detector.origin_
    np.testing.assert_allclose(head.weight @ detector.origin_ + head.bias, 0, atol=1e-10)  # the origin has no logits
    virtual = detector.alpha_ * np.linalg.norm(centred @ detector.residual_, axis=1)
    assert virtual.mean() == pytest.approx(head.logits(features).max(1).mean())
    np.testing.assert_allclose(detector.score_samples(features), energy(head.logits(features)) - virtual)
    values = np.sort(np.linalg.eigvalsh(centred.T @ centred / 400))
    spread = ((centred @ detector.residual_) ** 2).mean(0).sum()
    assert spread == pytest.approx(values[:12].sum())


def test_moving_into_the_residual_lowers_the_score(model):
    features, _ = entering(model, 400)
    detector = VirtualLogit(LinearHead.of(model), dimension=8).fit(features)
    null = np.linalg.svd(detector.head.weight)[2][4:]  # directions without logits
    away = detector.residual_ @ detector.residual_.T @ null[0]
    away -= np.linalg.pinv(detector.head.weight) @ (detector.head.weight @ away)
    assert (detector.score_samples(features + 50 * away) < detector.score_samples(features)).mean() > 0.95
    assert (detector.predict(features) == -1).mean() == pytest.approx(0.05, abs=0.01)


def test_what_does_not_fit_is_refused(model):
    features, _ = entering(model, 50)
    head = LinearHead.of(model)
    with pytest.raises(InputError, match="takes 20"):
        RectifiedEnergy(head).fit(features[:, :5])
    with pytest.raises(InputError, match="dimension"):
        VirtualLogit(head, dimension=20).fit(features)
    with pytest.raises(InputError, match="quantile"):
        RectifiedEnergy(head, quantile=0.0).fit(features)
    with pytest.raises(InputError, match="linear layer"):
        LinearHead.of(nn.Sequential(nn.ReLU()))
    flat = np.random.default_rng(0).normal(size=(50, 3)) @ np.eye(3, 20)
    with pytest.raises(InputError, match="residual"):
        VirtualLogit(LinearHead(head.weight, np.zeros(4)), dimension=10).fit(flat)


@pytest.mark.parametrize("kind", ["normal", "few values", "sorted", "heavy"])
@pytest.mark.parametrize("q", [0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_quantiles_of_many_values_are_numpys(kind, q):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(4 * SAMPLE + 7)
    values = {
        "normal": values,
        "few values": np.round(values),
        "sorted": np.sort(values),
        "heavy": np.exp(5 * values),
    }[kind]
    assert quantile_of_many(values, q) == pytest.approx(np.quantile(values, q), rel=1e-12, abs=0)
    assert quantile_of_many(values[:1], q) == values[0]
    assert quantile_of_many(values[:100], q) == np.quantile(values[:100], q)
