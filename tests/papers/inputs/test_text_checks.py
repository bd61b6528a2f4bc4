"""The smoke checks of the systems on text run, and nothing in them fails."""

import pytest

from holdfast.papers.inputs import overstability, ranking_robustness
from holdfast.papers.paper import Scale


@pytest.mark.parametrize("entry", [overstability, ranking_robustness])
def test_smoke(entry):
    outcome = entry.check(Scale.SMOKE)
    assert outcome.criteria
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
