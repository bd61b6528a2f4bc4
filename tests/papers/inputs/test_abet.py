"""The smoke check of `abet` runs and holds."""

from holdfast.papers.inputs import abet
from holdfast.papers.paper import Scale


def test_smoke_of_abet():
    outcome = abet.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert outcome.to_dict()["seeds"] == [0]
