"""Risk-coverage curves: limiting cases, ties, and the relation of AURC to the mean loss."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.inputs.selective import aurc, coverage_at_risk, risk_at_coverage, risk_coverage, scod_risk_coverage

pairs = st.lists(st.tuples(st.integers(0, 4).map(float), st.sampled_from([0.0, 1.0])), min_size=1, max_size=15)


@given(pairs)
def test_full_coverage_has_the_mean_loss(examples):
    scores, losses = map(list, zip(*examples, strict=True))
    curve = risk_coverage(scores, losses)
    assert curve.coverage[-1] == 1
    np.testing.assert_allclose(curve.risk[-1], np.mean(losses))
    assert np.all(np.diff(curve.coverage) > 0)
    for share, risk, threshold in zip(curve.coverage, curve.risk, curve.threshold, strict=True):
        accepted = np.array(scores) >= threshold
        np.testing.assert_allclose([share, risk], [accepted.mean(), np.array(losses)[accepted].mean()])


def test_a_constant_score_has_the_mean_loss_as_its_area():
    losses = np.repeat([0.0, 1.0], [70, 30])
    np.testing.assert_allclose(aurc(np.zeros(100), losses, resamples=10).value, 0.3)


def test_a_perfect_score_has_the_smallest_area():
    losses = np.repeat([0.0, 1.0], [70, 30])
    best = np.mean(np.concatenate([np.zeros(70), np.arange(1, 31) / np.arange(71, 101)]))
    estimate = aurc(-losses + 1e-3 * np.arange(100)[::-1], losses, resamples=50)
    np.testing.assert_allclose(estimate.value, best)
    assert estimate.low <= best <= estimate.high


def test_operating_points_are_read_off_the_curve():
    scores, losses = np.arange(10.0)[::-1], np.array([0, 0, 0, 0, 1, 0, 0, 0, 1, 1.0])
    assert coverage_at_risk(scores, losses, 0.0, resamples=10).value == 0.4
    assert coverage_at_risk(scores, losses, 0.125, resamples=10).value == 0.8
    assert risk_at_coverage(scores, losses, 0.5, resamples=10).value == 0.2
    assert coverage_at_risk(scores, np.ones(10), 0.5, resamples=10).value == 0


def test_foreign_inputs_cost_what_was_agreed():
    curve = scod_risk_coverage([3.0, 2.0], [0.0, 1.0], [2.5, 1.0], foreign_cost=2.0)
    np.testing.assert_allclose(curve.risk, [0, 1, 1, 5 / 4])
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1])


def test_no_error_seen_is_not_no_error():
    scores, none = np.arange(10.0), np.zeros(10)
    np.testing.assert_allclose(risk_at_coverage(scores, none, 0.5).high, 1 - 0.025**0.2)
    np.testing.assert_allclose(risk_at_coverage(scores, 1 - none, 0.5).low, 0.025**0.2)
    assert coverage_at_risk(scores, none, 0.05).low == 0  # no bound on the risk of ten examples is so low
    np.testing.assert_allclose(coverage_at_risk(scores, none, 0.32).low, 1.0)  # 1 - 0.025 ** (1 / 10) = 0.308
    np.testing.assert_allclose(aurc(np.zeros(10), none).high, 1 - 0.025**0.1)
    assert aurc(scores, none).high > 1 - 0.025**0.1


def test_losses_beyond_one_scale_the_interval():
    scores, losses = np.arange(10.0), np.repeat([0.0, 1.0], 5)
    for call in (aurc, lambda s, loss: risk_at_coverage(s, loss, 0.8)):
        one, four = call(scores, losses), call(scores, 4 * losses)
        np.testing.assert_allclose([four.low, four.high], [4 * one.low, 4 * one.high])
    one, four = coverage_at_risk(scores, losses, 0.3), coverage_at_risk(scores, 4 * losses, 1.2)
    np.testing.assert_allclose([four.low, four.high], [one.low, one.high])


def test_intervals_cover_where_errors_are_rare():
    generator = np.random.default_rng(5)
    covered = []
    for _ in range(120):
        scores, losses = generator.random(40), (generator.random(40) < 0.03).astype(float)
        risk, area = risk_at_coverage(scores, losses, 0.5, resamples=30), aurc(scores, losses, resamples=30)
        share = coverage_at_risk(scores, losses, 0.05, resamples=30)
        covered.append([risk.low <= 0.03 <= risk.high, area.low <= 0.03 <= area.high, share.low <= 1 <= share.high])
    assert (np.mean(covered, axis=0) >= 0.93).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: risk_coverage([1.0], [1.0, 0.0]),
        lambda: risk_coverage([np.nan], [1.0]),
        lambda: risk_coverage([1.0], [-1.0]),
        lambda: coverage_at_risk([1.0], [1.0], -0.1),
        lambda: risk_at_coverage([1.0], [1.0], 0.0),
        lambda: scod_risk_coverage([1.0], [1.0], [1.0], foreign_cost=-1.0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InputError):
        call()
