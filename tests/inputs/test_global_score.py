"""The GREAT score: what it is of hand-made numbers, what it certifies, and what its interval covers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logit, ndtr
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.class_gaussian import ClassGaussianPCA
from holdfast.inputs.global_score import (
    LARGEST,
    Calibration,
    calibrate,
    great_score,
    required_samples,
    sampled_great_score,
)
from holdfast.inputs.smoothing.mean import SmoothedProbabilities

ROWS = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])


def test_local_scores_of_hand_made_numbers():
    """Right by 0.5; wrong; tied; certain."""
    found = great_score(ROWS, None, np.array([0, 0, 1, 2]))
    np.testing.assert_allclose(found.local / math.sqrt(math.pi / 2), [0.5, 0.0, 0.0, 1.0], atol=1e-12)
    assert found.estimate.value == pytest.approx(LARGEST * 1.5 / 4)
    assert found.per_class[0].value == pytest.approx(LARGEST * 0.25)
    assert found.estimate.low <= found.estimate.value <= found.estimate.high
    assert found.kind == "score"
    assert "certifies no radius" in str(found)


def test_groups():
    found = great_score(ROWS, None, np.array([0, 0, 1, 2]), groups=np.array(["a", "b", "b", "a"]))
    assert found.per_group["a"].value == pytest.approx(LARGEST * 0.75)
    assert found.per_group["b"].value == 0.0


@given(st.floats(0.05, 3), st.floats(-3, 3), st.floats(0, 1))
def test_the_certificate_of_a_smoothed_half_space_holds_in_the_worst_direction(sigma, place, share):
    """P(label 0) = Phi(t / sigma) on the line t that leads straight to the boundary."""
    p = ndtr(abs(place) / sigma)
    found = great_score(np.array([[p, 1 - p]]), None, np.array([0]), sigma=sigma)
    moved = abs(place) - share * found.local[0]
    assert ndtr(moved / sigma) >= 0.5
    assert found.kind == "certificate"


def test_the_certificate_is_what_the_margin_costs_at_its_steepest():
    """Near the boundary a half-space loses its margin exactly at the rate the factor says."""
    t = 1e-4
    p = ndtr(t / 0.5)
    local = great_score(np.array([[p, 1 - p]]), None, np.array([0]), sigma=0.5).local[0]
    assert local == pytest.approx(t, rel=1e-6)


def test_bounds_make_the_certificate_smaller():
    base = nn.Linear(2, 3)
    nn.init.normal_(base.weight, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(base.bias)
    smoothed = SmoothedProbabilities(base, 0.5, copies=500).eval()
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    y = smoothed(x).argmax(1)
    by_bounds = great_score(smoothed.interval(x, 2000), None, y, sigma=0.5)
    by_estimate = great_score(smoothed(x).exp().detach(), None, y, sigma=0.5)
    assert (by_bounds.local <= by_estimate.local).all()
    assert by_bounds.local.max() > 0
    assert "taken as exact" in str(by_estimate)
    assert "taken as exact" not in str(by_bounds)


@pytest.mark.parametrize(
    ("squashing", "wanted"),
    [
        ("softmax", [0.8, 0.2]),
        ("sigmoid", [16 / 17, 1 / 2]),
        ("softmax of sigmoid", None),
        ("sigmoid of softmax", None),
    ],
)
def test_calibrations(squashing, wanted):
    z = np.array([[math.log(4), 0.0]])
    temperature = 1.0 if squashing == "softmax" else 0.5
    found = Calibration(squashing, temperature)(z)[0]
    if squashing == "softmax of sigmoid":
        wanted = [1 / (1 + math.exp(-(0.8 - 0.5) / 0.5)), 1 / (1 + math.exp((0.8 - 0.5) / 0.5))]
    if squashing == "sigmoid of softmax":
        wanted = [1 / (1 + math.exp(-1.6)), 1 / (1 + math.exp(-0.4))]
    np.testing.assert_allclose(found, wanted)


def test_sample_sizes():
    assert required_samples(0.1, 0.05) == math.ceil(math.pi / 4 * math.log(40) / 0.01)
    assert required_samples(0.1, 0.05, "paper") == math.ceil(32 * math.e * math.log(40) / 0.01)


def test_hoeffding_sizes_suffice_for_the_hardest_case():
    """Half of the samples score 0, half everything."""
    n = required_samples(0.15, 0.05)
    means = LARGEST * np.random.default_rng(0).binomial(n, 0.5, 4000) / n
    assert float((np.abs(means - LARGEST / 2) > 0.15).mean()) <= 0.05


def test_intervals_cover_the_mean():
    rng = np.random.default_rng(1)
    p = rng.beta(4, 2, 40_000)
    rows = np.stack([p, 1 - p], 1)
    truth = LARGEST * np.clip(2 * p - 1, 0, None).mean()
    missed = 0
    for _ in range(100):
        pick = rng.integers(len(p), size=100)
        found = great_score(rows[pick], None, np.zeros(100, dtype=int)).estimate
        missed += not found.low <= truth <= found.high
    assert missed <= 5


def test_models_of_all_kinds_are_called_alike():
    X, y = load_iris(return_X_y=True)
    fitted = LogisticRegression(max_iter=2000).fit(X, y)
    linear = nn.Linear(4, 3).double()
    linear.weight.data, linear.bias.data = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    by_probabilities = great_score(fitted.predict_proba, X, y)
    by_logits = great_score(linear, X, y, calibration=Calibration("softmax"))
    by_array = great_score(fitted.predict_proba(X), X, torch.from_numpy(y))
    np.testing.assert_allclose(by_probabilities.local, by_logits.local, atol=1e-9)
    np.testing.assert_array_equal(by_probabilities.local, by_array.local)
    assert set(by_probabilities.per_class) == {0, 1, 2}


def test_drawing_stops_when_the_interval_is_short_enough():
    def sampler(n, generator):
        return generator.uniform(0.6, 0.8, (n, 1)), np.zeros(n, dtype=np.int64)

    found = sampled_great_score(
        lambda p: np.concatenate([p, 1 - p], 1), sampler, generator=np.random.default_rng(0), precision=0.1
    )
    assert found.estimate.width <= 0.1
    assert found.estimate.n < required_samples(0.05, 0.05)
    assert found.estimate.low <= LARGEST * 0.4 <= found.estimate.high
    short = sampled_great_score(
        lambda p: np.concatenate([p, 1 - p], 1), sampler, generator=np.random.default_rng(0), precision=1e-9, most=100
    )
    assert short.estimate.n == 100


def test_calibration_finds_the_temperature_that_ranks():
    """Scores of saturated models tie; a hot enough softmax tells them apart."""
    rng = np.random.default_rng(2)
    logits = [scale * np.abs(rng.normal(size=(40, 1))) * [[1.0, 0.0]] + [[300.0, 0.0]] for scale in (1, 20, 50, 100)]
    y = np.zeros(40, dtype=np.int64)
    fit = calibrate(logits, None, y, [1.0, 2.0, 3.0, 4.0], squashings=("softmax",))
    assert fit.correlation == pytest.approx(1.0)
    assert fit.tried["softmax", 1e-3] == 0.0
    assert fit.calibration.temperature > 5
    assert "tuned on 4 models" in str(great_score(logits[0], None, y, calibration=fit.calibration))


def test_class_gaussians_have_the_moments_of_their_classes():
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(3, 3))
    X = np.concatenate([rng.normal(size=(4000, 3)) @ mixing, 5 + 0.1 * rng.normal(size=(1000, 3))]).reshape(-1, 3, 1)
    y = np.repeat([2, 7], [4000, 1000])
    generator = ClassGaussianPCA(components=3).fit(X, y)
    generator.low_[:], generator.high_[:] = -np.inf, np.inf
    samples, labels = generator.sample(20_000, np.random.default_rng(4))
    assert samples.shape == (20_000, 3, 1)
    assert set(labels.tolist()) == {2, 7}
    assert abs(float((labels == 7).mean()) - 0.2) < 0.02
    for label in (2, 7):
        ours, theirs = (part.reshape(-1, 3) for part in (samples[labels == label], X[y == label]))
        spread = theirs.std(0)
        assert (np.abs(ours.mean(0) - theirs.mean(0)) < 0.06 * spread).all()
        np.testing.assert_allclose(np.cov(ours.T), np.cov(theirs.T), atol=0.06 * float(spread.max()) ** 2)


def test_class_gaussians_keep_the_share_of_variance_and_the_range():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(500, 4)) * [10, 1, 0.1, 0.01]
    generator = ClassGaussianPCA(components=0.95).fit(X.astype(np.float32), np.zeros(500, dtype=np.int64))
    assert [len(part) for part in generator.directions_] == [1]
    samples, _ = generator.sample(5000, rng)
    assert samples.dtype == np.float32
    assert (samples >= X.min(0).astype(np.float32)).all()
    assert (samples <= X.max(0).astype(np.float32)).all()


@pytest.mark.usefixtures("unannotated")
def test_labels_are_whole_numbers_and_outputs_arrays():
    y = np.array([0, 0, 1, 2])
    for labels in (y + 0.7, torch.tensor(y) + 0.7, y.astype(float), y == 1, y[:, None]):
        with pytest.raises(InputError, match="whole numbers"):
            great_score(ROWS, None, labels)
    with pytest.raises(InputError, match=r"got a list; pass np\.asarray"):
        great_score(ROWS.tolist(), None, y)
    with pytest.raises(InputError, match="a pair"):
        great_score((ROWS, ROWS, ROWS), None, y, sigma=1.0)


def test_refusals():
    y = np.array([0, 0, 1, 2])
    with pytest.raises(InputError, match="for logits pass calibration"):
        great_score(logit(ROWS.clip(0.01, 0.99)), None, y)
    with pytest.raises(InputError, match="must sum to 1"):
        great_score(ROWS / 2, None, y)
    with pytest.raises(InputError, match="labels span 0 to 3"):
        great_score(ROWS, None, np.array([0, 0, 1, 3]))
    with pytest.raises(InputError, match="got none"):
        great_score(ROWS[:0], None, y[:0])
    with pytest.raises(InputError, match="sigma must be positive"):
        great_score(ROWS, None, y, sigma=0.0)
    with pytest.raises(InputError, match="sigma or calibration"):
        great_score(ROWS, None, y, sigma=1.0, calibration=Calibration())
    with pytest.raises(InputError, match="give its sigma"):
        great_score((ROWS, ROWS), None, y)
    with pytest.raises(InputError, match="needs samples"):
        great_score(lambda x: x, None, y)
    with pytest.raises(InputError, match="temperature must be positive"):
        Calibration("softmax", 0.0)
    with pytest.raises(InputError, match="eps must be positive"):
        required_samples(0.0, 0.1)
    with pytest.raises(InputError, match="at least three"):
        calibrate([ROWS, ROWS], None, y, [1.0, 2.0])
    with pytest.raises(InputError, match="class 1 has 1 example"):
        ClassGaussianPCA().fit(np.zeros((3, 2)), np.array([0, 0, 1]))
