"""The weights probe on models whose answers under perturbed weights are known."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.audit.probe import Batch, Evidence, Settings
from holdfast.audit.probes.weights import NOISE, WeightsProbe
from holdfast.core.errors import UnsupportedError
from holdfast.core.seeds import torch_generator
from holdfast.subject.data import ArrayInputs, Data
from holdfast.subject.subject import Subject


def subject_of(weight, rows, labels):
    model = nn.Linear(rows.shape[1], len(weight))
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(weight))
        model.bias.zero_()
    data = Data(ArrayInputs(rows.astype(np.float32)), labels)
    return Subject(model.eval(), data, class_names=("a", "b"), modality="tabular")


def audit(subject, seed=0):
    probe, settings = WeightsProbe(), Settings(seed=seed)
    state = probe.prepare(subject, settings)
    rows = np.arange(len(subject.test))
    x, y = subject.test.take(rows)
    logits = subject.logits(subject.tensor(x))
    batch = Batch(rows, subject.tensor(x), torch.from_numpy(y), logits, torch_generator(0, "shard"))
    columns = probe.examine(subject, state, batch)
    clean = {"index": rows, "label": y, "prediction": logits.argmax(1).numpy(), "logits": logits.numpy()}
    evidence = Evidence(columns, clean)
    return columns, probe.headline(state, evidence, settings), probe.conclude(subject, state, evidence, settings)


def wide_margin(n=200):
    g = np.random.default_rng(0)
    labels = np.arange(n) % 2
    rows = g.normal(0, 0.1, (n, 8))
    rows[:, 0] += np.where(labels, 1.0, -1.0)
    return subject_of([[-1.0] + [0.01] * 7, [1.0] + [0.01] * 7], rows, labels)


def test_a_wide_margin_survives():
    columns, headline, section = audit(wide_margin())
    assert headline.value == 1
    assert columns["agrees"].all()
    assert columns["noise"].shape == (200, len(NOISE), 3)
    findings = {finding.name: finding.estimate.value for finding in section.findings}
    assert findings["int8_accuracy"] == findings["noise_accuracy"] == 1
    assert findings["int8_drop"] == 0


def test_a_distinction_finer_than_the_grid_is_lost():
    """The classes differ by a weight of 0.001 beside one of 1: below half a step (1/254) of the int8 grid."""
    labels = np.arange(100) % 2
    rows = np.zeros((100, 2))
    rows[:, 1] = np.where(labels, 1.0, -1.0)
    columns, headline, section = audit(subject_of([[1.0, -0.001], [1.0, 0.001]], rows, labels))
    assert headline.value == 0.5  # both rows round to (1, 0): a tie, always answered by class 0
    assert columns["agrees"].mean() == 0.5
    drop = next(finding for finding in section.findings if finding.name == "int8_drop").estimate
    assert drop.value == 0.5
    assert drop.low > 0


def test_accuracy_falls_with_noise_and_the_model_stays():
    g = np.random.default_rng(1)
    rows, weight = g.normal(size=(400, 20)), g.normal(size=(2, 20))
    labels = (rows @ weight.T).argmax(1)
    subject = subject_of(weight, rows, labels)
    before = subject.model.weight.clone()
    columns, _, section = audit(subject)
    by_level = columns["noise"].mean(axis=(0, 2))
    assert by_level[0] > 0.98
    assert by_level[0] > by_level[-1]
    assert columns["int4"].mean() <= columns["int8"].mean()
    assert torch.equal(subject.model.weight, before)
    curve = section.exhibits[0]
    np.testing.assert_allclose(curve.series[0].y[1:], by_level)
    again = audit(subject)[0]
    assert all((columns[name] == again[name]).all() for name in columns)
    assert (columns["noise"] != audit(subject, seed=1)[0]["noise"]).any()


def test_a_model_without_weights_is_refused():
    subject = wide_margin()
    with pytest.raises(UnsupportedError, match="nothing to perturb"):
        WeightsProbe().prepare(subject.with_model(nn.BatchNorm1d(2).eval()), Settings())
