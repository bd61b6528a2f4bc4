"""The check of `rrcm`: its smoke run passes, its views and splits are what they say, and its criteria can fail."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.papers.inputs import rrcm
from holdfast.papers.inputs.rrcm import RANDOM, RRCM, SEMANTIC, Run
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = rrcm.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert outcome.to_dict()["seeds"] == [0]


def test_views_are_moved_by_at_most_a_pixel_or_mirrored():
    image = torch.zeros((1, 7, 7))
    image[0, 3, 2] = 1.0
    views = rrcm._moved(image.flatten(1).expand(400, 49), torch.Generator().manual_seed(0)).reshape(-1, 7, 7)
    seen = {tuple(place) for place in views.nonzero()[:, 1:].tolist()}
    assert seen == {(row, column) for row in (2, 3, 4) for column in (1, 2, 3, 4, 5)}
    assert torch.equal(views.sum((1, 2)), torch.ones(400))


def test_no_image_is_in_two_parts_of_a_split():
    size = rrcm.Size(unlabelled=50, labelled=20, tested=30)
    names = torch.arange(100.0)[:, None]
    split = rrcm._split((names, torch.arange(100)), 0, size)
    parts = [set(part[:, 0].tolist()) for part in (split.unlabelled, split.x, split.test)]
    assert [len(part) for part in parts] == [50, 20, 30]
    assert len(set.union(*parts)) == 100
    assert torch.equal(split.x[:, 0], split.y.float())


@pytest.mark.parametrize(("gain", "passed"), [(0.2, True), (0.0, False), (-0.2, False)])
def test_the_ordering_is_judged_by_paired_intervals(gain, passed):
    base = np.random.default_rng(0).uniform(0, 1, 100)
    noise = np.random.default_rng(1).normal(0, 0.1, 100)
    radius = {(RANDOM, 0.5): base, (SEMANTIC, 0.5): base + 0.2 + noise, (RRCM, 0.5): base + 0.2 + gain - noise}
    assert rrcm._ordering([Run(nn.Identity(), np.zeros(10), radius)], 0.5).passed is passed


def test_a_term_that_rises_for_one_seed_fails():
    falling, rising = (Run(nn.Identity(), loss) for loss in (np.linspace(2, 1, 50), np.linspace(1, 2, 50)))
    assert rrcm._falls([falling]).passed
    assert not rrcm._falls([falling, rising]).passed
