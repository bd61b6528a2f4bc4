"""Numbers carry as many digits as their interval allows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.estimate import Estimate
from holdfast.report.numbers import (
    bare_text,
    duration_text,
    estimate_text,
    interval_text,
    plain_number,
    value_text,
)


@pytest.mark.parametrize(
    ("estimate", "unit", "expected"),
    [
        (Estimate(0.941, 0.93, 0.95), "share", "94.1% [93.0 – 95.0%]"),
        (Estimate(0.94123, 0.94100, 0.94150), "share", "94.12% [94.10 – 94.15%]"),
        (Estimate(1.344, 1.29, 1.41), "classes", "1.34 classes [1.29 – 1.41]"),
        (Estimate(-0.012, -0.02, 0.004), "share", "−1.2% [−2.0 to 0.4%]"),
        (Estimate.exact(0.5), "share", "50.0%"),
        (Estimate.exact(3.0), "number", "3"),
        (Estimate(1.0, -math.inf, math.inf), "number", "1.00 [−∞ to ∞]"),
        (Estimate(1234.5, 1200.0, 1270.0), "s", "1234 s [1200 – 1270]"),
    ],
)
def test_estimates(estimate, unit, expected):
    assert estimate_text(estimate, unit) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1234567, "1,234,567"),
        (-0.5, "−0.5"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "n/a"),
        (3.0, "3"),
        (1e-7, "1e−07"),
    ],
)
def test_plain_numbers(number, expected):
    assert plain_number(number) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.44, "0.4 s"), (8.2, "8 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 5 min"), (60.0, "1 min")],
)
def test_durations(seconds, expected):
    assert duration_text(seconds) == expected


@given(st.floats(-1e6, 1e6), st.floats(0, 1e3), st.floats(0, 1e3), st.sampled_from(["share", "classes", "number"]))
def test_what_is_shown_is_within_a_tenth_of_the_interval_of_the_truth(value, down, up, unit):
    estimate = Estimate(value, value - down, value + up)
    shown = float(bare_text(estimate, unit).replace("−", "-").replace("%", "").replace(",", ""))
    factor = 100 if unit == "share" else 1
    assert abs(shown / factor - value) <= max(0.1 * estimate.width, 1e-3 * abs(value), 5e-4)
    assert value_text(estimate, unit).startswith(bare_text(estimate, unit))
    assert bool(interval_text(estimate, unit)) == (estimate.width > 0)
