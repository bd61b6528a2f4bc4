"""Whatever is wrong with a model or with data, the door says so in one line that names what was got and what to do."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn

from holdfast.core.errors import HoldfastError, InputError, TrustError
from holdfast.subject.loading import load_subject

X = np.random.default_rng(0).random((40, 6), dtype=np.float32)
Y = np.arange(40) % 3
IMAGES = np.random.default_rng(1).integers(0, 256, (12, 8, 8), dtype=np.uint8)
KINDS = np.arange(12) % 3


def net(width: int = 3, inputs: int = 6) -> nn.Module:
    return nn.Linear(inputs, width)


def with_value(value: float) -> np.ndarray:
    changed = X.copy()
    changed[7, 2] = value
    return changed


def broken_net(value: float) -> nn.Module:
    model = net()
    with torch.no_grad():
        model.weight[0, 0] = value
    return model


class Saying(nn.Module):
    """A model that returns whatever `answer` makes of its batch."""

    def __init__(self, answer: Callable):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


class Evil:
    """Unpickling this leaves a trace."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def idx(folder: Path, images: bytes | np.ndarray, labels: np.ndarray | None, end: str = "") -> str:
    def raw(array: np.ndarray) -> bytes:
        return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()

    content = images if isinstance(images, bytes) else raw(images)
    (folder / f"t-images-idx3-ubyte{end}").write_bytes(content)
    if labels is not None:
        (folder / "t-labels-idx1-ubyte").write_bytes(raw(labels))
    return str(folder / "t")


def npz(folder: Path, **arrays: object) -> str:
    np.savez(folder / "d.npz", **arrays)
    return str(folder / "d.npz")


def text(folder: Path, name: str, content: str | bytes) -> str:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(folder / name)


def pictures(folder: Path, *shapes: tuple[int, int]) -> str:
    from PIL import Image

    for k, shape in enumerate(shapes):
        (folder / f"class{k}").mkdir()
        Image.fromarray(np.zeros(shape, np.uint8)).save(folder / f"class{k}" / "a.png")
    return str(folder)


def weights(folder: Path, state: dict) -> dict:
    save_file(state, folder / "w.safetensors")
    return {"weights": str(folder / "w.safetensors")}


def exported(folder: Path, change: Callable[[str, bytes], bytes] = lambda name, content: content) -> str:
    path, changed = folder / "net.pt2", folder / "changed.pt2"
    torch.export.save(torch.export.export(net().eval(), (torch.from_numpy(X[:2]),)), path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, change(entry, old.read(entry)))
    return str(changed)


def operator_renamed(name: str, content: bytes) -> bytes:
    return content.replace(b"torch.ops.aten.linear.default", b"torch.os.system") if "models/" in name else content


def sample_pickled(folder: Path) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        buffer = io.BytesIO()
        torch.save(Evil(folder / "trace"), buffer)
        return buffer.getvalue() if name.endswith(".pt") else content

    return change


def size_evaluated(name: str, content: bytes) -> bytes:
    if "models/" not in name:
        return content
    program = json.loads(content)
    program["range_constraints"] = {"s0": {"expr_str": "__import__('os').getcwd()"}}
    return json.dumps(program).encode()


def truncated_onnx(folder: Path) -> str:
    pytest.importorskip("onnx")
    torch.onnx.export(net(), (torch.from_numpy(X[:1]),), str(folder / "a.onnx"), dynamo=False)
    return text(folder, "b.onnx", (folder / "a.onnx").read_bytes()[:-60])


def module_file(folder: Path, code: str, name: str = "build") -> str:
    return f"{text(folder, 'nets.py', code)}:{name}"


def sequence_of(folder: Path, kind: str) -> str:
    (folder / "config.json").write_text(json.dumps({"architectures": [kind]}))
    return str(folder)


#: What is wrong -> (arguments made in an empty folder, error, words its message must hold).
CASES: dict[str, tuple[Callable[[Path], dict], type[HoldfastError], tuple[str, ...]]] = {
    # data: shapes, types, values
    "features of another number": (lambda f: {"model": net(3, 5)}, InputError, ("(6,)", "wants 5 features")),
    "images for a net of rows": (lambda f: {"data": (IMAGES, KINDS)}, InputError, ("(1, 8, 8)", "wants 6 features")),
    "channels last in a channels-first net": (
        lambda f: {"model": nn.Conv2d(3, 3, 8), "data": (IMAGES[:, None], KINDS)},
        InputError,
        ("(1, 8, 8)", "wants 3 channels"),
    ),
    "layout cannot be told": (
        lambda f: {"data": (np.zeros((5, 3, 8, 3), np.uint8), KINDS[:5])},
        InputError,
        ("channels first or last", "--layout"),
    ),
    "fewer labels than inputs": (lambda f: {"data": (X, Y[:-1])}, InputError, ("40 inputs", "39 labels")),
    "labels as one-hot rows": (lambda f: {"data": (X, np.eye(3)[Y])}, InputError, ("(40, 3)", "argmax")),
    "labels as floats": (lambda f: {"data": (X, Y + 0.5)}, InputError, ("labels are float64", "integers")),
    "labels as complex numbers": (lambda f: {"data": (X, Y * 1j)}, InputError, ("complex",)),
    "labels missing": (lambda f: {"data": (X, np.array([None, *Y[1:]], object))}, InputError, ("missing",)),
    "label outside the classes": (
        lambda f: {"data": (X, np.where(np.arange(40) == 9, 3, Y))},
        InputError,
        ("label 3", "example 9", "3 classes", "0 to 2"),
    ),
    "negative label": (lambda f: {"data": (X, Y - 1)}, InputError, ("label -1", "negative")),
    "training label outside the classes": (lambda f: {"train": (X, Y + 1)}, InputError, ("label 3", "outside")),
    "class name unknown to the model": (
        lambda f: {"data": (X, np.array(["cat", "dog", "eel"])[Y]), "class_names": ["cat", "dog", "emu"]},
        InputError,
        ("'eel'", "cat, dog, emu"),
    ),
    "class names twice": (lambda f: {"class_names": ["a", "b", "a"]}, InputError, ("same name",)),
    "class names of another number": (lambda f: {"class_names": ["a", "b"]}, InputError, ("3 scores", "2 classes")),
    "NaN among inputs": (lambda f: {"data": (with_value(np.nan), Y)}, InputError, ("NaN", "example 7")),
    "infinite inputs": (lambda f: {"data": (with_value(np.inf), Y)}, InputError, ("infinite", "example 7")),
    "no examples": (lambda f: {"data": (X[:0], Y[:0])}, InputError, ("no examples",)),
    "inputs that are words": (lambda f: {"data": (np.full((40, 6), "a"), Y)}, InputError, ("<U1", "numbers")),
    "ragged inputs": (lambda f: {"data": ([[1.0, 2.0], [1.0]], Y[:2])}, InputError, ("rectangular",)),
    "inputs without a feature axis": (lambda f: {"data": (X[:, 0], Y)}, InputError, ("(40,)", "(examples,")),
    "pixels beyond bytes": (
        lambda f: {"data": (IMAGES[:, None].astype(np.int32) * 2, KINDS)},
        InputError,
        ("int32", "bytes"),
    ),
    "train of another shape": (lambda f: {"train": (X[:, :5], Y)}, InputError, ("(5,)", "(6,)", "training")),
    "other data of another shape": (lambda f: {"other": (X[:, :5], Y)}, InputError, ("(5,)", "(6,)", "other")),
    "something that is no data": (lambda f: {"data": 7}, InputError, ("int", "(inputs, labels)")),
    # data files
    "no such data": (lambda f: {"data": str(f / "nothing")}, InputError, ("no such data", ".npz")),
    "no such archive": (lambda f: {"data": str(f / "no.npz")}, InputError, ("no.npz", "cannot be read")),
    "archive cut short": (
        lambda f: {"data": text(f, "cut.npz", Path(npz(f, x=X, y=Y)).read_bytes()[:300])},
        InputError,
        ("not a whole .npz",),
    ),
    "archive with pickled objects": (
        lambda f: {"data": npz(f, x=np.array([Evil(f / "trace")] * 2, object), y=Y[:2])},
        InputError,
        ("pickled objects", "run code"),
    ),
    "archive without known names": (lambda f: {"data": npz(f, a=X, b=Y)}, InputError, ("a, b", "d.npz:inputs,labels")),
    "archive without the named array": (lambda f: {"data": npz(f, x=X, y=Y) + ":x,z"}, InputError, ("'z'", "x, y")),
    "group array missing": (
        lambda f: {"data": npz(f, x=X, y=Y), "group_column": "sex"},
        InputError,
        ("'sex'", "x, y"),
    ),
    "pickled data": (lambda f: {"data": text(f, "d.pkl", pickle.dumps((X, Y)))}, InputError, ("not read", ".npz")),
    "table without a label column": (lambda f: {"data": text(f, "t.csv", "a,b\n1,2\n")}, InputError, ("t.csv:COLUMN",)),
    "table with another label column": (
        lambda f: {"data": text(f, "t.csv", "a,b\n1,2\n") + ":kind"},
        InputError,
        ("'kind'", "'a', 'b'"),
    ),
    "table with words among features": (
        lambda f: {"data": text(f, "t.csv", "a,colour,y\n1,red,0\n2,blue,1\n") + ":y"},
        InputError,
        ("'colour'", "encode"),
    ),
    "table with gaps": (lambda f: {"data": text(f, "t.csv", "a,b,y\n1,,0\n2,3,1\n") + ":y"}, InputError, ("column b",)),
    "table with a heading only": (lambda f: {"data": text(f, "t.csv", "a,b,y\n") + ":y"}, InputError, ("rows",)),
    "table with uneven rows": (
        lambda f: {"data": text(f, "t.csv", "a,y\n1,0\n1,2,3\n") + ":y"},
        InputError,
        ("table",),
    ),
    "parquet that is none": (lambda f: {"data": text(f, "t.parquet", "no") + ":y"}, InputError, ("as a table",)),
    "IDX cut short": (
        lambda f: {"data": idx(f, struct.pack(">BBBB3I", 0, 0, 8, 3, 12, 8, 8) + b"\0" * 100, KINDS)},
        InputError,
        ("truncated",),
    ),
    "IDX that is none": (lambda f: {"data": idx(f, b"P5 8 8 255", KINDS)}, InputError, ("not an IDX",)),
    "IDX with damaged gzip": (
        lambda f: {"data": idx(f, gzip.compress(bytes(999))[:-12], KINDS, ".gz")},
        InputError,
        ("gzip", "truncated"),
    ),
    "IDX without labels": (lambda f: {"data": idx(f, IMAGES, None)}, InputError, ("labels are missing",)),
    "IDX with labels of another set": (lambda f: {"data": idx(f, IMAGES, KINDS[:7])}, InputError, ("12", "7")),
    "folder without images": (lambda f: {"data": str(f)}, InputError, ("no images",)),
    "images of several sizes": (
        lambda f: {"data": pictures(f, (8, 8), (8, 9))},
        InputError,
        ("8x8", "8x9", "HEIGHTxWIDTH"),
    ),
    "image that is none": (
        lambda f: {"data": (pictures(f, (8, 8)), text(f / "class0", "b.png", "no"))[0]},
        InputError,
        ("b.png", "not an image"),
    ),
    "image size that is none": (lambda f: {"data": pictures(f, (8, 8)) + ":big"}, InputError, ("'big'",)),
    # models: what they return
    "probabilities for logits": (
        lambda f: {"model": nn.Sequential(net(), nn.Softmax(1))},
        InputError,
        ("probabilities", "--outputs probabilities"),
    ),
    "logits for probabilities": (lambda f: {"outputs": "probabilities"}, InputError, ("sums to", "--outputs")),
    "too few outputs": (lambda f: {"model": net(2)}, InputError, ("label 2", "2 classes")),
    "one output": (lambda f: {"model": net(1)}, InputError, ("(16, 1)", "both")),
    "answers for logits": (
        lambda f: {"model": Saying(lambda x: x.argmax(1))},
        InputError,
        ("class index", "--outputs labels"),
    ),
    "a pair for logits": (lambda f: {"model": Saying(lambda x: (x, x))}, InputError, ("tuple", "one tensor")),
    "rows lost": (lambda f: {"model": Saying(lambda x: x[:3])}, InputError, ("(3, 6)", "(16, classes)")),
    "NaN outputs": (lambda f: {"model": Saying(lambda x: x * torch.nan)}, InputError, ("NaN", "outputs")),
    "NaN weights": (lambda f: {"model": broken_net(np.nan)}, InputError, ("1 of 18 weights", "weight")),
    "infinite weights": (lambda f: {"model": broken_net(np.inf)}, InputError, ("weights", "infinite")),
    "something that is no model": (lambda f: {"model": 7}, InputError, ("int", "nn.Module")),
    "estimator that is not fitted": (lambda f: {"model": LogisticRegression()}, InputError, ("not fitted",)),
    "regressor": (lambda f: {"model": LinearRegression().fit(X, Y)}, InputError, ("regressor", "classifier")),
    "label the estimator never saw": (
        lambda f: {"model": LogisticRegression().fit(X, Y % 2)},
        InputError,
        ("'2'", "0, 1"),
    ),
    "no such device": (lambda f: {"device": "abacus"}, InputError, ("'abacus'",)),
    # model files
    "no such model": (lambda f: {"model": str(f / "nothing")}, InputError, ("module:factory",)),
    "no such model file": (lambda f: {"model": str(f / "no.onnx")}, InputError, ("no such file",)),
    "no such Python file": (lambda f: {"model": str(f / "no.py") + ":build"}, InputError, ("no such Python file",)),
    "no such module": (lambda f: {"model": "no_such_module:build"}, InputError, ("no_such_module", "ModuleNotFound")),
    "no such factory": (lambda f: {"model": module_file(f, "def make(): ...\n")}, InputError, ("'build'", "make")),
    "Python that does not parse": (lambda f: {"model": module_file(f, "def (")}, InputError, ("SyntaxError",)),
    "factory that fails": (lambda f: {"model": module_file(f, "def build(): 1 / 0")}, InputError, ("ZeroDivision",)),
    "factory of nothing": (lambda f: {"model": module_file(f, "def build(): ...")}, InputError, ("NoneType",)),
    "factory with arguments": (lambda f: {"model": module_file(f, "def build(a, b): ...")}, InputError, ("2 arg",)),
    "weights alone": (
        lambda f: {"model": weights(f, net().state_dict())["weights"]},
        InputError,
        ("factory", "--weights"),
    ),
    "weights of another net": (lambda f: weights(f, {"w": torch.ones(3)}), InputError, ("lacks", "weight", "holds w")),
    "weights of another width": (lambda f: weights(f, net(4).state_dict()), InputError, ("(4, 6)", "(3, 6)")),
    "weights for an estimator": (
        lambda f: {"model": LogisticRegression().fit(X, Y), **weights(f, net().state_dict())},
        InputError,
        ("not an nn.Module",),
    ),
    "safetensors cut short": (
        lambda f: {"weights": text(f, "w.safetensors", save_bytes(f)[:-20])},
        InputError,
        ("not a whole safetensors",),
    ),
    "no such weights": (lambda f: {"weights": str(f / "no.safetensors")}, InputError, ("cannot be read",)),
    "weights in a pickle": (
        lambda f: {"weights": saved(f, {"a": Evil(f / "trace")})},
        TrustError,
        ("run code", "--trust"),
    ),
    "weights file that is none": (lambda f: {"weights": text(f, "w.pt", "no")}, InputError, ("w.pt",)),
    "whole model in a pickle": (lambda f: {"model": saved(f, Evil(f / "trace"))}, TrustError, ("--trust",)),
    "estimator in a pickle": (
        lambda f: {"model": text(f, "m.pkl", pickle.dumps(Evil(f / "trace")))},
        TrustError,
        ("skops", "--trust"),
    ),
    "pickle that is none": (
        lambda f: {"model": text(f, "m.pkl", "no"), "trust": True},
        InputError,
        ("cannot be unpickled",),
    ),
    "skops that is none": (lambda f: {"model": text(f, "m.skops", "no")}, InputError, ("not a whole .skops",)),
    "skops of a foreign type": (lambda f: {"model": foreign_skops(f)}, TrustError, ("Foreign", "--trust")),
    "ONNX cut short": (lambda f: {"model": truncated_onnx(f)}, InputError, ("b.onnx",)),
    "ONNX that is none": (lambda f: {"model": text(f, "m.onnx", b"\x00no")}, InputError, ("m.onnx", "ONNX")),
    "archive of a program that is none": (
        lambda f: {"model": text(f, "m.pt2", "no")},
        InputError,
        ("not a whole .pt2",),
    ),
    "program with a foreign operator": (
        lambda f: {"model": exported(f, operator_renamed)},
        TrustError,
        ("torch.os.system", "--trust"),
    ),
    "program with pickled samples": (
        lambda f: {"model": exported(f, sample_pickled(f))},
        TrustError,
        ("pickled", "--trust"),
    ),
    "program with sizes to evaluate": (
        lambda f: {"model": exported(f, size_evaluated)},
        TrustError,
        ("__import__", "--trust"),
    ),
    "folder that holds no model": (lambda f: {"model": str(f)}, InputError, ("config.json",)),
    "folder of a language model": (
        lambda f: {"model": sequence_of(f, "GPT2LMHeadModel")},
        InputError,
        ("GPT2LMHeadModel", "classifier"),
    ),
}


def save_bytes(folder: Path) -> bytes:
    return Path(weights(folder, net().state_dict())["weights"]).read_bytes()


def saved(folder: Path, thing: object) -> str:
    torch.save(thing, folder / "w.pt")
    return str(folder / "w.pt")


class Foreign(LogisticRegression):
    """An estimator that skops has never heard of."""


def foreign_skops(folder: Path) -> str:
    from skops import io as skops

    skops.dump(Foreign().fit(X, Y), folder / "m.skops")
    return str(folder / "m.skops")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_bad_input_is_one_clear_line(case, tmp_path):
    make, kind, words = CASES[case]
    arguments = {"model": net(), "data": (X, Y), **make(tmp_path)}
    with pytest.raises(HoldfastError) as caught:
        load_subject(arguments.pop("model"), arguments.pop("data"), **arguments)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message
    assert not [word for word in words if word not in message], message
    assert not (tmp_path / "trace").exists(), "the file was allowed to run code"


def test_there_are_enough_cases():
    assert len(CASES) >= 60
