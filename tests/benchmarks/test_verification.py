"""The table of verification counts what was decided, and a wrong verdict cannot hide in it."""

import json

from benchmarks import verification


def record(name, published, status, **more):
    facts = {"agreed": True, "best_time_s": 2.0, "seconds": 1.0, "budget": 60.0, "lower": 0.1, "subproblems": 3}
    return {"name": f"rl/{name}", "family": "rl", "published": published, "status": status, **facts, **more}


RECORDS = [
    record("a", "unsat", "verified"),
    record("b", "sat", "counterexample", seconds=3.0),
    record("c", "unsat", "unknown", seconds=60.0),
    record("d", "unknown", "verified", agreed=False),
]


def test_decided_are_counted_among_the_agreed():
    page = verification.table(RECORDS, 60.0)
    assert "| rl | 3 | 2 | 67% | 0 | 3.00 | 21.33 | 2.00 | 2.00 |" in page
    assert "WRONG" not in page


def test_a_wrong_verdict_is_named():
    bad = [record("e", "sat", "verified"), record("f", "unsat", "counterexample")]
    assert verification.wrong([*RECORDS, *bad]) == bad
    page = verification.table([*RECORDS, *bad], 60.0)
    assert "| rl | 5 | 2 | 40% | 2 |" in page
    assert "WRONG: rl/e: verified, published sat" in page


def test_earlier_results_of_the_same_budget_are_kept(tmp_path):
    path = tmp_path / "records.jsonl"
    lines = [record("a", "unsat", "verified"), record("b", "sat", "unknown", budget=5.0)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(verification.read(path, 60.0)) == ["rl/a"]
    assert verification.read(tmp_path / "none.jsonl", 60.0) == {}
