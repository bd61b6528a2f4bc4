"""The labels probe finds planted label errors and says when it should not be believed."""

from dataclasses import replace

import numpy as np
import pytest

from holdfast.audit.engine import audit
from holdfast.core.exhibit import Gallery
from holdfast.subject.data import ArrayInputs
from holdfast.subject.embedded import embedded_subject, embedded_tabular
from holdfast.subject.subject import Subject

FLIPPED = np.arange(100, 130)


@pytest.fixture(scope="module")
def digits() -> Subject:
    return embedded_subject()


def with_flipped_labels(subject: Subject) -> Subject:
    labels = subject.test.labels.copy()
    labels[FLIPPED] = (labels[FLIPPED] + 3) % 10
    return replace(subject, test=replace(subject.test, labels=labels))


def test_planted_errors_are_found_counted_and_shown(digits, tmp_path):
    subject = with_flipped_labels(digits)
    run = audit(subject, out=tmp_path, probes=["labels"])
    share = run.finding("labels.wrong_share").estimate
    planted = len(FLIPPED) / len(subject.test)
    assert share.value == pytest.approx(planted, abs=0.01)
    assert share.low == share.value == share.high  # all labels of this test set were looked at
    part = audit(subject, out=tmp_path / "part", probes=["labels"], limit=200).finding("labels.wrong_share").estimate
    assert part.low < share.value < part.high
    gallery = next(e for e in run.sections[0].exhibits if isinstance(e, Gallery) and "test" in e.title)
    shown = {int(picture.text.split()[-1]) for picture in gallery.pictures[:15]}
    assert shown <= set(FLIPPED.tolist())
    assert all(picture.png for picture in gallery.pictures)
    assert gallery.pictures[0].label.startswith("given: ")


def test_good_labels_are_left_alone(digits, tmp_path):
    run = audit(digits, out=tmp_path, probes=["labels"])
    assert run.finding("labels.wrong_share").estimate.value < 0.01
    assert run.finding("labels.train_wrong_share").estimate.value < 0.01


def test_wrong_training_labels_are_found_too(digits, tmp_path):
    labels = digits.train.labels.copy()
    labels[:100] = (labels[:100] + 1) % 10
    run = audit(replace(digits, train=replace(digits.train, labels=labels)), out=tmp_path, probes=["labels"])
    assert run.finding("labels.train_wrong_share").estimate.value == pytest.approx(100 / 1350, abs=0.02)


def test_a_model_that_knows_nothing_is_doubted(digits, tmp_path):
    scrambled = np.random.default_rng(0).permutation(digits.test.labels)
    run = audit(replace(digits, test=replace(digits.test, labels=scrambled)), out=tmp_path, probes=["labels"])
    assert "model too inaccurate" in {doubt.name for doubt in run.sections[0].doubts}


def test_rows_are_shown_as_values(tmp_path):
    subject = embedded_tabular()
    labels = subject.test.labels.copy()
    labels[:10] = 1 - labels[:10]
    run = audit(
        replace(subject, test=replace(subject.test, labels=labels), train=None), out=tmp_path, probes=["labels"]
    )
    assert run.sections[0].status == "complete", run.sections[0].answer
    gallery = next(e for e in run.sections[0].exhibits if isinstance(e, Gallery))
    assert gallery.pictures[0].fields[0][0].startswith("mean ")
    assert len(run.findings) == 1


def test_the_share_does_not_depend_on_the_order_of_the_data(digits, tmp_path):
    subject = with_flipped_labels(digits)
    turn = np.random.default_rng(0).permutation(len(subject.test))
    inputs, labels = subject.test.take(turn)
    turned = replace(subject, test=replace(subject.test, inputs=ArrayInputs(inputs), labels=labels))
    first, second = (
        audit(s, out=tmp_path / name, probes=["labels"]).finding("labels.wrong_share").estimate.value
        for name, s in (("a", subject), ("b", turned))
    )
    assert first == second
