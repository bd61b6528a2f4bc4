"""Every mistake a user can make ends in one clear line on stderr, exit code 2, and nothing half-written."""

import gzip
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

from holdfast.cli.main import main

NET = """
import torch
from torch import nn

def build():
    torch.set_num_threads(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(65, 3))

def two():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

def probabilities():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(dim=1))

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Flatten(0))

def single():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))

def broken():
    raise RuntimeError("the factory fell over")

NOT_A_MODEL = 3

def number():
    return 3
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with one good model, good data, and one of every kind of damage."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "syntax.py").write_text("def build(:\n")
    x, y = rng.random((60, 1, 8, 8), dtype=np.float32), rng.integers(0, 3, 60)
    np.savez("good.npz", x=x, y=y)
    layer = torch.nn.Linear(64, 3)
    weights = {"1.weight": layer.weight.detach().clone(), "1.bias": layer.bias.detach().clone()}
    save_file(weights, "good.safetensors")
    save_file({"1.weight": weights["1.weight"]}, "partial.safetensors")
    save_file({**weights, "1.weight": torch.zeros(3, 63)}, "misshapen.safetensors")
    save_file({**weights, "1.bias": torch.full((3,), float("nan"))}, "nan.safetensors")
    (tmp_path / "truncated.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:50])
    np.savez("no_labels.npz", x=x)
    np.savez("short.npz", x=x, y=y[:-1])
    np.savez("empty.npz", x=x[:0], y=y[:0])
    np.savez("nan.npz", x=np.where(x < 0.01, np.nan, x), y=y)
    np.savez("infinite.npz", x=np.where(x < 0.01, np.inf, x), y=y)
    np.savez("labels_out.npz", x=x, y=y + 5)
    np.savez("labels_negative.npz", x=x, y=y - 1)
    np.savez("labels_float.npz", x=x, y=y + 0.5)
    np.savez("labels_matrix.npz", x=x, y=np.eye(3)[y])
    np.savez("words.npz", x=np.array([["a"] * 4] * 60), y=y)
    np.savez("objects.npz", x=np.array([{}] * 60, dtype=object), y=y)
    np.savez("wide.npz", x=rng.random((60, 1, 9, 9), dtype=np.float32), y=y)
    (tmp_path / "truncated.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:300])
    (tmp_path / "garbage.npz").write_bytes(b"not an archive")
    (tmp_path / "unknown.xyz").write_bytes(b"?")
    (tmp_path / "table.csv").write_text("a,b,label\n" + "\n".join(f"{k},{k / 2},{k % 3}" for k in range(30)))
    (tmp_path / "text.csv").write_text("a,b,label\n" + "\n".join(f"w{k},{k / 2},{k % 3}" for k in range(30)))
    (tmp_path / "table.parquet").write_bytes(b"PAR1 but no more")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(LogisticRegression().fit(x.reshape(60, -1), y)))
    (tmp_path / "garbage.onnx").write_bytes(b"not a graph")
    (tmp_path / "garbage.pt2").write_bytes(b"not an archive")
    (tmp_path / "garbage.skops").write_bytes(b"not an archive")
    with gzip.open("t-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"\x00\x00\x08\x03" + b"\x00" * 10)
    with gzip.open("t-labels-idx1-ubyte.gz", "wb") as file:
        file.write(b"\x00\x00\x08\x01\x00\x00\x00\x02\x00\x01")
    (tmp_path / "images/cat").mkdir(parents=True)
    (tmp_path / "images/cat/1.png").write_bytes(b"not a picture")
    (tmp_path / "sizes/a").mkdir(parents=True)
    (tmp_path / "sizes/b").mkdir(parents=True)
    Image.new("L", (8, 8)).save("sizes/a/1.png")
    Image.new("L", (9, 9)).save("sizes/b/1.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file_in_the_way").write_text("x")
    return tmp_path


GOOD = "net.py:build --weights good.safetensors"
CASES = [
    ("net.py:build", "test data"),
    ("--data good.npz", "MODEL"),
    ("--weights good.safetensors", "MODEL"),
    ("missing.py:build --data good.npz", "missing.py"),
    ("net.py:absent --data good.npz", "absent"),
    ("net.py:NOT_A_MODEL --data good.npz", "NOT_A_MODEL"),
    ("net.py:number --data good.npz", "int"),
    ("net.py:broken --data good.npz", "the factory fell over"),
    ("syntax.py:build --data good.npz", "syntax.py"),
    ("no.such.module:build --data good.npz", "no.such.module"),
    ("net.py --data good.npz", "net.py"),
    ("model.pkl --data good.npz", "--trust"),
    ("garbage.onnx --data good.npz", "garbage.onnx"),
    ("garbage.pt2 --data good.npz", "garbage.pt2"),
    ("garbage.skops --data good.npz", "garbage.skops"),
    ("folder --data good.npz", "folder"),
    ("net.py:build --weights absent.safetensors --data good.npz", "absent.safetensors"),
    ("net.py:build --weights truncated.safetensors --data good.npz", "truncated.safetensors"),
    ("net.py:build --weights partial.safetensors --data good.npz", "1.bias"),
    ("net.py:build --weights misshapen.safetensors --data good.npz", "1.weight"),
    ("net.py:build --weights nan.safetensors --data good.npz", "NaN"),
    ("net.py:wide --data good.npz", "64"),
    ("net.py:two --data good.npz", "2"),
    ("net.py:probabilities --data good.npz", "probabilities"),
    ("net.py:flat --data good.npz", "shape"),
    ("net.py:single --data good.npz", "two"),
    (f"{GOOD} --data absent.npz", "absent.npz"),
    (f"{GOOD} --data no_labels.npz", "label"),
    (f"{GOOD} --data short.npz", "59"),
    (f"{GOOD} --data empty.npz", "empty"),
    (f"{GOOD} --data nan.npz", "NaN"),
    (f"{GOOD} --data infinite.npz", "nfinit"),
    (f"{GOOD} --data labels_out.npz", "label"),
    (f"{GOOD} --data labels_negative.npz", "-1"),
    (f"{GOOD} --data labels_float.npz", "integer"),
    (f"{GOOD} --data labels_matrix.npz", "(60, 3)"),
    (f"{GOOD} --data words.npz", "number"),
    (f"{GOOD} --data objects.npz", "pickle"),
    (f"{GOOD} --data wide.npz", "(1, 9, 9)"),
    (f"{GOOD} --data truncated.npz", "truncated.npz"),
    (f"{GOOD} --data garbage.npz", "garbage.npz"),
    (f"{GOOD} --data unknown.xyz", "unknown.xyz"),
    (f"{GOOD} --data table.csv", "--labels COLUMN"),
    (f"{GOOD} --data table.csv:absent", "absent"),
    (f"{GOOD} --data text.csv:label", "a"),
    (f"{GOOD} --data table.parquet:label", "table.parquet"),
    (f"{GOOD} --data t", "truncated"),
    (f"{GOOD} --data images", "1.png"),
    (f"{GOOD} --data sizes", "9x9"),
    (f"{GOOD} --data folder", "folder"),
    (f"{GOOD} --data good.npz --train wide.npz", "(1, 9, 9)"),
    (f"{GOOD} --data good.npz --probes accuracy,nonsense", "nonsense"),
    (f"{GOOD} --data good.npz --probes ,", "none"),
    (f"{GOOD} --data good.npz --threat linf", "linf"),
    (f"{GOOD} --data good.npz --threat linf:-1", "-1"),
    (f"{GOOD} --data good.npz --threat l7:1", "l7"),
    (f"{GOOD} --data good.npz --threat linf:lots", "lots"),
    (f"{GOOD} --data good.npz --minutes 0", "minutes"),
    (f"{GOOD} --data good.npz --minutes many", "many"),
    (f"{GOOD} --data good.npz --limit 0", "limit"),
    (f"{GOOD} --data good.npz --precision 2", "precision"),
    (f"{GOOD} --data good.npz --level 1.5", "level"),
    (f"{GOOD} --data good.npz --input-range 1,0", "1,0"),
    (f"{GOOD} --data good.npz --input-range wide", "wide"),
    (f"{GOOD} --data good.npz --class-names a,b", "3"),
    (f"{GOOD} --data good.npz --fail-if accuracy<1", "write it like"),
    (f"{GOOD} --data good.npz --fail-if nonsense.x<1", "names no probe"),
    (f"{GOOD} --data good.npz --device abacus", "abacus"),
    (f"{GOOD} --data good.npz --engine abacus", "abacus"),
    (f"{GOOD} --data good.npz --resume --out runs/none", "no run to resume"),
    (f"{GOOD} --data good.npz --out file_in_the_way/run", "file_in_the_way"),
    (f"{GOOD} --data good.npz --bogus", "--bogus"),
]


def contents(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(("arguments", "words"), CASES, ids=[arguments for arguments, _ in CASES])
def test_a_mistake_ends_in_one_clear_line(place, monkeypatch, capsys, arguments, words):
    before = contents(place)
    monkeypatch.setattr(sys, "argv", ["holdfast", "audit", *arguments.split(" ")])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err.strip()
    assert ended.value.code == 2, told
    assert told.count("\n") == 0, told
    assert told.startswith("holdfast: ")
    assert words in told
    assert contents(place) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("report absent", "absent"),
        ("report folder", "folder"),
        ("report folder --format pdf", "pdf"),
        ("compare folder folder", "folder"),
        ("reproduce nonsense", "nonsense"),
        ("reproduce", "--all"),
        ("nonsense", "nonsense"),
    ],
)
def test_the_other_commands_are_as_clear(place, monkeypatch, capsys, arguments, words):
    before = contents(place)
    monkeypatch.setattr(sys, "argv", ["holdfast", *arguments.split(" ")])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err.strip()
    assert (ended.value.code, told.count("\n")) == (2, 0), told
    assert words in told
    assert contents(place) == before
