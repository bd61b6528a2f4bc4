"""The smoke check of `eps-ad` runs and holds."""

from holdfast.papers.inputs import eps_ad
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = eps_ad.check(Scale.SMOKE)
    assert [criterion.statement for criterion in outcome.criteria if not criterion.passed] == []
    assert len(outcome.criteria) == 2
    assert outcome.to_dict()["seeds"] == [0]
