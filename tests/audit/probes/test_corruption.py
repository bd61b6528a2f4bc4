"""The corruption probe on subjects whose answers are known."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.audit.probe import Batch, Evidence, Settings
from holdfast.audit.probes.corruption import CorruptionProbe
from holdfast.core.errors import UnsupportedError
from holdfast.core.exhibit import Gallery, Heatmap
from holdfast.core.seeds import torch_generator
from holdfast.inputs.corruption import FAMILIES, tabular
from holdfast.subject.data import ArrayInputs, Data
from holdfast.subject.subject import Subject


class Brighter(nn.Module):
    """Class 1 when the mean is above `threshold`."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        score = x.flatten(1).mean(1) - self.threshold
        return torch.stack([-score, score], 1)


def images(valid=(0.0, 1.0), n=40, size=9):
    g = np.random.default_rng(0)
    labels = np.arange(n) % 2
    x = (np.where(labels, 0.75, 0.25)[:, None, None, None] + g.uniform(-0.1, 0.1, (n, 1, size, size))).astype(
        np.float32
    )
    low, high = valid or (0.0, 1.0)
    x = (low + x * (high - low)).astype(np.float32)
    return Subject(
        Brighter(low + 0.5 * (high - low)).eval(),
        Data(ArrayInputs(x), labels),
        class_names=("dark", "bright"),
        valid=valid,
        modality="image",
    )


def examine(subject, state, probe, rows, seed=0):
    x, y = subject.test.take(rows)
    x = subject.tensor(x)
    batch = Batch(rows, x, torch.from_numpy(y), subject.logits(x), torch_generator(seed, "shard"))
    return probe.examine(subject, state, batch)


def audit(subject, settings=None):
    probe, settings = CorruptionProbe(), settings or Settings()
    state = probe.prepare(subject, settings)
    rows = np.arange(len(subject.test))
    columns = examine(subject, state, probe, rows)
    logits = subject.logits(subject.tensor(subject.test.inputs.take(rows))).numpy()
    clean = {"index": rows, "label": subject.test.labels, "prediction": logits.argmax(1), "logits": logits}
    evidence = Evidence(columns, clean)
    return columns, probe.headline(state, evidence, settings), probe.conclude(subject, state, evidence, settings)


def test_a_model_that_looks_at_brightness_falls_to_what_changes_brightness():
    columns, headline, section = audit(images())
    by_family = dict(zip(FAMILIES, columns["correct"].mean(axis=(0, 2)), strict=True))
    assert columns["correct"].shape == (40, 15, 5)
    for name in ("gaussian_noise", "defocus_blur", "contrast", "jpeg_compression", "pixelate", "motion_blur"):
        assert by_family[name] == 1
    assert by_family["fog"] < 1
    assert by_family["brightness"] < 1
    findings = {finding.name: finding for finding in section.findings}
    assert findings["accuracy"].estimate == headline
    assert headline.value == pytest.approx(columns["correct"].mean())
    assert findings["worst_family"].estimate.value == pytest.approx(min(by_family.values()))
    assert findings["drop"].estimate.value == pytest.approx(1 - columns["correct"].mean())
    heat = next(exhibit for exhibit in section.exhibits if isinstance(exhibit, Heatmap))
    means = [np.mean(row) for row in heat.values]
    assert means == sorted(means)
    gallery = next(exhibit for exhibit in section.exhibits if isinstance(exhibit, Gallery))
    assert gallery.pictures
    assert all(shown.png != shown.before_png and "taken for" in shown.text for shown in gallery.pictures)
    assert section.doubts == ()


def test_the_range_of_the_inputs_makes_no_difference():
    first, second = (audit(images(valid))[0]["correct"] for valid in ((0.0, 1.0), (-1.0, 3.0)))
    assert (first == second).mean() > 0.99


def test_the_same_generator_gives_the_same_evidence():
    subject, probe = images(), CorruptionProbe()
    state = probe.prepare(subject, Settings())
    rows = np.arange(6)
    first, second = (examine(subject, state, probe, rows, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first["correct"], second["correct"])
    np.testing.assert_array_equal(first["seed"], second["seed"])
    assert (first["seed"] != examine(subject, state, probe, rows, seed=5)["seed"]).all()


def test_doubts_when_mild_corruption_breaks_it_and_when_the_range_was_guessed():
    subject = images(valid=None)

    _, _, section = audit(subject)
    assert [doubt.name for doubt in section.doubts] == ["range of pixels was guessed"]
    labels = subject.logits(subject.tensor(subject.test.inputs.array)).argmax(1).numpy()
    known = {x.tobytes() for x in subject.test.inputs.array}

    class Rote(nn.Module):
        def forward(self, x):
            learnt = torch.tensor([row.numpy().tobytes() in known for row in x])
            right = torch.where(learnt, x.flatten(1).mean(1) > 0.5, x.flatten(1).mean(1) <= 0.5)
            return torch.stack([(~right).float(), right.float()], 1)

    rote = Subject(
        Rote().eval(), Data(subject.test.inputs, labels), class_names=("a", "b"), valid=(0.0, 1.0), modality="image"
    )
    assert "mild corruption breaks it" in [doubt.name for doubt in audit(rote)[2].doubts]


def test_rows_get_the_families_of_tables():
    g = np.random.default_rng(0)
    rows = g.normal(3, 1, (60, 4)).astype(np.float32)
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [1.0, 0, 0, 0]]))
        model.bias.copy_(torch.tensor([3.0, 0.0]))
    labels = (rows[:, 0] > 3).astype(np.int64)
    subject = Subject(model.eval(), Data(ArrayInputs(rows), labels), class_names=("low", "high"), modality="tabular")
    columns, _, section = audit(subject)
    by_family = dict(zip(tabular.FAMILIES, columns["correct"].mean(axis=(0, 2)), strict=True))
    assert columns["correct"].shape == (60, 7, 5)
    assert by_family["unit_slip"] > by_family["swapped_columns"]  # one feature in four against pairs of all
    assert by_family["rounding"] < 1
    gallery = next(exhibit for exhibit in section.exhibits if isinstance(exhibit, Gallery))
    assert all(shown.fields for shown in gallery.pictures)


def test_images_too_small_are_refused():
    with pytest.raises(UnsupportedError, match="8x8"):
        CorruptionProbe().prepare(images(size=7), Settings())
