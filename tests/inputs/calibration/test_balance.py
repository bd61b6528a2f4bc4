"""The balance score: zero at the truth, equal to the one-bin ECE, below the true ECE; the profile finds the rest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.inputs.calibration import (
    balance_profile,
    balance_score,
    balance_test,
    expected_calibration_error,
    gains,
)


def forecasts(seed, n, a=1.0, b=1.0):
    """True probabilities from Beta(a, b) and outcomes drawn from them."""
    rng = np.random.default_rng(seed)
    truth = rng.beta(a, b, n)
    return truth, (rng.random(n) < truth).astype(int)


def test_gains_by_hand():
    p = np.array([0.9, 0.9, 0.2, 0.2, 0.5])
    y = np.array([1, 0, 0, 1, 1])
    assert gains(y, p) == pytest.approx([0.1, -0.9, 0.2, -0.8, 0.5])
    assert balance_score(y, p).value == pytest.approx(-0.18)


def test_two_classes_as_columns_say_the_same():
    truth, y = forecasts(0, 200)
    assert gains(y, np.c_[1 - truth, truth]) == pytest.approx(gains(y, truth))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=50))
def test_one_bin_calibration_error_is_the_absolute_balance(pairs):
    p, y = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    for strategy in ("width", "mass"):
        error = expected_calibration_error(y, p, bins=1, debiased=False, strategy=strategy)
        assert error.value == pytest.approx(abs(balance_score(y, p).value), abs=1e-12)


def test_interval_covers_zero_for_calibrated_forecasts_at_its_level():
    covered = [
        (estimate := balance_score(y, p)).low <= 0 <= estimate.high
        for p, y in (forecasts(seed, 200, 0.5, 0.5) for seed in range(600))
    ]
    assert 0.92 < np.mean(covered) < 0.98


def test_anytime_interval_is_wider_and_says_so():
    p, y = forecasts(1, 500)
    fixed, anytime = balance_score(y, p), balance_score(y, p, interval="anytime")
    assert fixed.value == pytest.approx(anytime.value)
    assert fixed.width < anytime.width < 2.5 * fixed.width


def test_sign_tells_over_from_under_confidence():
    truth, y = forecasts(2, 4000)
    q = np.maximum(truth, 1 - truth)
    sharper = np.where(truth >= 0.5, q**0.3, 1 - q**0.3)
    assert balance_score(y, sharper).high < 0
    blunter = 0.5 + 0.5 * (truth - 0.5)
    assert balance_score(y, blunter).low > 0


def test_known_variance_test_has_its_size_and_finds_a_shift():
    p_values = [balance_test(y, p) for p, y in (forecasts(seed, 200) for seed in range(500))]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.08
    truth, y = forecasts(3, 4000)
    assert balance_test(y, np.where(truth >= 0.5, truth**0.5, 1 - (1 - truth) ** 0.5)) < 1e-6


def test_profile_recovers_errors_that_cancel():
    """Over-confident by 0.1 below q = 0.75 and under-confident by 0.1 above: B is near 0, the true ECE is 0.1."""
    rng = np.random.default_rng(4)
    q = rng.uniform(0.6, 0.9, 8000)
    y = (rng.random(8000) < q + np.where(q > 0.75, 0.1, -0.1)).astype(int)
    profile = balance_profile(y, q)
    assert abs(profile.balance.value) < 0.02
    assert 0.08 < profile.lower_bound.value < 0.11
    assert profile.parts[0].balance.high < 0 < profile.parts[-1].balance.low
    assert sum(part.share for part in profile.parts) == pytest.approx(1)


def test_lower_bound_is_not_inflated_by_chance():
    bounds = [balance_profile(y, p).lower_bound for p, y in (forecasts(seed, 200) for seed in range(200))]
    assert np.mean([bound.low <= 0 for bound in bounds]) >= 0.95
    values = [bound.value for bound in bounds]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_groups_with_opposite_errors_are_told_apart():
    rng = np.random.default_rng(5)
    group = np.repeat(["old", "young"], 2000)
    q = np.full(4000, 0.7)
    y = (rng.random(4000) < np.where(group == "old", 0.8, 0.6)).astype(int)
    profile = balance_profile(y, q, group)
    assert [part.name for part in profile.parts] == ["old", "young"]
    assert profile.parts[1].balance.high < 0 < profile.parts[0].balance.low
    assert profile.lower_bound.value == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("y", "p", "said"),
    [
        ([0, 1], [0.5, 1.2], r"\[0, 1\]"),
        ([0, 1], [0.5, np.nan], "probabilities"),
        ([0, 2], [0.5, 0.5], "0 or 1"),
        ([0, 3], [[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], r"0\.\.2"),
        ([], [], "at least one"),
        ([0, 1], [[0.5, 0.6], [0.5, 0.5]], "sum to 1"),
        ([0], [0.5], "at least 2"),
    ],
)
def test_bad_input_is_refused(y, p, said):
    with pytest.raises(InputError, match=said):
        balance_score(np.array(y, dtype=float), np.array(p, dtype=float))


def test_certain_forecasts_cannot_be_tested():
    with pytest.raises(InputError, match="nothing varies"):
        balance_test(np.array([1, 0]), np.array([1.0, 0.0]))
