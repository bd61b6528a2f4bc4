"""ONNX operators without weights: arithmetic, comparison, reductions.

Sizes among a converter's constants may stand for the batch (see `onnx_graph`); `Builder.call` turns them into the batch
at run time.  What would mix examples (a reduction over the batch) is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.subject.onnx_builder import Builder, Converter, Live, Operation, Value, stands_for_batch


def _operand(build: Builder, value: Value | None, rank: int) -> Any:
    """A constant with one element as a number (it broadcasts all the same), any other as a buffer."""
    assert value is not None
    if isinstance(value, np.ndarray) and value.size == 1 and value.ndim <= rank:
        return value.item()
    return build.as_live(value)


def _rank(op: Operation) -> int:
    return max(len(value.shape) for value in op.inputs if isinstance(value, Live))


def _binary(function: Callable[[Any, Any], Any]) -> Converter:
    def convert(build: Builder, op: Operation) -> Live:
        rank = _rank(op)
        first, second = (_operand(build, value, rank) for value in op.inputs)
        return build.call(function, first, second)

    return convert


def divide(build: Builder, op: Operation) -> Live:
    first, second = (_operand(build, value, _rank(op)) for value in op.inputs)
    live = first if isinstance(first, Live) else second
    if live.meta.dtype.is_floating_point:
        return build.call(operator.truediv, first, second)
    first = first if isinstance(first, Live) else build.attach(np.asarray(op.inputs[0]))
    return build.call(torch.div, first, second, rounding_mode="trunc")


def _pairwise(function: Callable[[Any, Any], Any]) -> Converter:
    """An operator of any number of inputs, folded from the left."""

    def convert(build: Builder, op: Operation) -> Live:
        values = [build.as_live(value) for value in op.inputs if value is not None]
        total = values[0]
        for value in values[1:]:
            total = build.call(function, total, value)
        return total

    return convert


def mean_of(build: Builder, op: Operation) -> Live:
    total = _pairwise(operator.add)(build, op)
    assert isinstance(total, Live)
    return build.call(operator.truediv, total, len(op.inputs))


def _unary(function: Callable[..., Any]) -> Converter:
    def convert(build: Builder, op: Operation) -> Live:
        return build.call(function, op.live())

    return convert


def same(build: Builder, op: Operation) -> Live:
    """Identity, and dropout of a network that is not being trained."""
    if op.outputs > 1:
        raise op.unsupported("its mask is used")
    return op.live()


def clip(build: Builder, op: Operation) -> Live:
    low, high = (op.setting(name, place) for name, place in (("min", 1), ("max", 2)))
    if low is None and high is None:
        return op.live()
    if (low, high) == (0.0, 6.0):
        return build.layer("relu6", nn.ReLU6(), op.live())
    return build.call(torch.clamp, op.live(), low, high)


def hard_sigmoid(build: Builder, op: Operation) -> Live:
    scaled = build.call(operator.mul, op.live(), op.attribute("alpha", 0.2))
    return build.call(torch.clamp, build.call(operator.add, scaled, op.attribute("beta", 0.5)), 0.0, 1.0)


def selu(build: Builder, op: Operation) -> Live:
    x = op.live()
    alpha, gamma = op.attribute("alpha", 1.6732632423543772), op.attribute("gamma", 1.0507009873554805)
    negative = build.call(operator.mul, build.call(torch.expm1, build.call(torch.clamp, x, max=0.0)), alpha)
    return build.call(operator.mul, build.call(operator.add, build.call(F.relu, x), negative), gamma)


def where(build: Builder, op: Operation) -> Live:
    condition, first, second = (build.as_live(value) for value in op.inputs if value is not None)
    return build.call(torch.where, condition, first, second)


def _axes(op: Operation, x: Live) -> tuple[int, ...]:
    axes = op.setting("axes", 1)
    if not axes:
        axes = () if op.attribute("noop_with_empty_axes", 0) else range(len(x.shape))
    axes = tuple(sorted(axis % len(x.shape) for axis in axes))
    if any(stands_for_batch(x.shape[axis]) for axis in axes):
        raise op.unsupported("it runs over the batch, so examples would depend on one another")
    return axes


def _reduction(function: Callable[..., Any]) -> Converter:
    """`function(x, dims, keepdim)`."""

    def convert(build: Builder, op: Operation) -> Live:
        x = op.live()
        axes = _axes(op, x)
        return build.call(function, x, axes, bool(op.attribute("keepdims", 1))) if axes else x

    return convert


def _norm(order: int) -> Converter:
    def convert(build: Builder, op: Operation) -> Live:
        x = op.live()
        return build.call(torch.linalg.vector_norm, x, order, _axes(op, x), bool(op.attribute("keepdims", 1)))

    return convert


def sum_of_squares(build: Builder, op: Operation) -> Live:
    x = op.live()
    return build.call(torch.sum, build.call(torch.square, x), _axes(op, x), bool(op.attribute("keepdims", 1)))


def arg_max(build: Builder, op: Operation) -> Live:
    x, axis = op.live(), op.attribute("axis", 0)
    if stands_for_batch(x.shape[axis]):
        raise op.unsupported("it runs over the batch, so examples would depend on one another")
    return build.call(torch.argmax, x, axis, bool(op.attribute("keepdims", 1)))


def einsum(build: Builder, op: Operation) -> Live:
    return build.call(torch.einsum, op.attribute("equation"), *(build.as_live(v) for v in op.inputs if v is not None))


FUNCTIONS: dict[str, Converter] = {
    "Identity": same,
    "Dropout": same,
    "Add": _binary(operator.add),
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": divide,
    "Pow": _binary(torch.pow),
    "Mod": _binary(operator.mod),
    "Equal": _binary(operator.eq),
    "Greater": _binary(operator.gt),
    "Less": _binary(operator.lt),
    "GreaterOrEqual": _binary(operator.ge),
    "LessOrEqual": _binary(operator.le),
    "And": _pairwise(torch.logical_and),
    "Or": _pairwise(torch.logical_or),
    "Not": _unary(torch.logical_not),
    "Min": _pairwise(torch.minimum),
    "Max": _pairwise(torch.maximum),
    "Sum": _pairwise(operator.add),
    "Mean": mean_of,
    "Neg": _unary(operator.neg),
    "Abs": _unary(torch.abs),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Sqrt": _unary(torch.sqrt),
    "Reciprocal": _unary(torch.reciprocal),
    "Erf": _unary(torch.erf),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Sign": _unary(torch.sign),
    "Floor": _unary(torch.floor),
    "Ceil": _unary(torch.ceil),
    "Round": _unary(torch.round),
    "Clip": clip,
    "HardSigmoid": hard_sigmoid,
    "Selu": selu,
    "Where": where,
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMin": _reduction(torch.amin),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceL1": _norm(1),
    "ReduceL2": _norm(2),
    "ReduceSumSquare": sum_of_squares,
    "ArgMax": arg_max,
    "Einsum": einsum,
}
