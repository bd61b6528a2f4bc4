"""The `fx` graph that grows while an ONNX network is read, and the values in it.

A value is a constant (a NumPy array) or live: an `fx` node with a shape-only tensor, whose batch size is the prime
`BATCH`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from holdfast.core.errors import UnsupportedError

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
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.size > 1024:
        return False
    return bool(((value != 0) & (value % BATCH == 0)).any())


def to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, order="C", copy=True))


#: Turns one operation into live values (or, for shapes, constants).
Converter = Callable[[Builder, Operation], Any]
