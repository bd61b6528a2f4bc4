"""ONNX files as plain torch modules with gradients.

`load_onnx` turns an inference graph into a `torch.fx.GraphModule` of ordinary layers (`nn.Linear`, `nn.Conv2d`,
`nn.ReLU`, ...) and functions, so that whatever reads torch models (attacks, bound propagation, `torch.export`) reads it
too.

Every value of the graph is either a constant (a NumPy array) or live (an `fx` node with its shape).  Shapes are found
by running each layer on a shape-only tensor whose batch size is the prime `BATCH`: a size that is a multiple of it
stands for the batch, so chains of Shape, Gather, Mul and Concat fold into constants and come out again as `x.size(0)
* k`.
A network exported with a fixed batch (usually 1) is freed of it by asking where in memory the batch lies.  Nodes whose
inputs are all constant are evaluated by ONNX's own reference implementation.  Operators are in `onnx_layers` and
`onnx_functions`.
"""

from __future__ import annotations

import gzip
import operator
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from holdfast.core.errors import InputError, MissingDependency, UnsupportedError
from holdfast.core.seeds import torch_generator

#: Stands for the batch size while shapes are worked out; a prime no layer has as its width.
BATCH = 1_000_003


@dataclass(frozen=True)
class Live:
    """A value that depends on the input: its `fx` node and a shape-only tensor."""

    node: fx.Node
    meta: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.meta.shape)


Value = Live | np.ndarray


@dataclass(frozen=True)
class Operation:
    """One ONNX node as its converter sees it; an optional input that was left out is None."""

    kind: str
    name: str
    inputs: tuple[Value | None, ...]
    outputs: int
    attributes: dict[str, Any]
    opset: int

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def live(self, position: int = 0) -> Live:
        """The input at `position`, which must depend on the network's input."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if not isinstance(value, Live):
            raise self.unsupported(f"input {position} is not computed from the network's input")
        return value

    def constant(self, position: int) -> np.ndarray | None:
        """The constant input at `position`, None when it was left out."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(value, Live):
            raise self.unsupported(f"input {position} must be constant")
        return value

    def setting(self, name: str, position: int) -> Any:
        """What newer opsets pass as a constant input and older ones as an attribute; None when neither is there."""
        given = self.constant(position)
        return self.attributes.get(name) if given is None else given.tolist()

    def unsupported(self, why: str) -> UnsupportedError:
        return UnsupportedError(f"ONNX operator {self.kind} ({self.name or 'unnamed'}): {why}")


class Builder:
    """Grows the `fx` graph; converters call `layer`, `call` and `attach`, and get live values with their shapes."""

    def __init__(self, declared_batch: int | None) -> None:
        self.declared_batch = declared_batch
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.input: Live | None = None
        self._size: fx.Node | None = None

    def placeholder(self, shape: tuple[int, ...]) -> Live:
        self.input = Live(self.graph.placeholder("x"), torch.empty(shape, device="meta"))
        return self.input

    def layer(self, kind: str, module: nn.Module, value: Live) -> Live:
        """Apply a module (put in evaluation mode, without gradients of its parameters)."""
        module = module.eval().requires_grad_(False)
        name = f"{kind.lower()}_{sum(1 for _ in self.root.children())}"
        self.root.add_module(name, module)
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        meta = torch.func.functional_call(module, {key: t.to("meta") for key, t in tensors.items()}, (value.meta,))
        return Live(self.graph.call_module(name, (value.node,)), meta)

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Live:
        """Apply a function; live values among the arguments (also inside lists) are passed on as nodes."""
        meta = function(*_map(arguments, lambda v: v.meta), **_map(keywords, lambda v: v.meta))
        return Live(self.graph.call_function(function, *self._nodes(arguments, keywords)), meta)

    def method(self, name: str, value: Live, *arguments: Any, **keywords: Any) -> Live:
        """Call a method of the tensor `value`."""
        meta = getattr(value.meta, name)(*_map(arguments, lambda v: v.meta), **keywords)
        return Live(self.graph.call_method(name, *self._nodes((value, *arguments), keywords)), meta)

    def _nodes(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positional = tuple(_free(argument, self) for argument in _map(arguments, lambda v: v.node))
        return positional, {key: _free(value, self) for key, value in _map(keywords, lambda v: v.node).items()}

    def attach(self, array: np.ndarray) -> Live:
        """A constant as a buffer of the module."""
        name = f"constant_{sum(1 for _ in self.root.buffers(recurse=False))}"
        tensor = to_tensor(array)
        self.root.register_buffer(name, tensor)
        return Live(self.graph.get_attr(name), tensor.to("meta"))

    def as_live(self, value: Value) -> Live:
        return value if isinstance(value, Live) else self.attach(value)

    def batch_times(self, factor: int) -> fx.Node:
        """The size `factor * batch` at run time."""
        assert self.input is not None
        if self._size is None:
            with self.graph.inserting_after(self.input.node):
                self._size = self.graph.call_method("size", (self.input.node, 0))
        return self._size if factor == 1 else self.graph.call_function(operator.mul, (self._size, factor))


def _map(value: Any, change: Callable[[Live], Any]) -> Any:
    if isinstance(value, Live):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map(part, change) for part in value)
    if isinstance(value, dict):
        return {name: _map(part, change) for name, part in value.items()}
    return value


def _free(value: Any, builder: Builder) -> Any:
    """Sizes that stand for the batch become the batch at run time."""
    if isinstance(value, (list, tuple)):
        return type(value)(_free(part, builder) for part in value)
    if isinstance(value, int) and not isinstance(value, bool) and stands_for_batch(value):
        return builder.batch_times(value // BATCH)
    return value


def stands_for_batch(size: int) -> bool:
    return size != 0 and size % BATCH == 0


def carries_batch(value: Value | None) -> bool:
    """Whether an integer constant holds a size that stands for the batch."""
    integer = isinstance(value, np.ndarray) and value.dtype.kind in "iu" and 0 < value.size <= 1024
    return bool(integer and ((value != 0) & (value % BATCH == 0)).any())


def to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, order="C", copy=True))


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
        return torch.vmap(lambda example: self.network(example[None])[0])(x)


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
    from google.protobuf.message import DecodeError

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

    from holdfast.subject.onnx_functions import FUNCTIONS, SHAPE_ARITHMETIC
    from holdfast.subject.onnx_layers import LAYERS, fuse_bias

    converters = {**FUNCTIONS, **LAYERS}
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
    x = torch.rand((3, *module.input_shape), generator=torch_generator(0, "onnx"))
    try:
        together, alone = module(x), torch.cat([module(part) for part in x.split(1)])
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise UnsupportedError(f"{path}: the converted network fails on a batch of three ({why})") from error
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise UnsupportedError(
            f"{path}: examples depend on one another; export the network with a free batch dimension"
        )
