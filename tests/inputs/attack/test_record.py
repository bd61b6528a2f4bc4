"""A resumed evaluation ends as one that was never interrupted, and refuses to mix with another."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.core.errors import InputError, ResumeError
from holdfast.inputs.attack.ensemble import StandardEnsemble
from holdfast.inputs.attack.record import evaluate
from holdfast.threats import Linf

spec = importlib.util.spec_from_file_location("attack_models", Path(__file__).with_name("models.py"))
models = importlib.util.module_from_spec(spec)
sys.modules["attack_models"] = models
spec.loader.exec_module(models)

ENSEMBLE = StandardEnsemble(Linf(0.05), version="cheap")


class Failing(torch.nn.Module):
    """Stops after so many passes, as a machine does."""

    def __init__(self, inner, passes):
        super().__init__()
        self.inner, self.left = inner, passes

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.inner(x)


def same(a, b):
    assert np.array_equal(a.broken_by, b.broken_by)
    assert np.array_equal(a.queries, b.queries)
    assert np.array_equal(a.margin, b.margin)
    assert torch.equal(a.x_adv, b.x_adv)


@pytest.mark.parametrize("passes", [60, 600])
def test_killed_and_resumed_is_as_good_as_never_killed(tmp_path, passes):
    model, x, y = models.trained()
    x, y = x[:24], y[:24]
    whole = evaluate(ENSEMBLE, model, x, y, shard=10)
    counting = Failing(model, passes).eval()
    with pytest.raises(KeyboardInterrupt):
        evaluate(ENSEMBLE, counting, x, y, shard=10, folder=str(tmp_path))
    same(evaluate(ENSEMBLE, model, x, y, shard=10, folder=str(tmp_path)), whole)


def test_a_finished_evaluation_is_read_without_another_attack(tmp_path):
    model, x, y = models.trained()
    x, y = x[:20], y[:20]
    whole = evaluate(ENSEMBLE, model, x, y, folder=str(tmp_path))
    same(evaluate(ENSEMBLE, Failing(model, 1).eval(), x, y, folder=str(tmp_path)), whole)


def test_the_record_adds_up():
    model, x, y = models.trained()
    x, y = x[:40], y[:40]
    record = evaluate(ENSEMBLE, model, x, y, shard=15, seed=1)
    right = model(x).argmax(1) == y
    held = right & (model(record.x_adv).argmax(1) == y)
    assert record.accuracy().value == pytest.approx(float(right.double().mean()))
    assert record.robust_accuracy().value == pytest.approx(float(held.double().mean()))
    left = record.left_after()
    assert list(left) == list(ENSEMBLE.names)
    values = [record.accuracy().value, *(estimate.value for estimate in left.values())]
    assert values == sorted(values, reverse=True)
    assert values[-1] == record.robust_accuracy().value
    assert record.robust_accuracy().low < values[-1] < record.robust_accuracy().high
    assert Linf(0.05).contains(record.x_adv, x, (0, 1)).all()


def test_another_evaluation_is_not_mixed_in(tmp_path):
    model, x, y = models.trained()
    x, y = x[:20], y[:20]
    evaluate(ENSEMBLE, model, x, y, folder=str(tmp_path))
    for changed in ({"seed": 1}, {"shard": 7}):
        with pytest.raises(ResumeError, match=next(iter(changed))):
            evaluate(ENSEMBLE, model, x, y, folder=str(tmp_path), **changed)
    with pytest.raises(ResumeError, match="examples"):
        evaluate(ENSEMBLE, model, x[:19], y[:19], folder=str(tmp_path))
    with pytest.raises(ResumeError, match="threat"):
        evaluate(StandardEnsemble(Linf(0.06), "cheap"), model, x, y, folder=str(tmp_path))


def test_no_examples_and_no_shard():
    model, x, y = models.trained()
    with pytest.raises(InputError, match="at least one example"):
        evaluate(ENSEMBLE, model, x[:0], y[:0])
    with pytest.raises(InputError, match="at least one example"):
        evaluate(ENSEMBLE, model, x, y, shard=0)
