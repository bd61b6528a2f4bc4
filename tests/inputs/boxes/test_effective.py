"""Effective robustness: planted lines are found, matches and numbers agree, intervals follow the images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from tests.inputs.boxes.random_problems import problem

from holdfast.core.errors import InputError
from holdfast.inputs.boxes import COCO_O_SLOPE, effective_robustness, fit_baseline, match


@given(st.floats(0.1, 1.0), st.integers(0, 1000))
def test_a_planted_slope_is_found_exactly_without_noise(slope, seed):
    ap = np.random.default_rng(seed).uniform(0.1, 0.9, 5)
    line = fit_baseline(ap, slope * ap)
    assert line.slope.value == pytest.approx(slope)
    assert line.slope.width < 1e-6
    np.testing.assert_allclose(line.expected(ap), slope * ap)


def test_a_logit_line_is_found_exactly_without_noise():
    ap = np.array([0.2, 0.4, 0.5, 0.7])
    shifted = special.expit(-0.5 + 0.8 * special.logit(ap))
    line = fit_baseline(ap, shifted, "logit")
    assert (line.slope.value, line.intercept) == pytest.approx((0.8, -0.5))
    np.testing.assert_allclose(line.expected(ap), shifted)


def test_the_logit_slope_and_its_interval_are_those_of_linear_regression():
    generator = np.random.default_rng(0)
    ap, shifted = generator.uniform(0.2, 0.8, (2, 9))
    line, known = fit_baseline(ap, shifted, "logit"), stats.linregress(special.logit(ap), special.logit(shifted))
    half = stats.t.ppf(0.975, 7) * known.stderr
    assert line.slope.value == pytest.approx(known.slope)
    assert (line.slope.low, line.slope.high) == pytest.approx((known.slope - half, known.slope + half))


def test_numbers_of_a_table():
    """A detector on the line has no effective robustness; one with 0.05 more on every domain has 0.05."""
    assert effective_robustness(0.4, [0.18] * 6, COCO_O_SLOPE).value == pytest.approx(0)
    assert effective_robustness(0.4, [0.20, 0.26], COCO_O_SLOPE).value == pytest.approx(0.05)


def test_matches_give_the_value_of_their_numbers_with_an_interval():
    clean, shifted = (match(*problem(seed, images=60)) for seed in (1, 2))
    made = effective_robustness(clean, [shifted], 0.45, generator=np.random.default_rng(0), resamples=200)
    from holdfast.inputs.boxes import report

    assert made.value == pytest.approx(report(shifted).ap - 0.45 * report(clean).ap)
    assert made.low < made.value < made.high


def test_pairing_removes_what_the_images_share():
    """The same detections as shifted domain with slope 1: paired, every resample gives exactly zero."""
    clean = match(*problem(1, images=40))
    paired = effective_robustness(clean, [clean], 1.0, generator=np.random.default_rng(0), paired=True, resamples=50)
    alone = effective_robustness(clean, [clean], 1.0, generator=np.random.default_rng(0), resamples=50)
    assert (paired.low, paired.high) == (0, 0)
    assert alone.width > 0.01


def test_bad_input_is_told():
    with pytest.raises(InputError, match="at least 3 detectors"):
        fit_baseline([0.4, 0.5], [0.2, 0.3])
    with pytest.raises(InputError, match="divide percents"):
        fit_baseline([40.0, 50.0, 60.0], [20.0, 25.0, 30.0])
    with pytest.raises(InputError, match="draw no line"):
        fit_baseline([0.5, 0.5, 0.5], [0.2, 0.3, 0.4], "logit")
    with pytest.raises(InputError, match="at least one shifted"):
        effective_robustness(0.4, [], 0.45)
    made = match(*problem(1))
    with pytest.raises(InputError, match="a generator"):
        effective_robustness(made, [made], 0.45)
    with pytest.raises(InputError, match="same images"):
        effective_robustness(
            made, [match(*problem(1, images=3))], 0.45, generator=np.random.default_rng(0), paired=True
        )
