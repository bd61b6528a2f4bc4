"""ONNX operators that have weights or are layers of `torch.nn`: each converter gives an ordinary layer.

A matrix product with a constant becomes `nn.Linear` (with the addition of a constant row that follows it as its bias),
a convolution `nn.Conv1d/2d/3d`, and so on, so that methods that look for layers find them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.subject.onnx_builder import Builder, Converter, Live, Operation, Value, to_tensor

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOLS: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
MEAN_POOLS: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
BATCH_NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True)
class FusedBias:
    """An Add of a constant row right behind a matrix product: its place, the row, and the value it makes."""

    place: int
    bias: np.ndarray
    output: str


def fuse_bias(nodes: Sequence[Any], place: int, values: dict[str, Value], kept: Sequence[str]) -> FusedBias | None:
    """The Add that makes a MatMul by a constant an affine layer, if its product is used nowhere else."""
    node = nodes[place]
    weight = values.get(node.input[1]) if node.op_type == "MatMul" else None
    if not isinstance(weight, np.ndarray) or weight.ndim != 2 or node.output[0] in kept:
        return None
    if isinstance(values.get(node.input[0]), np.ndarray):
        return None
    product = node.output[0]
    users = [k for k, other in enumerate(nodes) if product in other.input]
    if len(users) != 1 or nodes[users[0]].op_type != "Add":
        return None
    add = nodes[users[0]]
    bias = values.get(add.input[0] if add.input[1] == product else add.input[1])
    if isinstance(bias, np.ndarray) and bias.shape == (weight.shape[1],):
        return FusedBias(users[0], bias, add.output[0])
    return None


def _parameter(array: np.ndarray) -> nn.Parameter:
    return nn.Parameter(to_tensor(array), requires_grad=False)


def linear(build: Builder, op: Operation, x: Live, weight: np.ndarray, bias: np.ndarray | None) -> Live:
    """nn.Linear from a weight (outputs, inputs)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(np.broadcast_to(bias, (weight.shape[0],)).astype(weight.dtype))
    return build.layer("linear", layer, x)


def matmul(build: Builder, op: Operation) -> Live:
    first, second = op.inputs[0], op.inputs[1]
    if isinstance(first, Live) and isinstance(second, np.ndarray) and second.ndim == 2:
        return linear(build, op, first, np.ascontiguousarray(second.T), op.constant(2))
    assert first is not None
    assert second is not None
    return build.call(torch.matmul, build.as_live(first), build.as_live(second))


def gemm(build: Builder, op: Operation) -> Live:
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    first, second = op.inputs[0], op.inputs[1]
    third = op.inputs[2] if len(op.inputs) > 2 else None
    row = third is None or (isinstance(third, np.ndarray) and (third.ndim < 2 or third.shape[0] == 1))
    if isinstance(first, Live) and isinstance(second, np.ndarray) and row and not op.attribute("transA", 0):
        weight = second if op.attribute("transB", 0) else np.ascontiguousarray(second.T)
        bias = None if third is None else np.asarray(third).reshape(-1) * np.asarray(beta, weight.dtype)
        return linear(build, op, first, weight * np.asarray(alpha, weight.dtype), bias)
    assert first is not None
    assert second is not None
    a, b = build.as_live(first), build.as_live(second)
    if op.attribute("transA", 0):
        a = build.call(torch.transpose, a, 0, 1)
    if op.attribute("transB", 0):
        b = build.call(torch.transpose, b, 0, 1)
    product = build.call(torch.matmul, a, b)
    if alpha != 1.0:
        product = build.call(torch.mul, product, alpha)
    if third is None:
        return product
    addend = build.as_live(third)
    return build.call(torch.add, product, addend if beta == 1.0 else build.call(torch.mul, addend, beta))


def _windows(op: Operation, x: Live, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, padding before and padding after of a sliding window, `auto_pad` worked out."""
    rank = len(kernel)
    strides = list(op.attribute("strides", [1] * rank))
    dilations = list(op.attribute("dilations", [1] * rank))
    automatic = op.attribute("auto_pad", "NOTSET")
    if automatic in ("NOTSET", ""):
        pads = list(op.attribute("pads", [0] * 2 * rank))
        return strides, dilations, pads[:rank], pads[rank:]
    if automatic == "VALID":
        return strides, dilations, [0] * rank, [0] * rank
    before, after = [], []
    for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        reach = dilation * (width - 1) + 1
        total = max(0, (-(-size // stride) - 1) * stride + reach - size)
        less, more = total // 2, total - total // 2
        before.append(more if automatic == "SAME_LOWER" else less)
        after.append(less if automatic == "SAME_LOWER" else more)
    return strides, dilations, before, after


def _padded(build: Builder, x: Live, before: Sequence[int], after: Sequence[int], value: float) -> Live:
    """`x` with its last dimensions padded by a constant."""
    ends = [end for pair in zip(reversed(before), reversed(after), strict=True) for end in pair]
    return build.call(F.pad, x, ends, "constant", value)


def convolution(build: Builder, op: Operation) -> Live:
    x, weight = op.live(0), op.constant(1)
    assert weight is not None
    bias, kernel, groups = op.constant(2), weight.shape[2:], op.attribute("group", 1)
    if len(kernel) not in CONVOLUTIONS:
        raise op.unsupported(f"it has {len(kernel)} spatial dimensions; one to three were wanted")
    strides, dilations, before, after = _windows(op, x, kernel)
    if before != after:
        x, before = _padded(build, x, before, after, 0.0), [0] * len(kernel)
    layer = CONVOLUTIONS[len(kernel)](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(kernel),
        stride=tuple(strides),
        padding=tuple(before),
        dilation=tuple(dilations),
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return build.layer("conv", layer, x)


def transposed_convolution(build: Builder, op: Operation) -> Live:
    x, weight = op.live(0), op.constant(1)
    assert weight is not None
    bias, kernel, groups = op.constant(2), weight.shape[2:], op.attribute("group", 1)
    if len(kernel) not in TRANSPOSED or op.attribute("output_shape") or op.attribute("auto_pad", "NOTSET") != "NOTSET":
        raise op.unsupported("only explicit padding and one to three spatial dimensions are converted")
    strides, dilations, before, after = _windows(op, x, kernel)
    if before != after:
        raise op.unsupported(f"its padding {before} before differs from {after} after")
    layer = TRANSPOSED[len(kernel)](
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(kernel),
        stride=tuple(strides),
        padding=tuple(before),
        output_padding=tuple(op.attribute("output_padding", [0] * len(kernel))),
        groups=groups,
        bias=bias is not None,
        dilation=tuple(dilations),
        device="meta",
    )
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return build.layer("convtranspose", layer, x)


def max_pool(build: Builder, op: Operation) -> Live:
    x, kernel = op.live(), op.attribute("kernel_shape")
    if op.outputs > 1 or op.attribute("storage_order", 0):
        raise op.unsupported("it also gives the places of its maxima")
    strides, dilations, before, after = _windows(op, x, kernel)
    if before != after or any(2 * pad > width for pad, width in zip(before, kernel, strict=True)):
        x, before = _padded(build, x, before, after, -torch.inf), [0] * len(kernel)
    layer = MAX_POOLS[len(kernel)](
        tuple(kernel),
        tuple(strides),
        tuple(before),
        dilation=tuple(dilations),
        ceil_mode=bool(op.attribute("ceil_mode", 0)),
    )
    return build.layer("maxpool", layer, x)


def average_pool(build: Builder, op: Operation) -> Live:
    x, kernel = op.live(), op.attribute("kernel_shape")
    strides, dilations, before, after = _windows(op, x, kernel)
    counted = bool(op.attribute("count_include_pad", 0)) or not (any(before) or any(after))
    if any(dilation != 1 for dilation in dilations):
        raise op.unsupported("it is dilated")
    if before != after or any(2 * pad > width for pad, width in zip(before, kernel, strict=True)):
        if not counted:
            raise op.unsupported(f"its padding {before} before differs from {after} after, and padding is not counted")
        x, before = _padded(build, x, before, after, 0.0), [0] * len(kernel)
    layer = AVERAGE_POOLS[len(kernel)](
        tuple(kernel),
        tuple(strides),
        tuple(before),
        ceil_mode=bool(op.attribute("ceil_mode", 0)),
        count_include_pad=counted,
    )
    return build.layer("avgpool", layer, x)


def global_average_pool(build: Builder, op: Operation) -> Live:
    x = op.live()
    return build.layer("avgpool", MEAN_POOLS[len(x.shape) - 2](1), x)


def global_max_pool(build: Builder, op: Operation) -> Live:
    x = op.live()
    return build.call(torch.amax, x, tuple(range(2, len(x.shape))), True)


def batch_norm(build: Builder, op: Operation) -> Live:
    x = op.live()
    scale, shift, mean, variance = (op.constant(k) for k in range(1, 5))
    if op.attribute("training_mode", 0) or op.attribute("is_test", 1) == 0:
        raise op.unsupported("it is in training mode; export the network in evaluation mode")
    assert scale is not None
    layer = BATCH_NORMS[len(x.shape)](len(scale), eps=op.attribute("epsilon", 1e-5), device="meta")
    layer.weight, layer.bias = _parameter(scale), _parameter(np.asarray(shift))
    layer.running_mean, layer.running_var = to_tensor(np.asarray(mean)), to_tensor(np.asarray(variance))
    layer.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return build.layer("batchnorm", layer, x)


def instance_norm(build: Builder, op: Operation) -> Live:
    scale, shift = op.constant(1), op.constant(2)
    assert scale is not None
    layer = nn.GroupNorm(len(scale), len(scale), eps=op.attribute("epsilon", 1e-5), device="meta")
    layer.weight, layer.bias = _parameter(scale), _parameter(np.asarray(shift))
    return build.layer("instancenorm", layer, op.live())


def layer_norm(build: Builder, op: Operation) -> Live:
    x, scale, shift = op.live(), op.constant(1), op.constant(2)
    axis = op.attribute("axis", -1) % len(x.shape)
    shape = x.shape[axis:]
    if axis == 0 or op.outputs > 1 or scale is None:
        raise op.unsupported("only normalisation over trailing dimensions, with one output, is converted")
    layer = nn.LayerNorm(shape, eps=op.attribute("epsilon", 1e-5), bias=shift is not None, device="meta")
    layer.weight = _parameter(np.broadcast_to(scale, shape))
    if shift is not None:
        layer.bias = _parameter(np.broadcast_to(shift, shape))
    return build.layer("layernorm", layer, x)


def group_norm(build: Builder, op: Operation) -> Live:
    x, scale, shift, groups = op.live(), op.constant(1), op.constant(2), op.attribute("num_groups")
    channels = x.shape[1]
    if scale is None or shift is None or len(scale) != channels:
        raise op.unsupported("only one scale a channel is converted")
    layer = nn.GroupNorm(groups, channels, eps=op.attribute("epsilon", 1e-5), device="meta")
    layer.weight, layer.bias = _parameter(scale), _parameter(shift)
    return build.layer("groupnorm", layer, x)


def local_response_norm(build: Builder, op: Operation) -> Live:
    layer = nn.LocalResponseNorm(
        op.attribute("size"), op.attribute("alpha", 1e-4), op.attribute("beta", 0.75), op.attribute("bias", 1.0)
    )
    return build.layer("lrn", layer, op.live())


def prelu(build: Builder, op: Operation) -> Live:
    x, slope = op.live(0), op.constant(1)
    assert slope is not None
    per_channel = slope.ndim == len(x.shape) - 1 and slope.size == slope.shape[0]
    if slope.size != 1 and not per_channel:
        negative = build.call(torch.mul, build.call(torch.clamp, x, max=0.0), build.attach(slope))
        return build.call(torch.add, build.call(F.relu, x), negative)
    layer = nn.PReLU(slope.size, device="meta")
    layer.weight = _parameter(slope.reshape(-1))
    return build.layer("prelu", layer, x)


def flatten(build: Builder, op: Operation) -> Live:
    x = op.live()
    axis = op.attribute("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    if axis != 1:
        raise op.unsupported(f"it keeps {axis} dimensions; only the batch is kept")
    return build.layer("flatten", nn.Flatten(), x)


def _activation(make: Callable[[Operation], nn.Module]) -> Converter:
    def convert(build: Builder, op: Operation) -> Live:
        return build.layer(op.kind, make(op), op.live())

    return convert


def _softmax(kind: Callable[..., nn.Module]) -> Converter:
    """Before opset 13 the sum runs over every dimension from `axis` on; since then over `axis` alone."""

    def convert(build: Builder, op: Operation) -> Live:
        x = op.live()
        axis = op.attribute("axis", -1 if op.opset >= 13 else 1) % len(x.shape)
        if op.opset >= 13 or axis == len(x.shape) - 1:
            return build.layer(op.kind, kind(dim=axis), x)
        flat = build.layer(op.kind, kind(dim=axis), build.call(torch.flatten, x, axis))
        return build.method("unflatten", flat, axis, x.shape[axis:])

    return convert


LAYERS: dict[str, Converter] = {
    "MatMul": matmul,
    "Gemm": gemm,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "GroupNormalization": group_norm,
    "LRN": local_response_norm,
    "PRelu": prelu,
    "Flatten": flatten,
    "Softmax": _softmax(nn.Softmax),
    "LogSoftmax": _softmax(nn.LogSoftmax),
    "Relu": _activation(lambda op: nn.ReLU()),
    "LeakyRelu": _activation(lambda op: nn.LeakyReLU(op.attribute("alpha", 0.01))),
    "Elu": _activation(lambda op: nn.ELU(op.attribute("alpha", 1.0))),
    "Celu": _activation(lambda op: nn.CELU(op.attribute("alpha", 1.0))),
    "Sigmoid": _activation(lambda op: nn.Sigmoid()),
    "Tanh": _activation(lambda op: nn.Tanh()),
    "Softplus": _activation(lambda op: nn.Softplus()),
    "Softsign": _activation(lambda op: nn.Softsign()),
    "HardSwish": _activation(lambda op: nn.Hardswish()),
    "Mish": _activation(lambda op: nn.Mish()),
    "Gelu": _activation(lambda op: nn.GELU(op.attribute("approximate", "none"))),
    "ThresholdedRelu": _activation(lambda op: nn.Threshold(op.attribute("alpha", 1.0), 0.0)),
}
