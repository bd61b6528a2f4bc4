"""The smoke check of `availability-attack` runs: the adversary's training works even when it is short."""

import pytest

from holdfast.papers.datasets import data_folder
from holdfast.papers.inputs import availability_attack as entry
from holdfast.papers.paper import Scale

pytestmark = pytest.mark.skipif(data_folder() is None, reason="needs MNIST")


def test_smoke():
    outcome = entry.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert outcome.criteria[0].numbers["clean"].value < 0.9
