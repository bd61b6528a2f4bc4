"""The smoke checks of `crop-selection` and `logit-gap-scaling` run and hold."""

import pytest

from holdfast.papers.inputs import crop_selection, logit_gap_scaling
from holdfast.papers.paper import Scale


@pytest.mark.parametrize("entry", [crop_selection, logit_gap_scaling])
def test_smoke(entry):
    outcome = entry.check(Scale.SMOKE)
    assert outcome.criteria
    assert outcome.holds, [criterion.statement for criterion in outcome.criteria if not criterion.passed]
    assert outcome.to_dict()["seeds"] == [0]
