"""The command that stands beside a number re-makes it."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from holdfast.report.command import make_again
from holdfast.report.record import RunRecord


@pytest.fixture
def record(plain_run):
    return RunRecord.read(plain_run)


def started_by(record, *words):
    return replace(record, manifest={**record.manifest, "command": list(words)})


def test_what_names_this_run_is_left_out_and_the_rest_survives_quoting(record):
    typed = "/opt/bin/holdfast audit 'my model.py:build' --out 'runs/a b' --resume --threat=linf:8/255"
    run = started_by(record, *shlex.split(f"{typed} --probes a,b --seed=7 --trust"))
    kept = ["holdfast", "audit", "my model.py:build", "--threat=linf:8/255"]
    whole = shlex.split(" ".join(make_again(run)))
    assert whole == [*kept, "--probes", "a,b", "--trust", "--seed", "0"]
    one = shlex.split(" ".join(make_again(run, "weights")))
    assert one == [*kept, "--trust", "--probes", "weights", "--seed", "0"]


def test_nothing_typed_can_become_another_command(record):
    run = started_by(record, "holdfast", "audit", "$(rm -rf ~)", "--weights", "`x`; y")
    assert shlex.split(" ".join(make_again(run)))[2:5] == ["$(rm -rf ~)", "--weights", "`x`; y"]


def test_a_run_started_from_python_is_told_in_python(record):
    (call,) = make_again(started_by(record), "weights")
    assert call.startswith("audit(subject, out=\"again\", probes=['weights'], settings=Settings(seed=0, level=0.95))")
