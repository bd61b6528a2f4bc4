"""A full run leaves a whole record; a smoke run leaves none and fails CI only for news."""

import json

import pytest

from holdfast.core.errors import HoldfastError, MissingData
from holdfast.papers.catalogue import find
from holdfast.papers.paper import Criterion, Outcome, Scale
from holdfast.papers.reproduce import contradictions, exit_code, reproduce, smoke_runs


def test_a_full_run_writes_the_whole_record(house, tmp_path, planted, outcome):
    results = tmp_path / "results"
    planted("noise", "warm_tea", outcome(steam_rises=True))
    record = reproduce("warm-tea", Scale.FULL, results)
    written = json.loads((results / "warm-tea.json").read_text())
    assert written == record.to_dict()
    assert written["modules"] == ["holdfast.noise.methods", "holdfast.papers.noise.warm_tea"]
    assert set(written["versions"]) >= {"holdfast", "python", "torch", "numpy", "scipy", "scikit-learn"}
    assert str(tmp_path) not in (results / "warm-tea.json").read_text()


def test_a_smoke_run_never_overwrites(house, tmp_path, planted, outcome):
    planted("noise", "warm_tea", outcome(steam_rises=True))
    reproduce("warm-tea", Scale.FULL, tmp_path)
    before = (tmp_path / "warm-tea.json").read_bytes()
    planted("noise", "warm_tea", outcome(steam_rises=False))
    assert not reproduce("warm-tea", Scale.SMOKE, tmp_path).holds
    assert (tmp_path / "warm-tea.json").read_bytes() == before


def test_what_is_not_a_number_is_not_kept(house, tmp_path, planted):
    planted("noise", "warm_tea", Outcome((Criterion("hot", True, {"degrees": float("nan")}),)))
    with pytest.raises(HoldfastError, match="not a number"):
        reproduce("warm-tea", Scale.FULL, tmp_path)
    assert not list(tmp_path.glob("*.json*"))


def test_a_check_must_decide_something(house, tmp_path, planted):
    planted("noise", "warm_tea", Outcome(()))
    with pytest.raises(HoldfastError, match="no criterion"):
        reproduce("warm-tea", Scale.FULL, tmp_path)


def test_one_crash_does_not_hide_the_others(house, tmp_path, planted, outcome):
    planted("inputs", "blunt_knife", MissingData("no data set here"))
    planted("noise", "warm_tea", outcome(steam_rises=True))
    runs = list(smoke_runs(results=tmp_path))
    assert [(run.key, run.verdict) for run in runs] == [("blunt-knife", "crashed"), ("warm-tea", "agrees")]
    assert "no data set here" in runs[0].error
    assert exit_code(runs) == 1
    assert exit_code(runs[1:]) == 0


def test_only_news_fails_a_smoke_run(house, tmp_path, planted, outcome):
    planted("noise", "warm_tea", outcome(steam_rises=False))
    (unrun,) = smoke_runs(["warm-tea"], tmp_path)
    assert (unrun.verdict, unrun.failed) == ("agrees", ("steam_rises",))
    planted("noise", "warm_tea", outcome(steam_rises=True))
    reproduce("warm-tea", Scale.FULL, tmp_path)
    planted("noise", "warm_tea", outcome(steam_rises=False))
    (broken,) = smoke_runs(["warm-tea"], tmp_path)
    assert (broken.verdict, broken.contradicted) == ("contradicts", ("steam_rises",))


def test_a_criterion_is_held_against_its_own_full_result(house, tmp_path, planted, outcome):
    planted("noise", "warm_tea", outcome(steam_rises=True, cup_full=False))
    reproduce("warm-tea", Scale.FULL, tmp_path)
    committed = find("warm-tea", tmp_path).result
    assert contradictions(outcome(cup_full=False), committed) == ()
    assert contradictions(outcome(steam_rises=False, cup_full=False), committed) == ("steam_rises",)
    assert contradictions(outcome(new_criterion=False), committed) == ()
    assert contradictions(outcome(steam_rises=False), None) == ()
