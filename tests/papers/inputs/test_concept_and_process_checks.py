"""The smoke checks of `ecbm`, `factor-consistency` and `mpnp` run and hold."""

import pytest

from holdfast.papers.inputs import ecbm, factor_consistency, mpnp
from holdfast.papers.paper import Scale


@pytest.mark.parametrize("entry", [ecbm, factor_consistency, mpnp])
def test_smoke(entry):
    outcome = entry.check(Scale.SMOKE)
    assert len(outcome.criteria) >= 2
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert outcome.to_dict()["seeds"] == [0]
