"""Doubts about a whole audit appear when they should, and only then."""

from dataclasses import replace

import numpy as np
import torch
from toy_audit import toy_subject

from holdfast.audit.doubts import general_doubts
from holdfast.core.finding import Doubt


def clean(subject):
    x, labels = subject.test.take(np.arange(len(subject.test)))
    logits = subject.logits(torch.from_numpy(x)).numpy()
    return {"index": np.arange(len(labels)), "label": labels, "prediction": logits.argmax(1), "logits": logits}


def names(subject):
    return [doubt.name for doubt in general_doubts(subject, clean(subject))]


def test_a_good_model_on_enough_data_raises_none():
    assert names(toy_subject()) == []


def test_few_examples_are_said_to_be_few():
    assert names(toy_subject(examples=50)) == ["few examples"]


def test_a_model_that_always_gives_one_answer_is_no_better_than_guessing():
    assert "no better than guessing" in names(toy_subject(shift=np.array([-100.0, 100.0])))


def test_a_class_nobody_showed_is_named():
    subject = replace(toy_subject(), class_names=("left", "right", "above"))
    (doubt,) = general_doubts(subject, clean(subject))
    assert "above" in doubt.sentence


def test_what_the_loader_noted_comes_first():
    noted = Doubt("gradients lost", "The graph could not be read as a network.")
    assert (
        general_doubts(replace(toy_subject(examples=50), doubts=(noted,)), clean(toy_subject(examples=50)))[0] == noted
    )
