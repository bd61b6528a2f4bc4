"""The check of `metamers`: its smoke run passes and its criteria can fail."""

import numpy as np
import pytest

from holdfast.papers.inputs import metamers
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = metamers.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert outcome.to_dict()["seeds"] == [0]


def by_side(fine, coarse, n=30):
    noise = np.random.default_rng(0).normal(0, 0.05, n)
    return {2: fine + noise, 4: fine + noise, 7: coarse + noise, 14: coarse + noise}


@pytest.mark.parametrize(
    ("standard", "robust", "passed"),
    [
        ((9, 9), (4, 4), (True, True, True)),
        ((9, 5), (4, 4), (True, False, True)),
        ((9, 9), (9, 6), (False, True, False)),
        ((4, 4), (9, 9), (False, False, False)),
    ],
)
def test_criteria_follow_the_numbers(standard, robust, passed):
    squares = {"standard": by_side(*standard), "robust": by_side(*robust), "unrelated": by_side(4, 4)}
    assert tuple(criterion.passed for criterion in metamers._told_apart(squares)) == passed
