"""The check of `patch-vit`: its smoke run passes and its criteria can fail."""

import numpy as np
import pytest
import torch

from holdfast.papers.inputs import patch_vit
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = patch_vit.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert outcome.to_dict()["seeds"] == [0]


def rates(share, n=200):
    return (np.arange(n) < share * n).astype(np.float64)


RIGHT = {"ViT": np.ones(200, bool), "CNN": np.ones(200, bool)}


@pytest.mark.parametrize(("vit", "passed"), [(0.4, True), (0.2, False), (0.1, False)])
def test_the_transformer_must_be_fooled_more_than_the_cnn(vit, passed):
    assert patch_vit._vit_against_cnn({"ViT": rates(vit), "CNN": rates(0.2)}, RIGHT).passed is passed


@pytest.mark.parametrize(("vit", "passed"), [(0.0, True), (0.1, True), (0.13, False)])
def test_natural_patches_must_not_fool_it_more(vit, passed):
    assert patch_vit._natural_patches({"ViT": rates(vit), "CNN": rates(0.1)}, RIGHT).passed is passed


@pytest.mark.parametrize(("off", "passed"), [(0.1, True), (0.19, True), (0.22, False)])
def test_leaving_the_grid_must_cost_a_third(off, passed):
    found = patch_vit._off_grid(rates(0.3), {"ViT": rates(off), "CNN": rates(0.2)}, RIGHT)
    assert found.passed is passed


def test_rates_count_only_what_was_right():
    right = np.arange(200) < 100
    assert patch_vit._rate(rates(0.25), right).value == pytest.approx(0.5)
    assert patch_vit._share(right).value == 0.5


def test_the_same_places_serve_every_model():
    images = patch_vit.Images(torch.zeros(30, 1, 28, 28), torch.zeros(30, dtype=torch.int64), (0, 1), 2)
    assert torch.equal(images.places(1), images.places(1))
    assert not torch.equal(images.places(0), images.places(1))
    assert torch.equal(images.places(0, 2), images.places(0) + 2)
