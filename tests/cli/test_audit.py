"""The main job as a new user runs it: exit codes, gates, resuming, reports, the catalogue."""

import json
import subprocess
import sys

import numpy as np
import pytest

from holdfast.cli.main import COMMANDS, main

NET = """
import torch
from torch import nn

def build():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
        model[1].bias.zero_()
    return model
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A model that compares two features, and rows it gets right three times in four."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    x = np.random.default_rng(0).random((400, 4), dtype=np.float32)
    y = (x[:, 1] > x[:, 0]).astype(np.int64)
    y[::4] = 1 - y[::4]
    np.savez("data.npz", x=x, y=y)
    return tmp_path


def run(monkeypatch, capsys, *arguments):
    """Exit code and what was printed."""
    monkeypatch.setattr(sys, "argv", ["holdfast", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


AUDIT = ("audit", "net.py:build", "--data", "data.npz", "--probes", "accuracy,calibration", "--out", "run")


@pytest.mark.parametrize(
    ("gate", "code", "words"),
    [
        ("accuracy.accuracy < 0.5", 0, "gate passed: accuracy.accuracy < 0.5"),
        ("accuracy.accuracy < 0.74", 3, "does not rule it out"),
        ("accuracy.accuracy < 0.9", 3, "GATE FAILED"),
        ("certified.accuracy < 0.1", 3, "not measured in this run"),
    ],
)
def test_gates_decide_the_exit_code(place, monkeypatch, capsys, gate, code, words):
    ended, out, err = run(monkeypatch, capsys, *AUDIT, "--fail-if", gate)
    assert ended == code
    assert words in out + err
    assert (place / "run/report.html").exists()


def test_a_run_is_resumed_by_its_folder_alone(place, monkeypatch, capsys):
    assert run(monkeypatch, capsys, *AUDIT, "--seed", "7")[0] == 0
    before = json.loads((place / "run/findings.json").read_text())
    (place / "run/evidence/calibration/part-000000.parquet").unlink()
    assert run(monkeypatch, capsys, "audit", "--resume", "--out", "run")[0] == 0
    after = json.loads((place / "run/findings.json").read_text())
    for content in (before, after):
        for section in content["sections"]:
            del section["seconds"]
    assert after == before
    assert json.loads((place / "run/manifest.json").read_text())["settings"]["seed"] == 7


def test_reports_and_comparison_of_two_runs(place, monkeypatch, capsys):
    assert run(monkeypatch, capsys, *AUDIT)[0] == 0
    (place / "net.py").write_text(NET.replace("[0, 1.0, 0, 0]", "[0, 0, 1.0, 0]"))
    assert run(monkeypatch, capsys, *AUDIT[:-1], "other")[0] == 0
    code, out, _ = run(monkeypatch, capsys, "compare", "run", "other", "--format", "json")
    assert code == 0
    assert json.loads(out)
    code, out, _ = run(monkeypatch, capsys, "compare", "run", "other")
    assert "accuracy.accuracy" in out
    for form, words in [("md", "# "), ("json", "{"), ("model-card", "---")]:
        code, out, _ = run(monkeypatch, capsys, "report", "run", "--format", form)
        assert (code, out.lstrip()[: len(words)]) == (0, words)


def test_the_catalogue_as_json_has_the_promised_fields(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "papers", "mahalanobis", "--json")
    first = json.loads(out)[0]
    assert code == 0
    assert first["key"] == "mahalanobis"
    assert set(first) == {"key", "group", "title", "builds", "claim", "status", "numbers"}


def test_reproduce_tells_what_was_measured(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "reproduce", "bcd")
    assert code == 0, err
    assert "1 of 1 smoke checks agree" in out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from holdfast.cli.main import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "assert not {'torch', 'numpy', 'rich', 'pyarrow', 'scipy'} & set(sys.modules), 'heavy import'"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for command in COMMANDS:
        assert command in shown
