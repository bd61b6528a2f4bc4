"""Inputs in units the model was not trained on are noticed, and inputs in its own units are left in peace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.subject.checks import units_doubt
from holdfast.subject.data import ArrayInputs, Data
from holdfast.subject.embedded import embedded_subject, embedded_tabular
from holdfast.subject.loading import load_subject
from holdfast.subject.models.loaded import Normalise


@pytest.fixture(scope="module")
def digits():
    return embedded_subject()


class Affine(nn.Module):
    """The model behind a change of units, so that it wants inputs in others."""

    def __init__(self, model: nn.Module, scale, shift):
        super().__init__()
        self.model, self.scale, self.shift = model, scale, shift

    def forward(self, x):
        return self.model(x * self.scale + self.shift)


def with_data(subject, scale: float, offset: float = 0.0):
    inputs = ArrayInputs(subject.test.inputs.array, scale, offset)
    return replace(subject, test=Data(inputs, subject.test.labels), valid=None)


def test_own_units_are_not_doubted(digits):
    assert units_doubt(digits) is None
    assert units_doubt(embedded_tabular()) is None


def test_inputs_outside_the_valid_range_are_doubted(digits):
    doubt = units_doubt(replace(digits, valid=(0.0, 0.5)))
    assert doubt is not None
    assert "outside the valid range [0, 0.5]" in doubt.sentence


@pytest.mark.parametrize(
    ("scale", "shift", "words"),
    [
        # what the model does to its inputs first -> what the data would have to undergo
        (1 / 255, 0.0, "multiplied by 255"),
        (0.5, 0.5, "mapped from [0, 1] to [-1, 1]"),
    ],
)
def test_model_of_other_units_is_told_so(digits, scale, shift, words):
    model = Affine(nn.Sequential(Sharp(), digits.model), scale, shift)
    doubt = units_doubt(digits.with_model(model))
    assert doubt is not None
    assert words in doubt.sentence


class Sharp(nn.Module):
    """Ink or no ink: destroys pictures of another scale, keeps those of the right one readable."""

    def forward(self, x):
        return (x > 0.45).to(x.dtype)


def test_data_of_other_units_is_told_so(digits):
    model = nn.Sequential(Sharp(), digits.model)
    doubt = units_doubt(with_data(digits.with_model(model), 1 / 255))
    assert doubt is not None
    assert "multiplied by 255" in doubt.sentence


def test_table_fed_raw_to_a_model_of_standardised_features():
    subject = embedded_tabular()
    rows = subject.train.inputs.array
    mean, spread = torch.from_numpy(rows.mean(0)), torch.from_numpy(rows.std(0))
    standardised = Affine(subject.model, spread, mean)
    doubt = units_doubt(subject.with_model(standardised))
    assert doubt is not None
    assert "standardised feature by feature" in doubt.sentence


def test_few_examples_cannot_raise_the_doubt(digits):
    model = nn.Sequential(Sharp(), digits.model)
    assert units_doubt(with_data(digits.with_model(model), 1 / 255), examples=8) is None


def test_batch_dependence_is_doubted():
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    x = np.random.default_rng(0).random((30, 4), dtype=np.float32)
    subject = load_subject(Centred(), (x, np.arange(30) % 4))
    assert [doubt.name for doubt in subject.doubts] == ["batch dependence"]


def test_other_precision_is_made_float32_and_said():
    x = np.random.default_rng(0).random((30, 4), dtype=np.float32)
    subject = load_subject(nn.Linear(4, 4).double(), (x, np.arange(30) % 4))
    assert subject.logits(subject.tensor(x)).dtype == torch.float32
    assert "float64" in subject.doubts[0].sentence


def test_normalise_inside_the_model_keeps_pixels_outside():
    layer = Normalise([0.5, 0.4, 0.3], [0.1, 0.2, 0.5])
    x = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(x[:, k] - m) / s for k, (m, s) in enumerate([(0.5, 0.1), (0.4, 0.2), (0.3, 0.5)])], 1)
    torch.testing.assert_close(layer(x), expected)
