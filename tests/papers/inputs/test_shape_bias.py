"""The check of `shape-bias`: its smoke run passes and its criteria can fail."""

import torch

from holdfast.papers.bench_models import load
from holdfast.papers.inputs import shape_bias
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = shape_bias.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert outcome.to_dict()["seeds"] == [0]


def test_networks_swapped_or_alike_fail():
    standard, robust = load("cnn"), load("cnn_linf")
    pictures = shape_bias.Pictures.first(60)
    for pair in ((robust, standard), (standard, standard)):
        assert not shape_bias._kernels([pair])[0].passed
        assert not shape_bias._noise([pair], pictures)[0].passed


def test_concepts_are_simple_ones_first_and_objects_lie_on_their_masks():
    pictures = shape_bias.Pictures.first(20)
    concepts, simple = shape_bias._concepts(pictures)
    assert concepts.shape == (20, simple + 10, 28, 28)
    assert torch.equal(concepts[:, simple:].any(1, keepdim=True), pictures.masks)
    brightness = concepts[:, :3].sum(1)
    assert int(brightness.max()) == 1
