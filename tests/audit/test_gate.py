"""Gates are decided by the interval, and say by which end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.audit.gate import Condition, decide
from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.finding import Finding


def finding(low, value, high):
    return Finding("adversarial", "accuracy", Estimate(value, low, high, n=100, method="betting"), "")


@pytest.mark.parametrize(
    ("text", "interval", "passed", "words"),
    [
        ("adversarial.accuracy < 0.4", (0.45, 0.5, 0.55), True, "lower bound 0.45 rules it out"),
        ("adversarial.accuracy < 0.4", (0.35, 0.5, 0.55), False, "lower bound 0.35 does not rule it out"),
        ("adversarial.accuracy < 0.4", (0.1, 0.2, 0.3), False, "does not rule it out"),
        ("adversarial.accuracy > 0.6", (0.35, 0.5, 0.55), True, "upper bound 0.55 rules it out"),
        ("adversarial.accuracy >= 0.55", (0.35, 0.5, 0.55), False, "upper bound 0.55 does not rule it out"),
    ],
)
def test_the_bound_decides(text, interval, passed, words):
    (verdict,) = decide([Condition.parse(text)], [finding(*interval)])
    assert verdict.passed is passed
    assert words in verdict.sentence


def test_what_was_not_measured_does_not_pass():
    (verdict,) = decide([Condition.parse("certified.accuracy < 0.1")], [finding(0.4, 0.5, 0.6)])
    assert not verdict.passed
    assert "not measured" in verdict.sentence


@given(ends=st.lists(st.floats(0, 1), min_size=3, max_size=3), number=st.floats(0, 1))
def test_truth_agrees_with_every_number_in_the_interval(ends, number):
    low, value, high = sorted(ends)
    condition = Condition("adversarial.accuracy", "<", number)
    truths = {point < number for point in (low, value, high)}
    expected = {frozenset({True}): "true", frozenset({False}): "false"}.get(frozenset(truths), "undecided")
    assert condition.truth(Estimate(value, low, high)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adversarial < 0.4", "write it like"),
        ("adversarial.accuracy = 0.4", "write it like"),
        ("adversarial.accuracy < much", "write it like"),
        ("adversarial.accuracy < 1e", "not a number"),
        ("nonsense.accuracy < 0.4", "names no probe"),
        ("", "write it like"),
    ],
)
def test_conditions_that_cannot_be_read_say_how_to_write_them(text, words):
    with pytest.raises(InputError, match=words):
        Condition.parse(text)
