"""Accuracy, calibration, conformal and disparity say what the evidence says, at any point of an audit."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from holdfast.audit.engine import audit
from holdfast.audit.probe import Batch, Evidence, Settings
from holdfast.audit.probes.accuracy import AccuracyProbe
from holdfast.audit.probes.calibration import CalibrationProbe
from holdfast.audit.probes.conformal import ConformalProbe
from holdfast.audit.probes.disparity import DisparityProbe
from holdfast.core.exhibit import exhibit_from_dict
from holdfast.core.finding import Section
from holdfast.core.shares import shares
from holdfast.subject.data import ArrayInputs, Data
from holdfast.subject.subject import Access, Subject
from holdfast.threats.balls import Linf
from holdfast.threats.places import Translation

SETTINGS = Settings(seed=3)
NAMES = ("ant", "bee", "cat")


class Passed(nn.Module):
    """The input is the logits, divided by a temperature."""

    def __init__(self, temperature=1.0):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def forward(self, x):
        return x / self.temperature


def subject(examples=900, temperature=1.0, groups=None, seed=0, **options):
    """Three classes whose labels are drawn from softmax(inputs): calibrated at temperature 1."""
    rng = np.random.default_rng(seed)
    x = 2 * rng.normal(size=(examples, 3)).astype(np.float32)
    cumulative = softmax(x.astype(np.float64), axis=1).cumsum(axis=1)
    labels = (rng.random((examples, 1)) > cumulative).sum(axis=1).clip(max=2)
    data = Data(ArrayInputs(x), labels, groups=groups)
    return Subject(Passed(temperature).eval(), data, class_names=NAMES, modality="tabular", **options)


def concluded(probe, subject, settings=SETTINGS, order=None):
    """What the probe says after all examples (or those of `order`), in shards of 100."""
    state = probe.prepare(subject, settings)
    order = np.arange(len(subject.test)) if order is None else order
    rows, clean = [], []
    for start in range(0, len(order), 100):
        index = order[start : start + 100]
        x, y = subject.test.take(index)
        logits = subject.logits(subject.tensor(x))
        batch = Batch(index, subject.tensor(x), torch.as_tensor(y), logits, torch.Generator().manual_seed(start))
        rows.append(probe.examine(subject, state, batch))
        clean.append({"index": index, "label": y, "prediction": logits.argmax(1).numpy(), "logits": logits.numpy()})
    stacked = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
    shared = {name: np.concatenate([part[name] for part in clean]) for name in clean[0]}
    evidence = Evidence(stacked, shared)
    section = probe.conclude(subject, state, evidence, settings)
    assert Section.from_dict(section.to_dict()) == section
    assert all(exhibit_from_dict(exhibit.to_dict()) == exhibit for exhibit in section.exhibits)
    return section, evidence, probe.headline(state, evidence, settings)


def found(section, name):
    return next(finding for finding in section.findings if finding.name == name)


def test_accuracy_counts_right_answers_and_names_the_worst_class():
    model = subject()
    section, _, headline = concluded(AccuracyProbe(), model)
    x, y = model.test.take(np.arange(900))
    right = x.argmax(1) == y
    assert found(section, "accuracy").estimate == headline
    assert headline.value == pytest.approx(right.mean())
    per_class = [right[y == k].mean() for k in range(3)]
    worst = found(section, "worst_class")
    assert worst.estimate.value == pytest.approx(min(per_class))
    assert NAMES[int(np.argmin(per_class))] in worst.sentence
    matrix = next(exhibit for exhibit in section.exhibits if exhibit.kind == "heatmap")
    assert np.diag(matrix.values) == pytest.approx(per_class)
    assert np.sum(matrix.values, axis=1) == pytest.approx(np.ones(3))


def test_a_model_that_guesses_is_told_so():
    model = subject()
    wrong = model.with_model(nn.Sequential(Passed(), nn.Linear(3, 3, bias=False)))
    with torch.no_grad():
        wrong.model[1].weight.copy_(torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]))
    section, _, _ = concluded(AccuracyProbe(), wrong)
    assert [doubt.name for doubt in section.doubts] == ["no better than a constant answer"]
    assert not concluded(AccuracyProbe(), model)[0].doubts


def test_calibrated_model_is_cleared_and_a_sharpened_one_is_caught():
    honest, _, _ = concluded(CalibrationProbe(), subject(3000))
    assert found(honest, "balance").estimate.low < 0 < found(honest, "balance").estimate.high
    assert found(honest, "ece").estimate.low < 0.02
    section, evidence, headline = concluded(CalibrationProbe(), subject(3000, temperature=0.4))
    assert "too sure" in section.answer
    assert found(section, "balance").estimate.high < -0.05
    assert headline == found(section, "gap").estimate
    assert headline.low > 0.05
    assert headline.value == pytest.approx(abs(evidence["gain"].mean()))
    assert found(section, "ece").estimate.value == pytest.approx(headline.value, abs=0.03)
    # Logits were divided by 0.4; a temperature of 2.5 mends that.
    assert "2.4" in section.advice or "2.5" in section.advice or "2.6" in section.advice


def test_binned_error_is_never_below_a_gap_that_is_certain():
    """Confidence that varies little hides in debiased bins: 100 examples, all too modest by the same amount."""
    section, _, _ = concluded(CalibrationProbe(), subject(150, temperature=6.0))
    gap = found(section, "gap").estimate
    assert gap.low > 0
    for name in ("ece", "ece_equal_width"):
        error = found(section, name).estimate
        assert error.low >= gap.low
        assert error.low <= error.value <= error.high
        assert error.value >= gap.value


def test_a_handful_of_examples_does_not_fit_as_far_as_can_be_told():
    section, _, _ = concluded(CalibrationProbe(), subject(5))
    assert "Too few examples" in section.answer


def test_modest_model_is_called_modest():
    section, _, _ = concluded(CalibrationProbe(), subject(3000, temperature=3.0))
    assert "too modest" in section.answer


def test_few_examples_put_the_bins_in_doubt():
    section, _, _ = concluded(CalibrationProbe(), subject(60))
    assert [doubt.name for doubt in section.doubts] == ["too few examples for bins"]


def test_conformal_keeps_its_promise_on_examples_that_did_not_calibrate():
    model = subject(4000)
    section, evidence, headline = concluded(ConformalProbe(), model)
    fresh = ~np.isnan(evidence["covered"])
    assert fresh.sum() == 2000
    assert headline == found(section, "coverage").estimate
    assert headline.value == pytest.approx(0.9, abs=0.03)
    assert found(section, "worst_class_coverage_classwise").estimate.high > 0.88
    size = found(section, "set_size").estimate
    assert size.value == pytest.approx(evidence["size"][fresh].mean())
    assert 1 <= size.low < size.high < 3
    assert np.nanmin(evidence["size"]) == 1
    handful, _, _ = concluded(ConformalProbe(), subject(60, temperature=0.2))
    assert found(handful, "set_size").estimate.low >= 1


def test_conformal_says_when_nothing_fresh_was_seen():
    model = subject(40)
    state = ConformalProbe().prepare(model, SETTINGS)
    section, _, headline = concluded(ConformalProbe(), model, order=state.calibration[:5])
    assert headline is None
    assert section.status == "partial"
    assert not section.findings


def test_conformal_doubts_a_calibration_set_that_is_too_small():
    section, _, _ = concluded(ConformalProbe(), subject(12))
    assert section.doubts[0].name == "too few examples to calibrate"
    assert found(section, "coverage").estimate.value == 1.0


def test_disparity_finds_the_group_that_is_served_worse():
    rng = np.random.default_rng(0)
    groups = rng.choice(np.array(["old", "young"]), 2000)
    model = subject(2000, groups=groups)
    flipped = np.where(groups == "old", (model.test.labels + 1) % 3, model.test.labels)
    model = dataclasses.replace(model, test=dataclasses.replace(model.test, labels=flipped))
    section, evidence, headline = concluded(DisparityProbe(), model)
    correct = evidence["correct"]
    gap = correct[groups == "young"].mean() - correct[groups == "old"].mean()
    assert headline == found(section, "gap").estimate
    assert headline.value == pytest.approx(gap)
    assert headline.low > 0.2
    assert "old" in found(section, "worst").sentence
    assert {finding.name for finding in section.findings} == {"gap", "worst", "gap_under_attack", "worst_under_attack"}
    assert "the default was used" in section.method


def test_disparity_under_attack_counts_examples_that_stay_right():
    """The attack on logits = inputs with eps turns exactly the answers whose margin is below 2 eps."""
    model = subject(400, valid=(-20.0, 20.0))
    settings = Settings(seed=3, threat=Linf(0.3))
    section, evidence, _ = concluded(DisparityProbe(), model, settings)
    x, y = model.test.take(np.arange(400))
    others = np.where(np.eye(3, dtype=bool)[y], -np.inf, x).max(axis=1)
    margin = x[np.arange(400), y] - others
    assert np.array_equal(evidence["correct"], margin > 0)
    clear = np.abs(margin - 0.6) > 0.05
    assert np.array_equal(evidence["held"][clear], (margin > 0.6)[clear])
    assert found(section, "worst_under_attack").estimate.value < found(section, "worst").estimate.value


@pytest.mark.parametrize("right_first", [True, False])
def test_disparity_of_a_threat_without_gradient_steps_stays_clean(right_first):
    """Whatever the answer on the first example is: on one that is wrong an attack takes no step and cannot object."""
    model = subject(300)
    inputs, labels = model.test.take(np.arange(300))
    if (inputs.argmax(axis=1) == labels)[0] != right_first:
        labels = (labels + 1) % 3
        model = dataclasses.replace(model, test=dataclasses.replace(model.test, labels=labels))
    section, evidence, _ = concluded(DisparityProbe(), model, Settings(threat=Translation(1)))
    assert "held" not in evidence.columns
    assert "does not cover this threat" in section.method


def test_classes_that_are_served_alike_have_no_worst_one():
    model = subject(300)
    right = dataclasses.replace(model.test, labels=model.test.take(np.arange(300))[0].argmax(axis=1))
    model = dataclasses.replace(model, test=right)
    for probe in (AccuracyProbe(), DisparityProbe()):
        section, _, _ = concluded(probe, model)
        assert "every class" in section.findings[1 if probe.name == "accuracy" else 0].sentence
        assert "worst on" not in section.answer


def test_disparity_without_gradients_stays_clean_and_says_why():
    model = subject(300, access=Access.SCORES)
    section, evidence, _ = concluded(DisparityProbe(), model, Settings(threat=Linf(0.3)))
    assert "held" not in evidence.columns
    assert "gives no gradients" in section.method


def test_disparity_of_one_class_has_nothing_to_compare():
    model = subject(300)
    ants = np.flatnonzero(model.test.labels == 0)
    section, _, headline = concluded(DisparityProbe(), model, order=ants)
    assert headline is None
    assert section.status == "partial"


def test_worst_share_and_gap_cover_although_they_are_picked():
    """Ten groups with the same share 0.8: a naive interval of the worst one would nearly always miss it."""
    rng = np.random.default_rng(0)
    naive = worst = gap = 0
    for _ in range(200):
        held, groups = rng.random(400) < 0.8, rng.integers(0, 10, 400)
        found = shares(held, groups, 0.9)
        worst += found.worst_share.low <= 0.8 <= found.worst_share.high
        gap += found.gap.low <= 0.0 <= found.gap.high
        picked = held[groups == found.groups[found.worst]]
        naive += picked.mean() + 1.645 * picked.std() / np.sqrt(len(picked)) >= 0.8
    assert worst / 200 >= 0.9
    assert gap / 200 >= 0.9
    assert naive / 200 < 0.8


def test_the_engine_runs_all_four(tmp_path):
    run = audit(
        subject(600, valid=(-20.0, 20.0)),
        out=str(tmp_path / "run"),
        probes=["accuracy", "calibration", "conformal", "disparity"],
        settings=Settings(threat=Linf(0.2)),
    )
    assert not run.failed
    keys = {finding.key for finding in run.findings}
    assert {"accuracy.accuracy", "calibration.gap", "conformal.coverage", "disparity.gap_under_attack"} <= keys
