"""Binned calibration agrees with scikit-learn where it has the same, and its debiasing does what it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from holdfast.core.errors import InputError
from holdfast.inputs.calibration import (
    TemperatureScaled,
    brier_parts,
    classwise_calibration_error,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)
from holdfast.inputs.calibration.reliability import bin_of


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def multiclass(seed, n=2000, classes=4, temperature=1.0):
    """Logits, calibrated at T = `temperature`, and outcomes."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(n, classes))
    cumulative = softmax(z).cumsum(axis=1)
    y = (rng.random((n, 1)) > cumulative).sum(axis=1).clip(max=classes - 1)
    return z * temperature, y


def test_bins_agree_with_scikit_learns_calibration_curve():
    rng = np.random.default_rng(0)
    q = rng.uniform(0.5, 1, 1000)
    y = (rng.random(1000) < q).astype(int)
    for strategy, theirs in (("width", "uniform"), ("mass", "quantile")):
        bins = reliability_bins(y, q, 10, strategy)
        accuracy, confidence = calibration_curve(y, q, n_bins=10, strategy=theirs)
        assert bins.confidence == pytest.approx(confidence, abs=1e-3)
        assert [estimate.value for estimate in bins.accuracy] == pytest.approx(accuracy, abs=0.02)
        assert bins.counts.sum() == 1000


@given(st.integers(0, 10_000), st.integers(1, 20), st.sampled_from(["mass", "width"]))
def test_brier_score_agrees_with_scikit_learn_and_its_parts_add_up(seed, bins, strategy):
    z, y = multiclass(seed, n=60)
    p = softmax(z)
    parts = brier_parts(y, p, bins, strategy)
    assert parts.score == pytest.approx(((p - np.eye(4)[y]) ** 2).sum(axis=1).mean(), abs=1e-12)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within
    assert total == pytest.approx(parts.score, abs=1e-12)
    binary = brier_parts(y == 0, p[:, 0], bins, strategy)
    assert binary.score == pytest.approx(brier_score_loss(y == 0, p[:, 0]), abs=1e-12)


def test_constant_base_rate_has_no_reliability_error_and_no_resolution():
    y = np.repeat([0, 1], [30, 70])
    parts = brier_parts(y, np.full(100, 0.7))
    assert parts.reliability == pytest.approx(0, abs=1e-12)
    assert parts.resolution == pytest.approx(0, abs=1e-12)
    assert parts.score == pytest.approx(0.21)


def test_debiased_error_is_zero_on_average_when_calibrated_and_the_plug_in_is_not():
    rng = np.random.default_rng(1)
    debiased, plug_in = [], []
    for _ in range(300):
        q = rng.uniform(0.5, 1, 300)
        c = (rng.random(300) < q).astype(int)
        debiased.append(expected_calibration_error(c, q).value)
        plug_in.append(expected_calibration_error(c, q, debiased=False).value)
    assert np.mean(plug_in) > 0.06
    assert np.mean(debiased) < 0.3 * np.mean(plug_in)


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.15])
def test_interval_covers_the_error_of_its_bins(shift):
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        q = rng.uniform(0.6, 0.8, 500)
        c = (rng.random(500) < q - shift * np.sign(q - 0.65)).astype(int)
        # Ten bins of equal width over [0, 1]: two are hit in full; one is cut by the turn of the sign at 0.65.
        signed = np.bincount(bin_of(q, 20, "width"), weights=-shift * np.sign(q - 0.65)) / 500
        estimate = expected_calibration_error(c, q, 20, strategy="width")
        covered += estimate.low <= np.abs(signed).sum() <= estimate.high
    assert covered / 300 >= 0.93


def test_a_clear_error_is_found_whatever_the_bins():
    rng = np.random.default_rng(3)
    q = rng.uniform(0.7, 1, 5000)
    c = (rng.random(5000) < q - 0.1).astype(int)
    for strategy in ("mass", "width"):
        assert expected_calibration_error(c, q, strategy=strategy).value == pytest.approx(0.1, abs=0.015)


def test_classwise_error_sees_what_the_top_label_hides():
    """The winner's probability is right; the two losers' are swapped."""
    rng = np.random.default_rng(4)
    p = np.tile([0.6, 0.35, 0.05], (4000, 1))
    y = rng.choice(3, size=4000, p=[0.6, 0.05, 0.35])
    assert expected_calibration_error(y, p).low < 0.02
    errors = classwise_calibration_error(y, p)
    assert [error.value for error in errors] == pytest.approx([0.0, 0.3, 0.3], abs=0.03)


def test_equal_forecasts_share_a_bin():
    q = np.r_[np.full(90, 0.9), np.full(10, 0.6)]
    assert bin_of(q, 10, "mass").max() == 1


def test_single_example_is_all_uncertainty():
    estimate = expected_calibration_error(np.array([1]), np.array([0.6]))
    assert estimate.low == 0
    assert estimate.high > 0.9


def test_temperature_is_the_minimum_of_the_log_loss_and_recovers_the_truth():
    z, y = multiclass(5, n=4000, temperature=2.5)
    fitted = fit_temperature(z, y)
    assert fitted == pytest.approx(2.5, rel=0.1)
    best = log_loss(y, softmax(z / fitted))
    assert all(best <= log_loss(y, softmax(z / (fitted * factor))) for factor in (0.9, 0.99, 1.01, 1.1))


def test_temperature_of_separable_and_of_meaningless_logits_is_clipped():
    y = np.array([0, 1, 0, 1])
    assert fit_temperature(3.0 * np.eye(2)[y], y) == 0.001
    assert fit_temperature(3.0 * np.eye(2)[1 - y], y) == 1000.0


def test_scaled_model_keeps_its_predictions():
    import torch

    model = torch.nn.Linear(3, 4)
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(TemperatureScaled(model, 4.0)(x), model(x) / 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: expected_calibration_error(np.array([1]), np.array([0.5]), bins=0),
        lambda: expected_calibration_error(np.array([1]), np.array([0.5]), level=1.0),
        lambda: bin_of(np.array([0.5]), 3, "chance"),
        lambda: fit_temperature(np.ones((3, 2)), np.array([0, 1])),
        lambda: fit_temperature(np.full((1, 2), np.nan), np.array([0])),
        lambda: fit_temperature(np.ones((1, 2)), np.array([2])),
        lambda: TemperatureScaled(None, 0.0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises((InputError, TypeError)):
        call()


def test_probabilities_beyond_one_by_rounding_are_clipped():
    p = np.array([np.nextafter(1, 2), 0.5, -1e-9])
    assert (
        expected_calibration_error(np.array([1, 1, 0]), p).value
        == expected_calibration_error(np.array([1, 1, 0]), np.array([1.0, 0.5, 0.0])).value
    )
    with pytest.raises(InputError, match="softmax"):
        expected_calibration_error(np.array([1, 0]), np.array([1.01, 0.5]))
