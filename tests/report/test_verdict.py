"""The words follow the printed rules, and only whole intervals decide."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.core.estimate import Estimate
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.report.record import RunRecord
from holdfast.report.verdict import clean_verdict, first_screen, judge, rules_in_words


def record(*sections, doubts=()):
    manifest = {"subject": {"classes": 10}, "settings": {"level": 0.95}}
    return RunRecord("memory", manifest, sections, doubts)


def section(probe, low, high, direction="higher is better", doubts=()):
    estimate = Estimate((low + high) / 2, low, high)
    finding = Finding(probe, "accuracy", estimate, "", direction=direction, headline=True)
    return Section(probe, "?", "!", (finding,), doubts=doubts)


CLEAN = section("accuracy", 0.8, 0.8)


def word(*sections, doubts=()):
    return judge(record(*sections, doubts=doubts))[-1].word


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.72, 0.90, "Holds"),  # 90% of 0.8
        (0.7199, 0.90, "Wavers"),
        (0.41, 0.71, "Wavers"),
        (0.39, 0.71, "Wavers"),
        (0.10, 0.3999, "Falls"),
        (0.10, 0.40, "Wavers"),
        (0.10, 0.72, "Undecided"),
    ],
)
def test_accuracy_under_perturbation_is_held_against_clean_accuracy(low, high, expected):
    assert word(CLEAN, section("adversarial", low, high)) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 0.05, "Holds"),
        (0.04, 0.06, "Wavers"),
        (0.16, 0.2, "Falls"),
        (0.01, 0.3, "Undecided"),
        (0.05, 0.15, "Wavers"),
    ],
)
def test_errors_are_good_when_low(low, high, expected):
    assert word(section("calibration", low, high, "lower is better")) == expected


def test_a_number_that_reads_the_other_way_is_not_judged():
    assert word(section("calibration", 0.0, 0.01)) == "Measured"
    assert word(section("a probe of my own", 0.0, 0.01)) == "Measured"
    assert word(section("adversarial", 0.9, 0.95)) == "Measured"  # nothing to hold it against


def test_accuracy_falls_only_when_it_may_be_guessing():
    assert word(CLEAN) == "Measured"
    assert word(section("accuracy", 0.09, 0.5)) == "Falls"


def test_what_is_not_proven_does_not_fall():
    assert word(CLEAN, section("certified", 0.0, 0.1)) == "Not proven"
    assert word(CLEAN, section("certified", 0.75, 0.78)) == "Holds"


@pytest.mark.parametrize("touches", [(), ("adversarial",), ("adversarial.accuracy",)])
def test_a_doubt_spoils_praise_and_not_blame(touches):
    doubt = Doubt("weak attack", "It is weaker than noise.", touches)
    assert word(CLEAN, section("adversarial", 0.75, 0.8, doubts=(doubt,))) == "In doubt"
    assert word(CLEAN, section("adversarial", 0.1, 0.2, doubts=(doubt,))) == "Falls"


def test_a_doubt_about_something_else_spoils_nothing():
    doubt = Doubt("other", "", ("corruption.accuracy",))
    assert word(CLEAN, section("adversarial", 0.75, 0.8, doubts=(doubt,))) == "Holds"
    everywhere = replace(doubt, touches=("adversarial.accuracy",))
    assert word(CLEAN, section("adversarial", 0.75, 0.8), doubts=(everywhere,)) == "In doubt"


def test_without_the_accuracy_probe_the_shared_predictions_are_the_baseline(plain_run):
    full = RunRecord.read(plain_run)
    bare = replace(full, sections=tuple(section for section in full.sections if section.probe != "accuracy"))
    right = full.clean["prediction"] == full.clean["label"]
    clean = clean_verdict(bare)
    assert clean.finding.estimate.value == right.mean() == clean_verdict(full).finding.estimate.value
    assert [v.word for v in judge(bare)] == [v.word for v in judge(full)[1:]]


def test_at_most_four_lines_gather_every_verdict_but_the_clean_one():
    skipped = Section("leakage", "?", "no training data", (), status="skipped")
    sections = (
        CLEAN, section("adversarial", 0.1, 0.2), section("corruption", 0.5, 0.6), section("weights", 0.78, 0.8),
        section("certified", 0.0, 0.1), skipped,
    )  # fmt: skip
    lines = first_screen(judge(record(*sections)))
    assert [line.lead for line in lines] == ["It holds", "It wavers", "It falls", "Nobody can say yet"]
    assert sorted(v.probe for line in lines for v in line.verdicts) == sorted(s.probe for s in sections[1:])
    assert "90% and 50%" in " ".join(rules_in_words())
