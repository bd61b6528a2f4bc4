"""The promised rate of false alarms is kept, whatever the detector, and a guard without a threshold says nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.ensemble import IsolationForest
from torch import nn

from holdfast.core.errors import InputError
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.detection import Guard, MahalanobisDetector
from holdfast.inputs.detection.guard import calibrated_threshold, needed
from holdfast.inputs.detection.scores import energy


@pytest.fixture(scope="module")
def model():
    generator = torch_generator(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


def inputs(n, seed=1, shift=0.0):
    return shift + torch.randn(n, 4, generator=torch_generator(seed))


def first(x):
    return x[:, 0]


class OutlierScores:
    """The doors of a pytorch-ood detector: higher is more foreign."""

    __module__ = "pytorch_ood.detector"

    def predict(self, x):
        return -x[:, 0]

    def predict_features(self, features):
        return features.square().sum(1)


class LogitsOutlierScores(OutlierScores):
    def predict_logits(self, logits):
        return -logits.amax(1)


@given(st.integers(1, 200), st.floats(0.01, 0.6))
def test_the_marginal_rank_is_the_largest_that_keeps_the_promise(n, level):
    scores = np.arange(n, dtype=np.float64)
    if n < needed(level):
        with pytest.raises(InputError, match="takes"):
            calibrated_threshold(scores, level)
        return
    threshold, guarantee = calibrated_threshold(scores, level)
    assert threshold == guarantee.rank - 1  # the rank-th smallest
    assert guarantee.rank / (n + 1) <= level * (1 + 1e-6)
    assert (guarantee.rank + 1) / (n + 1) > level


@given(st.integers(1, 300), st.floats(0.02, 0.5), st.floats(0.5, 0.99))
def test_the_confident_rank_is_the_largest_whose_beta_law_keeps_the_promise(n, level, confidence):
    scores = np.arange(n, dtype=np.float64)
    kept = [k for k in range(1, n + 1) if stats.beta.cdf(level, k, n + 1 - k) >= confidence]
    assert bool(kept) == (n >= needed(level, confidence))
    if kept:
        assert calibrated_threshold(scores, level, confidence)[1].rank == max(kept)


def test_false_alarms_are_as_promised_over_many_calibrations():
    generator, level, n = numpy_generator(0, "guard"), 0.1, 59
    scores = generator.standard_normal((2000, n))
    rates = np.array([[stats.norm.cdf(calibrated_threshold(s, level, c)[0]) for c in (None, 0.9)] for s in scores])
    assert rates[:, 0].mean() == pytest.approx(0.1, abs=0.004)  # k / (n + 1) is 6 / 60: no slack
    assert 0.2 < (rates[:, 0] > level).mean() < 0.6  # one guard may well exceed it
    assert (rates[:, 1] > level).mean() <= 0.1 + 0.02


def test_ties_only_lower_the_rate():
    threshold, _ = calibrated_threshold(np.zeros(100), 0.1)
    assert threshold == 0  # nothing is below it, so nothing typical is refused


@pytest.mark.parametrize(
    "kind", ["logits", "ours", "scikit-learn", "outlier", "outlier features", "outlier logits", "function"]
)
def test_every_kind_of_detector_keeps_the_rate_and_catches_foreign_inputs(model, kind):
    train, layer = inputs(400, seed=2), None
    if kind == "logits":
        detector = "negative entropy"
    elif kind == "ours":
        detector, layer = MahalanobisDetector().fit(hidden(model, train), np.arange(400) % 2), "3"
    elif kind == "scikit-learn":
        detector = IsolationForest(random_state=0).fit(train.numpy())
    elif kind == "function":
        detector = first
    elif kind == "outlier logits":
        detector = LogitsOutlierScores()
    else:
        detector, layer = OutlierScores(), ("3" if kind == "outlier features" else None)
    guard = Guard(model, detector, 0.1, layer=layer).calibrate(inputs(999, seed=3))
    assert guard.refused(inputs(2000, seed=4)).high > 0.1 > guard.refused(inputs(2000, seed=4)).low - 0.02
    if kind in ("scikit-learn", "function", "outlier"):
        assert guard.refused(inputs(500, seed=5, shift=-6.0)).low > 0.5


def hidden(model, x):
    with torch.no_grad():
        return model.eval()[:3](x).double().numpy()


def test_output_says_what_may_be_used(model):
    x = inputs(50, seed=6)
    guard = Guard(model, "energy", 0.2).calibrate(inputs(400, seed=7))
    found = guard(x)
    wanted = energy(model.eval()(x).detach().numpy())
    np.testing.assert_allclose(found.score.numpy(), wanted, rtol=1e-6)
    assert found.score.dtype == torch.float64
    assert torch.equal(found.answered, found.score >= guard.threshold)
    assert 0 < found.answered.sum() < 50
    assert torch.equal(found.prediction[found.answered], found.logits.argmax(1)[found.answered])
    assert (found.prediction[~found.answered] == -1).all()


def test_an_outlier_score_is_turned_round(model):
    x = inputs(30)
    found = Guard(model, LogitsOutlierScores()).calibrate(inputs(100))(x)
    np.testing.assert_allclose(found.score.numpy(), found.logits.amax(1).detach().numpy())
    layered = Guard(model, OutlierScores(), layer="3").calibrate(inputs(100))(x)
    np.testing.assert_allclose(layered.score.numpy(), -(hidden(model, x) ** 2).sum(1), rtol=1e-5)


def test_gradients_pass_for_whoever_attacks_it(model):
    x = inputs(5).requires_grad_()
    Guard(model, "energy").calibrate(inputs(100)).forward(x).logits.sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_score_that_is_nan_abstains_and_cannot_calibrate(model):
    def score(x):
        return torch.where(x[:, 1] > 0, math.nan, x[:, 0])

    with pytest.raises(InputError, match="NaN"):
        Guard(model, score).calibrate(inputs(100))
    guard = Guard(model, score).calibrate(inputs(400)[inputs(400)[:, 1] < 0])
    x = inputs(40, seed=8)
    assert not guard(x).answered[x[:, 1] > 0].any()


def test_the_threshold_is_saved_and_the_model_stays_in_its_mode(model):
    model.train()
    guard = Guard(model, first).calibrate(inputs(100))
    assert model.training
    again = Guard(model, first)
    again.load_state_dict(guard.state_dict())
    assert torch.equal(again(inputs(9)).answered, guard(inputs(9)).answered)
    assert "0.05" in str(guard.guarantee)
    assert "confidence 0.9" in str(Guard(model, first, confidence=0.9).calibrate(inputs(100)).guarantee)


def test_what_cannot_be_promised_is_refused(model):
    with pytest.raises(InputError, match="calibrate"):
        Guard(model, first)(inputs(3))
    with pytest.raises(InputError, match="it takes 19"):
        Guard(model, first, 0.05).calibrate(inputs(18))
    Guard(model, first, 0.05).calibrate(inputs(19))
    with pytest.raises(InputError, match="it takes 59"):
        Guard(model, first, 0.05, confidence=0.95).calibrate(inputs(58))
    Guard(model, first, 0.05, confidence=0.95).calibrate(inputs(59))
    for wrong in ({"level": 0.0}, {"confidence": 1.0}, {"detector": "oracle"}, {"detector": 3}, {"layer": "9"}):
        with pytest.raises(InputError):
            Guard(model, **{"detector": first, **wrong})
    with pytest.raises(InputError, match="one each"):
        Guard(model, lambda x: x).calibrate(inputs(100))


def test_another_type_of_weights_does_not_round_the_threshold(model):
    guard = Guard(model, first).calibrate(inputs(100))
    exact = float(guard.threshold)
    assert exact != float(torch.tensor(exact).half())
    assert float(guard.half().threshold) == exact
    assert guard.threshold.dtype == torch.float64
    assert next(guard.model.parameters()).dtype == torch.float16
    assert float(guard.float().threshold) == exact
    with pytest.raises(InputError, match="needs a torch"):
        Guard(lambda x: x, first)
