"""The smoke check of `ibp-tightness` runs, and everything it can decide passes."""

from holdfast.papers.inputs import ibp_tightness
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = ibp_tightness.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert len(outcome.criteria) == 6
    assert outcome.to_dict()["seeds"] == [0]
