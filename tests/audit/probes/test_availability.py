"""The availability probe on a model that was taught to fall silent, on a clean one, and where nothing is certified."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.audit.probe import Batch, Evidence, Settings
from holdfast.audit.probes import chosen_names
from holdfast.audit.probes.availability import AvailabilityProbe
from holdfast.core.errors import UnsupportedError
from holdfast.core.finding import Section
from holdfast.core.seeds import torch_generator
from holdfast.subject.data import ArrayInputs, Data
from holdfast.subject.subject import Subject
from holdfast.threats import Corruption, Linf

SIDE, EXAMPLES = 14, 120


class Silenced(nn.Module):
    """Class 1 where the upper half is brighter; bright pixels in the lower right corner take the margin away.

    The lead |a| + |a| of a = mean(upper) - 0.45 is damped by relu(1 - weight * corner): zero with a bright corner.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        lead = 2.5 * (x[:, 0, : SIDE // 2].flatten(1).mean(1) - 0.45)
        corner = x[:, 0, -2:, -2:].flatten(1).mean(1)
        allowed = torch.relu(1 - self.weight * corner)
        score = torch.relu(lead - 1 + allowed) - torch.relu(-lead - 1 + allowed)
        return torch.stack([-score, score], 1)


def subject(weight: float) -> Subject:
    def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        y = generator.integers(0, 2, count)
        x = generator.uniform(0.0, 0.2, (count, 1, SIDE, SIDE))
        x[:, :, -3:, -3:] /= 10  # where images vary least
        x[:, :, : SIDE // 2] += 0.7 * y[:, None, None, None]
        return x.astype(np.float32), y.astype(np.int64)

    (x, y), (train, labels) = images(EXAMPLES, 0), images(300, 1)
    data = Data(ArrayInputs(x), y)
    return Subject(
        Silenced(weight).eval(),
        data,
        train=Data(ArrayInputs(train), labels),
        class_names=("dark", "bright"),
        valid=(0.0, 1.0),
        modality="image",
    )


def drive(asked: Subject, settings: Settings) -> tuple[Evidence, Section]:
    probe = AvailabilityProbe()
    state = probe.prepare(asked, settings)
    index = np.arange(len(asked.test))
    inputs, labels = asked.test.take(index)
    x, y = asked.tensor(inputs), torch.from_numpy(labels)
    logits = asked.logits(x)
    rows = probe.examine(asked, state, Batch(index, x, y, logits, torch_generator(0, "examine")))
    clean = {"index": index, "label": labels, "prediction": logits.argmax(1).numpy(), "logits": logits.numpy()}
    evidence = Evidence(dict(rows), clean)
    return evidence, probe.conclude(asked, state, evidence, settings)


def test_a_silenced_model_is_found_out_and_an_innocent_one_is_not():
    guilty, section = drive(subject(1.0), Settings(threat=Linf(0.02)))
    assert guilty["clean"].mean() < 0.1
    assert guilty["scattered"].mean() < 0.2
    assert guilty["patched"].mean() > 0.9
    findings = {finding.name: finding for finding in section.findings}
    assert findings["abstained_with_patch"].headline
    assert findings["rise"].estimate.low > 0.5
    assert Section.from_dict(section.to_dict()) == section
    innocent, section = drive(subject(0.0), Settings(threat=Linf(0.02)))
    assert innocent["patched"].mean() < 0.1
    assert {finding.name: finding for finding in section.findings}["rise"].estimate.high < 0.3


def test_a_model_that_certifies_nothing_is_silent_without_any_patch():
    class Tied(nn.Module):
        """Both classes always score the same, so no margin can be proven."""

        def forward(self, x: Tensor) -> Tensor:
            brightness = x.flatten(1).sum(1)
            return torch.stack([brightness, brightness], 1)

    asked = replace(subject(0.0), model=Tied().eval())
    evidence, section = drive(asked, Settings(threat=Linf(0.9)))
    assert evidence["patched"].all()
    assert "without any patch" in section.answer


def test_what_cannot_be_bounded_is_refused_and_the_probe_is_known():
    with pytest.raises(UnsupportedError, match="Corruption"):
        AvailabilityProbe().prepare(subject(0.0), Settings(threat=Corruption("gaussian_noise", 3)))
    assert "availability" in chosen_names()
