"""The smoke check of `robust-cbc` runs, and what so little work can decide holds."""

from holdfast.papers.inputs import robust_cbc
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = robust_cbc.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert outcome.criteria[2].numbers["with a positive radius"] > 0
