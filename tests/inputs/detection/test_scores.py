"""Scores of logits: identities, invariances, and the precision that float32 loses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from holdfast.core.errors import InputError
from holdfast.inputs.detection.scores import LOGIT_SCORES, energy, margin, max_logit, max_softmax, negative_entropy

logit_arrays = arrays(np.float64, (6, 4), elements=st.floats(-50, 50))


@given(logit_arrays)
def test_energy_lies_between_the_largest_logit_and_log_classes_above_it(z):
    assert np.all(energy(z) >= max_logit(z) - 1e-9)
    assert np.all(energy(z) <= max_logit(z) + np.log(4) + 1e-9)


@given(logit_arrays)
def test_max_softmax_is_max_logit_minus_energy(z):
    np.testing.assert_allclose(max_softmax(z), max_logit(z) - energy(z), atol=1e-9)


@given(logit_arrays, st.floats(-20, 20))
def test_only_energy_and_max_logit_feel_a_common_shift(z, shift):
    for score in (max_softmax, negative_entropy, margin):
        np.testing.assert_allclose(score(z + shift), score(z), atol=1e-8)
    for score in (energy, max_logit):
        np.testing.assert_allclose(score(z + shift), score(z) + shift, atol=1e-8)


def test_equal_logits_have_the_entropy_of_a_fair_die():
    np.testing.assert_allclose(negative_entropy(np.zeros((1, 6))), -np.log(6))
    np.testing.assert_allclose(max_softmax(np.zeros((1, 6))), -np.log(6))


def test_confident_float32_logits_keep_their_order():
    z = np.array([[40.0, 0.0], [60.0, 0.0]], dtype=np.float32)
    assert np.diff(max_softmax(z)) > 0
    assert torch.softmax(torch.from_numpy(z), 1).max(1).values.diff() == 0  # what float32 probabilities would say


@pytest.mark.parametrize("name", LOGIT_SCORES)
def test_agrees_with_pytorch_ood(name):
    detectors = pytest.importorskip("pytorch_ood.detector", reason="pytorch-ood is a bench peer")
    peers = {
        "energy": detectors.EnergyBased.score,
        "max logit": detectors.MaxLogit.score,
        "negative entropy": detectors.Entropy.score,
    }
    z = torch.randn(50, 7, generator=torch.Generator().manual_seed(1)) * 3
    if name == "max softmax":
        theirs = detectors.MaxSoftmax.score(z)
        np.testing.assert_allclose(np.exp(LOGIT_SCORES[name](z)), -theirs.numpy(), rtol=1e-5)
    elif name in peers:
        np.testing.assert_allclose(LOGIT_SCORES[name](z), -peers[name](z).numpy(), rtol=1e-4, atol=1e-5)
    else:
        pytest.skip("pytorch-ood has no such score")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: energy(np.zeros(3)), "shape"),
        (lambda: energy(np.array([[np.nan, 1.0]])), "NaN"),
        (lambda: energy(np.zeros((1, 2)), temperature=0.0), "positive"),
        (lambda: margin(np.zeros((2, 1))), "two classes"),
    ],
)
def test_bad_logits_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
