"""ONNX files as plain torch modules with gradients.

`load_onnx` turns an inference graph into a `torch.fx.GraphModule` of ordinary layers (`nn.Linear`, `nn.Conv2d`,
`nn.ReLU`, ...) and functions, so that whatever reads torch models (attacks, bound propagation, `torch.export`) reads it
too.

Every value of the graph is either a constant (a NumPy array) or live (an `fx` node with its shape).  Shapes are found
by running each layer on a shape-only tensor whose batch size is the prime `BATCH`: a size that is a multiple of it
stands for the batch, so chains of Shape, Gather, Mul and Concat fold into constants and come out again as `x.size(0)
* k`.
A network exported with a fixed batch (usually 1) is freed of it by asking where in memory the batch lies.  Nodes whose
inputs are all constant are evaluated by ONNX's own reference implementation.  Operators are in `onnx_layers`,
`onnx_functions` and `onnx_shapes`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from holdfast.core.errors import InputError, MissingDependency, UnsupportedError
from holdfast.core.seeds import torch_generator
from holdfast.subject.onnx_builder import BATCH, Builder, Live, Operation, Value, carries_batch
from holdfast.subject.onnx_functions import FUNCTIONS
from holdfast.subject.onnx_layers import LAYERS, fuse_bias
from holdfast.subject.onnx_shapes import SHAPE_ARITHMETIC, SHAPES


def load_onnx(path: str | Path) -> nn.Module:
    """The network in an ONNX file (gzip by its name) as a module: (batch, *input_shape) float32 to (batch, ...).

    The module carries `input_shape`, the shape of one example.  It is an `fx.GraphModule`, or, for a network exported
    with a batch of one that cannot be freed, an `OneByOne` around one.

    Raises
    ------
    InputError when the file cannot be read as ONNX; UnsupportedError naming the operator when the graph holds one that
    cannot be converted, or more than one input, or a batch that cannot be freed; MissingDependency without `onnx`.
    """
    model = read_onnx(path)
    try:
        module: nn.Module = _converted_graph(model, path, freed=True)
    except UnsupportedError:
        if _declared(_only_input(model, path), path)[1] != 1:
            raise
        module = OneByOne(_converted_graph(model, path, freed=False))
    _check_independence(module, path)
    return module


class OneByOne(nn.Module):
    """A network made for a batch of one, mapped over a batch (`torch.vmap`)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.input_shape = network.input_shape

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Outputs of every example, as the network gives them alone."""
        outputs: Tensor = torch.vmap(lambda example: self.network(example[None])[0])(x)
        return outputs


def _only_input(model: Any, path: str | Path) -> Any:
    initial = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initial]
    if len(inputs) != 1:
        raise UnsupportedError(f"{path}: the network has {len(inputs)} inputs; one was wanted")
    return inputs[0]


def _converted_graph(model: Any, path: str | Path, freed: bool) -> fx.GraphModule:
    """The graph for any batch (`freed`), or for a batch of one as it was exported."""
    graph, entry = model.graph, _only_input(model, path)
    shape, batch, kind = _declared(entry, path)
    builder = Builder(batch if freed else None)
    values: dict[str, Value] = {tensor.name: _array(tensor) for tensor in graph.initializer}
    values[entry.name] = _typed_input(builder, (BATCH if freed else 1, *shape), kind)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    _convert(builder, graph, values, opset)
    return _finish(builder, values.get(graph.output[0].name), shape, path)


def read_onnx(path: str | Path) -> Any:
    """The `onnx.ModelProto` in a file, local functions inlined.  Raises InputError when it is not one."""
    try:
        import onnx
    except ImportError as error:
        raise MissingDependency.of("onnx", "onnx", "reading an .onnx file") from error
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    path = Path(path)
    try:
        if path.suffix == ".gz":
            model = onnx.load_model_from_string(gzip.decompress(path.read_bytes()))
        else:
            model = onnx.load_model(str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (DecodeError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{path}: not a whole ONNX file ({error}); export or fetch it again") from error
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{path}: not an ONNX network (it has no nodes or no output)")
    if model.functions:
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
    return model


def _array(tensor: Any) -> np.ndarray:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor))


def _declared(value: Any, path: str | Path) -> tuple[tuple[int, ...], int | None, int]:
    """Shape of one example, fixed batch size or None, and element type of the network's input."""
    tensor = value.type.tensor_type
    sizes = [dimension.dim_value if dimension.dim_value > 0 else -1 for dimension in tensor.shape.dim]
    if not sizes:
        raise UnsupportedError(f"{path}: the input {value.name!r} has no batch dimension")
    if -1 in sizes[1:]:
        raise UnsupportedError(
            f"{path}: the input {value.name!r} leaves sizes open ({sizes[1:]}); export it with fixed ones"
        )
    return tuple(sizes[1:]), None if sizes[0] == -1 else sizes[0], tensor.elem_type


def _typed_input(builder: Builder, shape: tuple[int, ...], kind: int) -> Live:
    from onnx import TensorProto

    casts = {
        TensorProto.DOUBLE: torch.float64,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.INT64: torch.int64,
        TensorProto.INT32: torch.int32,
        TensorProto.UINT8: torch.uint8,
    }
    live = builder.placeholder(shape)
    if kind == TensorProto.FLOAT:
        return live
    if kind not in casts:
        raise UnsupportedError(f"the network takes inputs of ONNX element type {kind}; float32 was wanted")
    return builder.method("to", live, casts[kind])


def _convert(builder: Builder, graph: Any, values: dict[str, Value], opset: int) -> None:
    from onnx import helper

    converters = {**FUNCTIONS, **SHAPES, **LAYERS}
    skipped: set[int] = set()
    nodes = list(graph.node)
    for place, node in enumerate(nodes):
        if place in skipped:
            continue
        attributes = {a.name: _attribute(helper.get_attribute_value(a)) for a in node.attribute}
        inputs = tuple(values[name] if name else None for name in node.input)
        fused = fuse_bias(nodes, place, values, [output.name for output in graph.output])
        if fused is not None:
            skipped.add(fused.place)
            inputs, outputs = (*inputs, fused.bias), [fused.output]
        else:
            outputs = list(node.output)
        operation = Operation(node.op_type, node.name, inputs, len(outputs), attributes, opset)
        if node.domain not in ("", "ai.onnx"):
            raise operation.unsupported(
                f"it belongs to the domain {node.domain!r}; only standard operators are converted"
            )
        constant = not any(isinstance(value, Live) for value in inputs)
        if constant and (node.op_type in SHAPE_ARITHMETIC or not any(map(carries_batch, inputs))):
            results: Any = _folded(node, inputs, opset)
        elif node.op_type in converters:
            results = _converted(converters[node.op_type], builder, operation)
        else:
            raise operation.unsupported("it is not one of those that can be converted")
        values.update(zip(outputs, results if isinstance(results, tuple) else (results,), strict=False))


def _converted(converter: Callable[[Builder, Operation], Any], builder: Builder, operation: Operation) -> Any:
    try:
        return converter(builder, operation)
    except (RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, (UnsupportedError, InputError)):
            raise
        raise operation.unsupported(f"its shapes do not fit ({str(error).splitlines()[0]})") from error


def _attribute(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return _array(value) if type(value).__name__ == "TensorProto" else value


def _folded(node: Any, inputs: tuple[Value | None, ...], opset: int) -> tuple[np.ndarray, ...]:
    """A node whose inputs are all known, evaluated by ONNX's reference implementation."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.input if name]
    feeds = {name: value for name, value in zip(node.input, inputs, strict=False) if name}
    graph = helper.make_graph(
        [node],
        "constant",
        [
            helper.make_value_info(name, helper.make_tensor_type_proto(_kind(feeds[name]), None))
            for name in dict.fromkeys(names)
        ],
        [helper.make_empty_tensor_value_info(name) for name in node.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return tuple(np.asarray(value) for value in ReferenceEvaluator(model).run(None, feeds))


def _kind(value: Any) -> int:
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(value.dtype))


def _finish(builder: Builder, output: Value | None, shape: tuple[int, ...], path: str | Path) -> fx.GraphModule:
    if not isinstance(output, Live):
        raise UnsupportedError(f"{path}: the network's output does not depend on its input")
    assert builder.input is not None
    if not output.shape or output.shape[0] != builder.input.shape[0]:
        raise UnsupportedError(
            f"{path}: one row of output an example was wanted; the output has shape "
            f"{tuple('batch' if size == BATCH else size for size in output.shape)}: export it with a free batch "
            "dimension"
        )
    if output.meta.dtype != torch.float32 and output.meta.dtype.is_floating_point:
        output = builder.method("to", output, torch.float32)
    builder.graph.output(output.node)
    module = fx.GraphModule(builder.root, builder.graph, "OnnxNetwork")
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()
    module.input_shape = shape  # type: ignore[assignment]
    return module.eval()


@torch.no_grad()
def _check_independence(module: nn.Module, path: str | Path) -> None:
    """Three examples at once must give what they give alone: a batch frozen into the graph would show here."""
    shape: Any = module.input_shape
    x = torch.rand((3, *shape), generator=torch_generator(0, "onnx"))
    try:
        together, alone = module(x), torch.cat([module(part) for part in x.split(1)])
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise UnsupportedError(f"{path}: the converted network fails on a batch of three ({why})") from error
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise UnsupportedError(
            f"{path}: examples depend on one another; export the network with a free batch dimension"
        )
