"""`holdfast verify` as a user of the competition's tools runs it: words, exit codes, files."""

import gzip
import json
import sys

import numpy as np
import pytest

from holdfast.cli.main import main

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

HEAD = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)\n"
BOX = "(assert (<= X_0 1))(assert (>= X_0 -1))(assert (<= X_1 1))(assert (>= X_1 -1))\n"


def network(path):
    """y = relu(x0 + x1) + relu(x0 - x1), between 0 and 2 on the box."""
    tensors = {
        "w": np.array([[1.0, 1.0], [1.0, -1.0]], np.float32),
        "v": np.array([[1.0], [1.0]], np.float32),
    }
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["z"]),
        onnx.helper.make_node("Relu", ["z"], ["a"]),
        onnx.helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [onnx.helper.make_tensor_value_info("x", kind, [1, 2])],
        [onnx.helper.make_tensor_value_info("y", kind, [1, 1])],
        [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(gzip.compress(model.SerializeToString()) if path.suffix == ".gz" else model.SerializeToString())
    return path


def run(monkeypatch, capsys, *arguments):
    """Exit code and what was printed."""
    monkeypatch.setattr(sys, "argv", ["holdfast", "verify", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


@pytest.fixture
def question(tmp_path):
    """A network, and a function that writes a property about it."""
    net = network(tmp_path / "net.onnx")

    def ask(unsafe, zipped=False):
        path = tmp_path / ("p.vnnlib.gz" if zipped else "p.vnnlib")
        text = HEAD + BOX + f"(assert {unsafe})"
        path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
        return net, path

    return ask


def test_a_property_that_holds(question, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, *question("(>= Y_0 2.01)"))
    assert (code, out, err) == (0, "unsat\n", "")


def test_a_violated_one_comes_with_a_counterexample_in_the_competitions_form(question, monkeypatch, capsys, tmp_path):
    result = tmp_path / "result.txt"
    code, out, _ = run(monkeypatch, capsys, *question("(>= Y_0 1.9)"), "--out", result)
    assert code == 3
    assert result.read_text() == out
    word, *pairs = out.replace("(", " ").replace(")", " ").split()
    assert word == "sat"
    values = dict(zip(pairs[::2], map(float, pairs[1::2])))
    assert list(values) == ["X_0", "X_1", "Y_0"]
    assert out.splitlines()[1].startswith("((X_0 ")
    assert out.rstrip().endswith("))")
    x0, x1 = values["X_0"], values["X_1"]
    assert max(abs(x0), abs(x1)) <= 1
    assert max(x0 + x1, 0) + max(x0 - x1, 0) == pytest.approx(values["Y_0"], abs=1e-6)
    assert values["Y_0"] >= 1.9


def test_json_and_gzipped_files(question, monkeypatch, capsys, tmp_path):
    _, prop = question("(>= Y_0 2.01)", zipped=True)
    code, out, _ = run(monkeypatch, capsys, network(tmp_path / "net.onnx.gz"), prop, "--json", "--seed", 3)
    told = json.loads(out)
    assert code == 0
    assert told["verdict"] == "unsat"
    assert told["counterexample"] is None
    assert 0 < told["lower"] <= 0.011
    code, out, _ = run(monkeypatch, capsys, *question("(>= Y_0 1.5)"), "--json")
    told = json.loads(out)
    assert code == 3
    assert len(told["counterexample"]) == 2
    assert told["output"][0] >= 1.5


def test_time_that_does_not_suffice_is_said(question, monkeypatch, capsys):
    # The maximum is 2: nothing can be bounded within a millisecond, and no input violates this.
    code, out, _ = run(monkeypatch, capsys, *question("(>= Y_0 2.000000001)"), "--budget", "0.001")
    assert (code, out) == (4, "timeout\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none.onnx", "PROPERTY"), "none.onnx"),
        (("NET", "none.vnnlib"), "none.vnnlib"),
        (("NET", "PROPERTY", "--budget", "0"), "budget must be positive"),
        (("NET", "PROPERTY", "--threads", "0"), "--threads takes a positive number"),
        (("NET", "PROPERTY", "--out", "/nowhere/verdict.txt"), "there is no folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(question, monkeypatch, capsys, arguments, words):
    net, prop = question("(>= Y_0 2.01)")
    given = [{"NET": net, "PROPERTY": prop}.get(part, part) for part in arguments]
    code, out, err = run(monkeypatch, capsys, *given)
    assert code == 2
    assert out == ""
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_a_property_of_another_network(question, monkeypatch, capsys, tmp_path):
    net, _ = question("(>= Y_0 2.01)")
    other = tmp_path / "other.vnnlib"
    other.write_text(
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1))(assert (>= X_0 0))(assert (<= Y_0 0))"
    )
    code, _, err = run(monkeypatch, capsys, net, other)
    assert code == 2
    assert "1 inputs, the model takes 2" in err
