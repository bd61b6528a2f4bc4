"""Capture: a model as a list of operators in topological order.

`torch.export` traces the model on one example, so whatever Python it is written in (in-place operations, `view`,
functional calls, nested modules, several uses of one value) arrives as calls of ATen operators.  Nodes that do not
depend on the input are constants; they are evaluated anew from the model's present parameters by `Graph.bind`, in the
dtype asked for, so that bounds follow training and are differentiable with respect to weights.

Control flow is the one the example took: a model whose Python branches on input *values* is refused by the tracer, one
whose branches depend on anything else must be captured again when that changes.

Raises UnsupportedError naming every operator that has no rule and the line it comes from.
"""

from __future__ import annotations

import operator as python_operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_aggregate, map_arg

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.bounds.decompose import table as decompositions
from holdfast.inputs.bounds.normalise import Standardised, standardisation
from holdfast.inputs.bounds.operator import Call, Operand, Operator
from holdfast.inputs.bounds.product import EntryProduct
from holdfast.inputs.bounds.softmax import Share, share, shared_differences
from holdfast.inputs.bounds.table import operator_for

#: Layers that compute something else, or something random, in training mode.
_NOISY = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)

_NOTHING: Mapping[Any, Callable[..., Any]] = MappingProxyType({})

#: Calls that take nothing but the shape and type of their argument.
_OF_SHAPE = tuple(
    getattr(torch.ops.aten, name).default
    for name in ("new_full", "new_zeros", "new_ones", "new_empty", "full_like", "zeros_like", "ones_like", "empty_like")
)


@dataclass(frozen=True)
class Bound:
    """One node ready for bounding: an operator with its constants, and the positions of its inputs in the list."""

    operator: Operator
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    name: str

    @property
    def entrywise(self) -> bool:
        """Whether it applies a curve to every entry of one value."""
        return self.operator.diagonal and not self.operator.affine and len(self.inputs) == 1


@dataclass(frozen=True)
class Step:
    """One traced call that depends on the input; `inputs` are positions of earlier steps, 0 being the model's input."""

    node: Node
    operator: Callable[[Call], Operator]
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    target: Callable[..., Any]
    item: int | None


@dataclass(frozen=True)
class Graph:
    """A captured model.  `steps[k]` produces value k + 1; value 0 is the input; `output` is the position of the result.

    `shape` is the shape of one example and `out_shape` that of the result, both with the traced batch axis of one.
    """

    model: nn.Module
    steps: tuple[Step, ...]
    shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    output: int
    constant_nodes: tuple[Node, ...]
    sources: Mapping[str, tuple[str, str]]
    lifted: Mapping[str, Tensor]

    def __reduce__(self) -> tuple[Any, ...]:
        # A trace does not travel between processes; the model does, and is traced again on arrival.
        return capture, (self.model, torch.zeros(self.shape))

    @property
    def outputs(self) -> int:
        """Number of output entries of one example."""
        return int(torch.Size(self.out_shape[1:]).numel())

    def bind(self, dtype: torch.dtype, device: torch.device) -> list[Bound]:
        """Operators with the model's present parameters in `dtype` on `device`, in topological order."""
        constants = self._constants(dtype, device)
        bound = []
        for step in self.steps:
            position = {parent: Operand(i) for i, parent in enumerate(step.node.meta["perturbed"])}

            def substitute(node: Node, position: Mapping[Node, Operand] = position) -> Any:
                return position[node] if node in position else constants[node.name]

            args, kwargs = (map_arg(step.node.meta[part], substitute) for part in ("call_args", "call_kwargs"))
            shapes = tuple(self._shape_of(parent) for parent in step.inputs)
            kwargs = {name: value for name, value in kwargs.items() if name not in ("dtype", "memory_format", "device")}
            call = Call(
                step.target, tuple(args), kwargs, shapes, step.shape, dtype, device, step.item, _place(step.node)
            )
            bound.append(Bound(step.operator(call), step.inputs, step.shape, step.node.name))
        return bound

    def _shape_of(self, position: int) -> tuple[int, ...]:
        return self.shape if position == 0 else self.steps[position - 1].shape

    def _constants(self, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        tensors: dict[str, Tensor] = dict(self.model.named_buffers(remove_duplicate=False))
        tensors.update(self.model.named_parameters(remove_duplicate=False))
        values: dict[str, Any] = {}
        for name, (kind, target) in self.sources.items():
            tensor = tensors[target] if kind == "model" else self.lifted[target]
            values[name] = _cast(tensor, dtype, device)
        for node in self.constant_nodes:
            args: Any = map_arg(node.args, lambda n: values[n.name] if n.name in values else n.meta["val"].shape)
            if node.target in _OF_SHAPE:
                first = args[0]
                shape = first.shape if isinstance(first, Tensor) else first
                args = (torch.empty(shape, dtype=dtype, device=device), *args[1:])
            kwargs: Any = map_arg(node.kwargs, lambda n: values[n.name])
            function: Any = node.target
            values[node.name] = map_aggregate(function(*args, **kwargs), lambda v: _cast(v, dtype, device))
        return values

    def not_finite(self) -> list[str]:
        """Names of parameters and buffers that hold NaN or infinity."""
        tensors: dict[str, Tensor] = {**dict(self.model.named_buffers()), **self.lifted}
        tensors.update(self.model.named_parameters())
        return [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]

    @cached_property
    def longest_sum(self) -> int:
        """Longest sum of products in the network plus one for every node (see `rounding`)."""
        bound = self.bind(torch.float64, torch.device("cpu"))
        longest = max((node.operator.terms for node in bound), default=0)
        return longest + torch.Size(self.shape).numel() + len(bound) + 32


def _cast(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    return value


def capture(
    model: nn.Module, example: Float[Tensor, "batch *shape"], also: Mapping[Any, Callable[..., Any]] = _NOTHING
) -> Graph:
    """Trace `model` on the first of `example`.

    `also` has further calls to be written as others: a call to a function that makes the same of its arguments.

    Raises UnsupportedError when an operator has no bounding rule or the model cannot be traced, InputError when a
    layer is in training mode.
    """
    graph, problems = _capture(model, example, also)
    if problems:
        training = [problem for problem in problems if "training mode" in problem]
        if training:
            raise InputError(f"the model is not ready to be bounded: {'; '.join(training)}")
        raise UnsupportedError(f"no bounds for this model: {'; '.join(problems)}")
    assert graph is not None
    return graph


def unsupported(model: nn.Module, example: Float[Tensor, "batch *shape"] | None = None) -> list[str]:
    """Every operator of `model` that has no bounding rule, each with its source line; empty when bounds will work.

    Without an example the model's `input_shape` says what inputs look like; InputError when it has none.
    """
    if example is None:
        shape = getattr(model, "input_shape", None)
        if shape is None:
            raise InputError("the model does not say what its inputs look like; pass an example, unsupported(model, x)")
        parameter = next(model.parameters(), torch.zeros(()))
        example = torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)
    return _capture(model, example)[1]


def _capture(
    model: nn.Module, example: Tensor, also: Mapping[Any, Callable[..., Any]] = _NOTHING
) -> tuple[Graph | None, list[str]]:
    noisy = [name for name, module in model.named_modules() if module.training and isinstance(module, _NOISY)]
    if noisy:
        return None, [f"{', '.join(noisy)} in training mode; call model.eval()"]
    one = example[:1].detach()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the tracer's own, about its internals
        try:
            program = torch.export.export(model, (one,), strict=False).run_decompositions({**decompositions(), **also})
        except Exception as error:  # noqa: BLE001 - whatever the tracer's reason, the caller is told it
            return None, [f"the model cannot be traced ({type(error).__name__}: {_first_line(error)})"]
    return _read(model, program, one)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def _read(model: nn.Module, program: Any, one: Tensor) -> tuple[Graph | None, list[str]]:
    signature = program.graph_signature
    sources = {name: ("model", target) for name, target in signature.inputs_to_parameters.items()}
    sources |= {name: ("model", target) for name, target in signature.inputs_to_buffers.items()}
    sources |= {name: ("lifted", target) for name, target in signature.inputs_to_lifted_tensor_constants.items()}
    outputs = [node for node in signature.user_outputs if isinstance(node, str)]
    if len(outputs) != 1 or len(signature.user_inputs) != 1:
        return None, [f"the model must map one tensor to one tensor, it gives {len(signature.user_outputs)} results"]
    # Buffers that are not saved with the state are constants of the program under the same names.
    known = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    sources = {name: (kind if target in known else "lifted", target) for name, (kind, target) in sources.items()}
    lifted = {target: program.constants[target] for kind, target in sources.values() if kind == "lifted"}

    reader = _Reader({})
    needed = _ancestors(program.graph, outputs[0])
    for node in program.graph.nodes:
        if node not in needed:
            continue
        if node.op == "placeholder":
            if node.name in signature.user_inputs:
                reader.position[node] = 0
        elif node.op == "call_function":
            reader.read(node)
    used = {name: source for name, source in sources.items() if any(node.name == name for node in needed)}
    result = next(node for node in program.graph.nodes if node.name == outputs[0])
    if result not in reader.position and not reader.problems:
        return None, ["the model's result does not depend on its input"]
    if reader.problems:
        return None, list(dict.fromkeys(reader.problems))
    steps, output = _with_users(reader.steps, reader.position[result])
    out_shape = tuple(one.shape) if output == 0 else steps[output - 1].shape
    return Graph(model, steps, tuple(one.shape), out_shape, output, tuple(reader.constants), used, lifted), []


def _with_users(steps: list[Step], output: int) -> tuple[tuple[Step, ...], int]:
    """The steps that the value at `output` depends on, renumbered, and its new position."""
    needed = {output}
    for position in range(output, 0, -1):
        if position in needed:
            needed.update(steps[position - 1].inputs)
    kept = sorted(needed - {0})
    place = {0: 0} | {old: new for new, old in enumerate(kept, 1)}
    chosen = (steps[old - 1] for old in kept)
    return tuple(replace(step, inputs=tuple(place[i] for i in step.inputs)) for step in chosen), place[output]


def _ancestors(graph: torch.fx.Graph, name: str) -> set[Node]:
    stack = [node for node in graph.nodes if node.name == name]
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return seen


class _Reader:
    """Sorts traced nodes into constants, steps and problems."""

    def __init__(self, position: dict[Node, int]) -> None:
        self.position = position
        self.steps: list[Step] = []
        self.constants: list[Node] = []
        self.problems: list[str] = []
        self._several: set[Node] = set()
        self._lost: set[Node] = set()

    def read(self, node: Node) -> None:
        parents = node.all_input_nodes
        if any(parent in self._lost for parent in parents):
            self._lost.add(node)
        elif node.target in _OF_SHAPE or not any(p in self.position or p in self._several for p in parents):
            self.constants.append(node)
        elif not isinstance(node.meta["val"], Tensor):
            self._several.add(node)  # results are taken one by one
        elif node.target is python_operator.getitem and parents[0] in self._several:
            self._step(node, parents[0], int(node.args[1]))  # type: ignore[arg-type]
        else:
            self._step(node, node, None)

    def _step(self, node: Node, called: Node, item: int | None) -> None:
        perturbed = [parent for parent in called.all_input_nodes if parent in self.position]
        shape = tuple(node.meta["val"].shape)
        node.meta |= {"perturbed": perturbed, "call_args": called.args, "call_kwargs": called.kwargs}
        operator, problem = operator_for(self._symbolic(node, called, item))
        if operator is None:
            self.problems.append(f"{_operator_name(called)}: {problem}{_place(called)}")
            self._lost.add(node)
            return
        build: Callable[[Call], Operator] = operator
        target: Any = called.target
        found, differences = standardisation(called), shared_differences(called)
        if found is not None and operator is EntryProduct:
            build = partial(Standardised, axes=found[0], eps=found[1])
        elif differences in self.position:
            # Taken whole, the steps in between are left without users.
            build, target, perturbed = Share, share, [differences]
            node.meta |= {"perturbed": perturbed, "call_args": (differences,), "call_kwargs": {}}
        inputs = tuple(self.position[parent] for parent in perturbed)
        self.steps.append(Step(node, build, inputs, shape, target, item))
        self.position[node] = len(self.steps)

    def _symbolic(self, node: Node, called: Node, item: int | None) -> Call:
        """The call as traced: shapes and options, but no values."""
        perturbed: list[Node] = node.meta["perturbed"]

        def symbolic(parent: Node) -> Any:
            return Operand(perturbed.index(parent)) if parent in self.position else parent.meta["val"]

        args, kwargs = map_arg(called.args, symbolic), map_arg(called.kwargs, symbolic)
        shapes = tuple(tuple(parent.meta["val"].shape) for parent in perturbed)
        cpu = torch.device("cpu")
        shape = tuple(node.meta["val"].shape)
        target: Any = called.target
        return Call(target, tuple(args), dict(kwargs), shapes, shape, torch.float32, cpu, item)


def _operator_name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]


def _place(node: Node) -> str:
    """A phrase like "at file:line" of the user's own code that made the call, as far as the tracer knows it."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    if not frames:
        return ""
    own = [frame for frame in frames if "/torch/" not in frame[0]] or frames
    return f" at {own[-1][0]}:{own[-1][1]}"
