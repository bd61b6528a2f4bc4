"""Scores of logits: identities, invariances, and the precision that float32 loses."""

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from holdfast.core.errors import InputError
from holdfast.inputs.detection.scores import (
    energy,
    generalised_entropy,
    margin,
    max_logit,
    max_softmax,
    negative_entropy,
)

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


def test_the_energy_is_the_logsumexp_at_any_temperature():
    z = np.random.default_rng(3).normal(0, 300, (40, 6))
    for temperature in (0.1, 1.0, 50.0):
        wanted = temperature * scipy.special.logsumexp(z / temperature, axis=1)
        np.testing.assert_allclose(energy(z, temperature), wanted, rtol=1e-13)


def test_infinite_logits_are_scored_and_nan_is_not():
    z = np.array([[np.inf, 0.0], [-np.inf, 1.0]])
    assert energy(z).tolist() == [np.inf, 1.0]
    with pytest.raises(InputError, match="NaN in 1 rows"):
        energy(np.array([[np.nan, 0.0], [1.0, 2.0]]))


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


def test_generalised_entropy_is_its_sum_and_does_not_saturate():
    z = np.random.default_rng(4).normal(0, 2, (30, 6))
    p = scipy.special.softmax(z, axis=1)
    terms = p**0.3 * (1 - p) ** 0.3
    np.testing.assert_allclose(generalised_entropy(z, gamma=0.3), -terms.sum(1), rtol=1e-12)
    largest = np.take_along_axis(terms, np.argsort(-p, axis=1)[:, :2], axis=1).sum(1)
    np.testing.assert_allclose(generalised_entropy(z, gamma=0.3, top=2), -largest, rtol=1e-12)
    assert np.diff(generalised_entropy(np.array([[60.0, 0.0], [90.0, 0.0]]))) > 0
    assert generalised_entropy(np.zeros((1, 1))) == 0
    for wrong in ({"gamma": 0.0}, {"gamma": 1.0}, {"top": 0}):
        with pytest.raises(InputError, match="gamma"):
            generalised_entropy(z, **wrong)
