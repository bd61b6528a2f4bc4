"""The leakage probe finds planted duplicates, and what they do to the accuracy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.audit.engine import audit
from holdfast.core.exhibit import Gallery, Table
from holdfast.subject.data import ArrayInputs, Data
from holdfast.subject.embedded import embedded_subject
from holdfast.subject.subject import Subject


@pytest.fixture(scope="module")
def digits() -> Subject:
    return embedded_subject()


def leaky(subject: Subject) -> Subject:
    """40 exact and 20 shifted copies of training images in the test set; 5 test images stand in it twice."""
    x, y = subject.test.take(np.arange(len(subject.test)))
    train, labels = subject.train.take(np.arange(60))
    x[:40], x[40:60] = train[:40], np.roll(train[40:], 1, -1)
    y = y.copy()
    y[:60] = labels
    x[100:105] = x[200:205]
    return replace(subject, test=replace(subject.test, inputs=ArrayInputs(x), labels=y))


def test_planted_duplicates_are_counted_and_shown(digits, tmp_path):
    run = audit(leaky(digits), out=tmp_path, probes=["leakage"])
    examples = len(digits.test)
    assert run.finding("leakage.train_share").estimate.value == pytest.approx(60 / examples)
    assert run.finding("leakage.test_share").estimate.value == pytest.approx(10 / examples)
    galleries = [exhibit for exhibit in run.sections[0].exhibits if isinstance(exhibit, Gallery)]
    assert all(picture.png and picture.before_png for gallery in galleries for picture in gallery.pictures)
    # Train images are named by what they were copied from.
    assert "test example 4" in galleries[0].pictures[0].text
    table = next(exhibit for exhibit in run.sections[0].exhibits if isinstance(exhibit, Table))
    counts = {row[0]: row[1] for row in table.rows}
    assert counts["exact copy in the training data"] == 40
    assert counts["near-duplicate in the training data"] == 20


def test_clean_data_has_none(digits, tmp_path):
    run = audit(digits, out=tmp_path, probes=["leakage"])
    assert run.finding("leakage.train_share").estimate.value == 0
    assert run.sections[0].answer.startswith("None of the")


def test_without_training_data_the_test_set_is_searched_alone(digits, tmp_path):
    run = audit(replace(leaky(digits), train=None), out=tmp_path, probes=["leakage"])
    assert [finding.key for finding in run.findings] == ["leakage.test_share"]
    assert run.findings[0].estimate.value == pytest.approx(10 / len(digits.test))


class Memory(nn.Module):
    """Right on rows it has seen, and says class 0 to all others."""

    def __init__(self, rows: torch.Tensor, labels: torch.Tensor):
        super().__init__()
        self.rows, self.labels = rows, labels

    def forward(self, x):
        equal = (x[:, None] == self.rows).all(2)
        answer = torch.where(equal.any(1), self.labels[equal.float().argmax(1)], 0)
        return nn.functional.one_hot(answer, 4).float()


def test_accuracy_bought_by_memory_is_taken_off(tmp_path):
    rng = np.random.default_rng(0)
    train, labels = rng.normal(size=(600, 6)).astype(np.float32), rng.integers(0, 4, 600)
    test, answers = rng.normal(size=(400, 6)).astype(np.float32), rng.integers(0, 4, 400)
    test[:200], answers[:200] = train[:200], labels[:200]
    subject = Subject(
        model=Memory(torch.from_numpy(train), torch.from_numpy(labels)).eval(),
        test=Data(ArrayInputs(test), answers),
        train=Data(ArrayInputs(train), labels),
        class_names=tuple("abcd"),
        modality="tabular",
    )
    run = audit(subject, out=tmp_path, probes=["leakage"])
    guessing = float(np.mean(answers[200:] == 0))
    assert run.finding("leakage.accuracy_without").estimate.value == pytest.approx(guessing)
    gain = run.finding("leakage.accuracy_inflation").estimate
    assert gain.value == pytest.approx(0.5 * (1 - guessing))
    assert gain.low < gain.value < gain.high
    assert gain.low > 0


def test_coarse_rows_are_doubted(tmp_path):
    rng = np.random.default_rng(0)
    rows, labels = rng.integers(0, 3, (500, 3)).astype(np.float32), rng.integers(0, 2, 500)
    data = Data(ArrayInputs(rows), labels)
    subject = Subject(nn.Linear(3, 2).eval(), data, data, class_names=("a", "b"), modality="tabular")
    run = audit(subject, out=tmp_path, probes=["leakage"])
    assert "copies by coincidence" in {doubt.name for doubt in run.sections[0].doubts}
