"""ONNX files become torch modules that compute the same numbers, with gradients and a free batch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.core.errors import UnsupportedError
from holdfast.subject.onnx_graph import load_onnx

onnx = pytest.importorskip("onnx")


def shared_nets() -> list[Path]:
    places = [Path(os.environ["HOLDFAST_DATA"])] if "HOLDFAST_DATA" in os.environ else []
    places.append(Path(__file__).resolve().parents[3] / "shared" / "data")
    found = next((place / "vnncomp" for place in places if (place / "vnncomp").is_dir()), None)
    return [] if found is None else sorted(found.glob("*/nets/*.onnx.gz"))


NETS = shared_nets()


@pytest.mark.skipif(not NETS, reason="the verification networks are not on this machine (HOLDFAST_DATA)")
@pytest.mark.parametrize("path", NETS, ids=lambda path: path.name.split(".")[0])
def test_agrees_with_the_recorded_outputs(path):
    reference = np.load(path.parents[1] / "reference_io.npz")
    name = path.name.removesuffix(".onnx.gz")
    x, y = reference[f"{name}__x"], reference[f"{name}__y"]
    network = load_onnx(path)
    batch = torch.from_numpy(x.astype(np.float32)).reshape(len(x), *network.input_shape).requires_grad_()
    ours = network(batch)
    np.testing.assert_allclose(ours.detach().numpy(), y.reshape(len(x), -1), rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(ours.sum(), batch)
    assert torch.isfinite(gradient).all()


def node(kind: str, inputs: list[str], **attributes):
    return onnx.helper.make_node(kind, inputs, ["out"], **attributes)


def write_network(path: Path, nodes, constants, shape, opset: int, outputs=("out",)) -> Path:
    """An ONNX file with the input "x" of shape (1, *shape), or of free batch when shape begins with None."""
    helper = onnx.helper
    free = shape[0] is None
    sizes = ["batch", *shape[1:]] if free else [1, *shape]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


#: Name -> (node, constants, shape of one example, opset).
OPERATORS = {
    "gemm": (node("Gemm", ["x", "w", "b"], alpha=0.5, beta=2.0), {"w": floats(6, 4), "b": floats(4)}, (6,), 13),
    "gemm transposed": (node("Gemm", ["x", "w"], transB=1), {"w": floats(4, 6)}, (6,), 13),
    "matmul": (node("MatMul", ["x", "w"]), {"w": floats(6, 4)}, (3, 6), 13),
    "matmul from the left": (node("MatMul", ["w", "x"]), {"w": floats(2, 3)}, (3, 6), 13),
    "constant minus input": (node("Sub", ["w", "x"]), {"w": np.float32(1.5).reshape(1, 1)}, (6,), 13),
    "divided by channel": (node("Div", ["x", "w"]), {"w": floats(3, 1, 1) + 3}, (3, 4, 4), 13),
    "power": (node("Pow", ["x", "w"]), {"w": np.float32(2.0)}, (6,), 13),
    "conv": (
        node("Conv", ["x", "w", "b"], strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2], group=2),
        {"w": floats(4, 2, 3, 2), "b": floats(4)},
        (4, 9, 8),
        13,
    ),
    "conv same upper": (
        node("Conv", ["x", "w"], auto_pad="SAME_UPPER", strides=[2, 2]),
        {"w": floats(2, 3, 4, 3)},
        (3, 7, 8),
        13,
    ),
    "conv same lower": (node("Conv", ["x", "w"], auto_pad="SAME_LOWER"), {"w": floats(2, 3, 4)}, (3, 7), 13),
    "transposed conv": (
        node("ConvTranspose", ["x", "w"], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0]),
        {"w": floats(3, 2, 3, 3)},
        (3, 4, 4),
        13,
    ),
    "max pool": (
        node("MaxPool", ["x"], kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1]),
        {},
        (2, 7, 7),
        13,
    ),
    "max pool ceil": (node("MaxPool", ["x"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), {}, (2, 8, 8), 13),
    "average pool": (
        node("AveragePool", ["x"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        {},
        (2, 7, 7),
        13,
    ),
    "average pool counting": (
        node("AveragePool", ["x"], kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1),
        {},
        (2, 5, 5),
        13,
    ),
    "global average": (node("GlobalAveragePool", ["x"]), {}, (3, 5, 4), 13),
    "global max": (node("GlobalMaxPool", ["x"]), {}, (3, 5, 4), 13),
    "batch norm": (
        node("BatchNormalization", ["x", "s", "b", "m", "v"], epsilon=0.01),
        {"s": floats(3), "b": floats(3), "m": floats(3), "v": floats(3) ** 2 + 0.1},
        (3, 4, 4),
        13,
    ),
    "instance norm": (node("InstanceNormalization", ["x", "s", "b"]), {"s": floats(3), "b": floats(3)}, (3, 4, 4), 13),
    "layer norm": (
        node("LayerNormalization", ["x", "s", "b"], axis=-2),
        {"s": floats(4, 5), "b": floats(4, 5)},
        (3, 4, 5),
        17,
    ),
    "softmax": (node("Softmax", ["x"], axis=1), {}, (3, 5), 13),
    "softmax of old": (node("Softmax", ["x"], axis=1), {}, (3, 5), 11),
    "leaky relu": (node("LeakyRelu", ["x"], alpha=0.2), {}, (6,), 13),
    "prelu": (node("PRelu", ["x", "s"]), {"s": floats(3, 1, 1)}, (3, 2, 2), 13),
    "elu": (node("Elu", ["x"], alpha=0.7), {}, (6,), 13),
    "selu": (node("Selu", ["x"]), {}, (6,), 13),
    "celu": (node("Celu", ["x"], alpha=0.7), {}, (6,), 13),
    "hard sigmoid": (node("HardSigmoid", ["x"], alpha=0.3), {}, (6,), 13),
    "hard swish": (node("HardSwish", ["x"]), {}, (6,), 14),
    "softplus": (node("Softplus", ["x"]), {}, (6,), 13),
    "erf": (node("Erf", ["x"]), {}, (6,), 13),
    "gelu": (node("Gelu", ["x"], approximate="tanh"), {}, (6,), 20),
    "clip": (node("Clip", ["x", "l", "h"]), {"l": np.float32(-0.3), "h": np.float32(0.4)}, (6,), 13),
    "clip below": (node("Clip", ["x", "l"]), {"l": np.float32(-0.3)}, (6,), 13),
    "clip of old": (node("Clip", ["x"], min=-0.1, max=0.2), {}, (6,), 9),
    "flatten": (node("Flatten", ["x"]), {}, (2, 3, 2), 13),
    "reshape with batch": (node("Reshape", ["x", "s"]), {"s": ints(1, 2, 6)}, (3, 4), 13),
    "reshape open": (node("Reshape", ["x", "s"]), {"s": ints(-1, 2, 6)}, (3, 4), 13),
    "reshape keeping": (node("Reshape", ["x", "s"]), {"s": ints(0, -1)}, (3, 4), 13),
    "transpose": (node("Transpose", ["x"], perm=[0, 2, 3, 1]), {}, (2, 3, 4), 13),
    "squeeze": (node("Squeeze", ["x", "a"]), {"a": ints(2)}, (3, 1, 4), 13),
    "unsqueeze of old": (node("Unsqueeze", ["x"], axes=[1, 4]), {}, (3, 4), 11),
    "concat with constant": (node("Concat", ["x", "c"], axis=1), {"c": floats(1, 2, 4)}, (3, 4), 13),
    "slice": (
        node("Slice", ["x", "s", "e", "a", "t"]),
        {"s": ints(1, -1), "e": ints(2**63 - 1, -(2**63)), "a": ints(1, 2), "t": ints(2, -2)},
        (5, 6),
        13,
    ),
    "slice of old": (node("Slice", ["x"], starts=[1], ends=[-1], axes=[1]), {}, (5, 6), 9),
    "gather one": (node("Gather", ["x", "i"], axis=2), {"i": ints(-1)[0]}, (3, 4), 13),
    "gather several": (node("Gather", ["x", "i"], axis=1), {"i": ints(2, 0, -1, 1).reshape(2, 2)}, (3, 4), 13),
    "pad": (node("Pad", ["x", "p", "v"]), {"p": ints(0, 0, 1, 0, 0, 2), "v": np.float32(0.5)}, (3, 4), 13),
    "pad reflected": (node("Pad", ["x", "p"], mode="reflect"), {"p": ints(0, 0, 1, 2, 0, 0, 2, 1)}, (2, 5, 5), 13),
    "pad by edge of old": (node("Pad", ["x"], mode="edge", pads=[0, 0, 1, 0, 0, 1]), {}, (2, 5), 9),
    "expand": (node("Expand", ["x", "s"]), {"s": ints(1, 3, 4)}, (1, 4), 13),
    "tile": (node("Tile", ["x", "r"]), {"r": ints(1, 2, 3)}, (2, 3), 13),
    "mean": (node("ReduceMean", ["x"], axes=[1, -1], keepdims=0), {}, (2, 3, 4), 13),
    "mean by input": (node("ReduceMean", ["x", "a"]), {"a": ints(2)}, (2, 3, 4), 18),
    "sum": (node("ReduceSum", ["x", "a"], keepdims=1), {"a": ints(1)}, (2, 3), 13),
    "largest": (node("ReduceMax", ["x"], axes=[1]), {}, (2, 3), 13),
    "norm": (node("ReduceL2", ["x"], axes=[1]), {}, (5, 3), 13),
    "log of sum": (node("ReduceLogSumExp", ["x"], axes=[1]), {}, (5, 3), 13),
    "maximum with constant": (node("Max", ["x", "c"]), {"c": floats(6)}, (6,), 13),
    "sum of three": (node("Sum", ["x", "c", "x"]), {"c": floats(6)}, (6,), 13),
    "resize nearest": (
        node(
            "Resize", ["x", "", "s"], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        ),
        {"s": np.array([1, 1, 2, 3], np.float32)},
        (2, 3, 3),
        13,
    ),
    "resize linear": (
        node("Resize", ["x", "", "", "z"], mode="linear", coordinate_transformation_mode="half_pixel"),
        {"z": ints(1, 2, 6, 5)},
        (2, 3, 4),
        13,
    ),
    "depth to space": (node("DepthToSpace", ["x"], blocksize=2, mode="DCR"), {}, (8, 3, 2), 13),
    "depth to space by column": (node("DepthToSpace", ["x"], blocksize=2, mode="CRD"), {}, (8, 3, 2), 13),
    "space to depth": (node("SpaceToDepth", ["x"], blocksize=2), {}, (2, 4, 6), 13),
    "einsum": (node("Einsum", ["x", "w"], equation="bij,jk->bik"), {"w": floats(4, 2)}, (3, 4), 13),
    "sign": (node("Sign", ["x"]), {}, (6,), 13),
}


@pytest.mark.parametrize("name", OPERATORS, ids=lambda name: name.replace(" ", "-"))
def test_operator_agrees_with_onnxruntime_and_frees_the_batch(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    operator, constants, shape, opset = OPERATORS[name]
    path = write_network(tmp_path / "n.onnx", [operator], constants, shape, opset)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(str(path), options)
    x = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
    expected = np.concatenate([session.run(None, {"x": part[None]})[0] for part in x])
    ours = load_onnx(path)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_layers_are_found_as_layers(tmp_path):
    nodes = [
        onnx.helper.make_node("Conv", ["x", "k"], ["a"]),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("Flatten", ["b"], ["c"]),
        onnx.helper.make_node("MatMul", ["c", "w"], ["d"]),
        onnx.helper.make_node("Add", ["d", "v"], ["out"]),
    ]
    constants = {"k": floats(2, 1, 3, 3), "w": floats(8, 5), "v": floats(5)}
    network = load_onnx(write_network(tmp_path / "n.onnx", nodes, constants, (1, 4, 4), 13))
    kinds = [type(network.get_submodule(part.target)) for part in network.graph.nodes if part.op == "call_module"]
    assert kinds == [torch.nn.Conv2d, torch.nn.ReLU, torch.nn.Flatten, torch.nn.Linear]
    linear = next(part for part in network.children() if isinstance(part, torch.nn.Linear))
    np.testing.assert_array_equal(linear.bias.numpy(), constants["v"])


def test_product_that_is_used_twice_keeps_its_own_value(tmp_path):
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["d"]),
        onnx.helper.make_node("Add", ["d", "v"], ["e"]),
        onnx.helper.make_node("Mul", ["d", "e"], ["out"]),
    ]
    constants = {"w": floats(4, 5), "v": floats(5)}
    network = load_onnx(write_network(tmp_path / "n.onnx", nodes, constants, (4,), 13))
    x = torch.from_numpy(floats(3, 4))
    product = x @ torch.from_numpy(constants["w"])
    torch.testing.assert_close(network(x), product * (product + torch.from_numpy(constants["v"])))


def test_chain_of_shapes_becomes_the_batch_at_run_time(tmp_path):
    helper = onnx.helper
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["out"]),
    ]
    constants = {"zero": ints(0)[0], "axis": ints(0), "rest": ints(2, -1)}
    network = load_onnx(write_network(tmp_path / "n.onnx", nodes, constants, (None, 4, 3), 13))
    for batch in (1, 2, 7):
        x = torch.from_numpy(floats(batch, 4, 3))
        assert torch.equal(network(x), x.reshape(batch, 2, 6))
    program = torch.export.export(network, (torch.rand(3, 4, 3),), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert program.module()(torch.rand(5, 4, 3)).shape == (5, 2, 6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
def test_transformer_exported_by_torch(tmp_path, free):
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mark = torch.nn.Parameter(torch.rand(1, 1, 16))
            layer = torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, activation="gelu")
            self.encoder = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

        def forward(self, x):
            return self.encoder(torch.cat([self.mark.expand(x.shape[0], -1, -1), x], 1))[:, 0]

    model, path = Attention().eval(), tmp_path / "t.onnx"
    axes = {"x": {0: "n"}} if free else None
    torch.onnx.export(
        model, (torch.rand(1, 5, 16),), str(path), dynamo=False, dynamic_axes=axes, input_names=["x"], opset_version=17
    )
    x = torch.rand(4, 5, 16, requires_grad=True)
    ours = load_onnx(path)(x)
    torch.testing.assert_close(ours, model(x), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(ours.sum(), x)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("operator", "shape", "words"),
    [
        (node("NonZero", ["x"]), (4,), "NonZero"),
        (node("ReduceMean", ["x"], axes=[0]), (None, 4), "runs over the batch"),
        (node("Gelu", ["x"], domain="com.microsoft"), (4,), "com.microsoft"),
    ],
)
def test_what_cannot_be_converted_is_named(tmp_path, operator, shape, words):
    path = write_network(tmp_path / "n.onnx", [operator], {}, shape, 13)
    with pytest.raises(UnsupportedError, match=words):
        load_onnx(path)
