"""The smoke check of `great-score` runs; it decides the certificate and the interval, not the ranking."""

from holdfast.papers.inputs import great_score as entry
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = entry.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    certified = outcome.criteria[0].numbers["largest share of the distance certified, half-spaces"]
    assert 0.9 < certified <= 1
