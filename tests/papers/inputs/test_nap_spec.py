"""The smoke check of `nap-spec` runs: proofs withstand a search, pairs of classes are told apart or shown together."""

from holdfast.papers.inputs import nap_spec
from holdfast.papers.paper import Scale


def test_smoke():
    outcome = nap_spec.check(Scale.SMOKE)
    sound, pairs = outcome.criteria
    assert sound.passed
    assert sum(pairs.numbers[kind] for kind in ("pairs proven", "with a witness", "undecided")) == 6
    assert pairs.passed
    assert len(outcome.exhibits[0].rows) == 2
