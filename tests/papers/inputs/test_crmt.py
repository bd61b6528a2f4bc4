"""The smoke check of `crmt` runs without data, and what so little work can decide holds."""

from holdfast.papers.inputs import crmt
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = crmt.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert outcome.criteria[1].numbers["mean radius"] > 0
