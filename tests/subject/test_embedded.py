"""The subjects that need no file: good enough to audit, the same every time, and quiet about it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast.subject.embedded import embedded_subject, embedded_tabular
from holdfast.subject.subject import Access, Subject


def accuracy(subject: Subject) -> float:
    x, y = subject.test.take(np.arange(len(subject.test)))
    return float((subject.logits(subject.tensor(x)).argmax(1).numpy() == y).mean())


@pytest.fixture(scope="module")
def digits() -> Subject:
    return embedded_subject()


def test_digits_network_is_accurate(digits):
    assert accuracy(digits) >= 0.97


def test_digits_subject_is_complete(digits):
    assert digits.train is not None
    assert digits.test.shape == (1, 8, 8)
    assert (len(digits.train), len(digits.test)) == (1350, 447)
    assert digits.class_names == tuple("0123456789")
    assert digits.valid == (0.0, 1.0)
    assert digits.access is Access.GRADIENTS
    assert not digits.model.training
    inputs = digits.test.inputs.take(np.arange(447))
    assert inputs.min() == 0.0
    assert inputs.max() == 1.0


def test_same_seed_gives_the_same_bits_on_any_number_of_threads(digits):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = embedded_subject()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(state, torch.get_rng_state())
    for mine, theirs in zip(digits.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert np.array_equal(digits.test.labels, again.test.labels)


def test_train_and_test_share_no_example(digits):
    train = {row.tobytes() for row in digits.train.inputs.take(np.arange(1350))}
    test = [row.tobytes() for row in digits.test.inputs.take(np.arange(447))]
    assert sum(row in train for row in test) == 0


def test_tabular_is_the_logistic_regression_it_says():
    subject = embedded_tabular()
    assert accuracy(subject) >= 0.95
    assert subject.modality == "tabular"
    assert len(subject.test.feature_names) == 30
    logits = subject.logits(torch.zeros(1, 30))
    assert logits.shape == (1, 2)
    assert logits[0, 0] == 0.0
