"""The smoke check of `adaptive-smoothing` runs, and its attack is one that finds what PGD alone leaves."""

import pytest
import torch

from holdfast.papers.bench_models.networks import initialise
from holdfast.papers.datasets import data_folder
from holdfast.papers.inputs import adaptive_smoothing as entry
from holdfast.papers.paper import Scale

pytestmark = pytest.mark.skipif(data_folder() is None, reason="needs Fashion-MNIST")


def test_smoke():
    outcome = entry.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert outcome.to_dict()["seeds"] == [0]


def test_what_survives_is_right_and_an_untrained_model_keeps_nothing():
    x, y = entry._images("test", 40)
    model = entry._network().eval()
    initialise(model, torch.Generator().manual_seed(0))
    survived = entry._surviving(model, x, y, seed=0)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    assert not bool((survived & ~right).any())
    assert int(survived.sum()) <= int(right.sum()) // 2
