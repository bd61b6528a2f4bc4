"""Convolutions of one, two or three dimensions, with strides, padding, dilation and groups.

The adjoint of a strided convolution is the transposed one with the output padding that restores the input's size: rows
that the stride leaves out at the far edge get zeros there, not a smaller image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.inputs.bounds.affine import Signed, operands
from holdfast.inputs.bounds.operator import Call, Operand

aten = torch.ops.aten

_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Convolution(Signed):
    """w * x + b.  The event may or may not carry the traced batch axis of one."""

    targets = (
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv3d.default,
        aten.conv1d.padding,
        aten.conv2d.padding,
        aten.conv3d.padding,
    )

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.weight: Tensor = call.argument("weight")
        self.bias: Tensor | None = call.argument("bias")
        self.has_offset = self.bias is not None  # type: ignore[misc]
        self.axes = self.weight.ndim - 2
        self.last = range(-self.axes, 0)
        self.geometry = tuple(call.argument(name) for name in ("stride", "padding", "dilation", "groups"))

    @classmethod
    def objection(cls, call: Call) -> str | None:
        if operands(call) > 1 or not isinstance(call.argument("input"), Operand):
            return "a convolution whose weights depend on the input"
        return None

    @property
    def terms(self) -> int:
        window = self.weight[0, 0].numel()
        groups = self.geometry[3]
        return 4 + window * (self.weight.shape[1] + len(self.weight) // groups)

    def offset(self) -> Tensor:
        assert self.bias is not None
        return self.bias.reshape(-1, *(1,) * self.axes).expand(self.call.out_shape)

    def value(self, *inputs: Tensor) -> Tensor:
        return self._convolve(inputs[0], self.weight, self.bias)

    def absolute(self, *sizes: Tensor) -> Tensor:
        return self._convolve(sizes[0], self.weight.abs(), None)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        images = x.reshape(-1, *x.shape[-self.axes - 1 :])
        return self.call.target(images, weight, bias, *self.geometry).reshape(len(x), *self.call.out_shape)

    def adjoint(self, rows: Tensor) -> tuple[Tensor, ...]:
        stride, padding, dilation, groups = self._explicit()
        if padding is None:
            return super().adjoint(rows)
        inner, outer = self.call.in_shapes[0], self.call.out_shape
        window = self.weight.shape[2:]
        reached = [(outer[i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (window[i] - 1) + 1 for i in self.last]
        rest = [inner[i] - reached[i] for i in self.last]
        images = rows.reshape(-1, *outer[-self.axes - 1 :])
        pulled = _TRANSPOSED[self.axes](images, self.weight, None, stride, padding, rest, groups, dilation)
        return (pulled.reshape(*rows.shape[:2], *inner),)

    def _explicit(self) -> tuple[list[int], list[int] | None, list[int], int]:
        """Stride, padding, dilation, groups with one number an axis; padding None when it is not symmetric."""
        stride, padding, dilation, groups = self.geometry
        stride, dilation = (list(part) * (self.axes // len(part)) for part in (stride, dilation))
        if padding == "valid":
            return stride, [0] * self.axes, dilation, groups
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, self.weight.shape[2:])]
            symmetric = all(t % 2 == 0 for t in total)
            return stride, [t // 2 for t in total] if symmetric else None, dilation, groups
        return stride, list(padding) * (self.axes // len(padding)), dilation, groups


class TransposedConvolution(Signed):
    """The transposed convolution; its adjoint comes from automatic differentiation."""

    targets = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.has_offset = call.argument("bias") is not None  # type: ignore[misc]

    @classmethod
    def objection(cls, call: Call) -> str | None:
        return Convolution.objection(call)

    def absolute(self, *sizes: Tensor) -> Tensor:
        weight = self.call.argument("weight")
        geometry = [self.call.argument(n) for n in ("stride", "padding", "output_padding", "groups", "dilation")]
        axes = weight.ndim - 2
        images = sizes[0].reshape(-1, *sizes[0].shape[-axes - 1 :])
        moved = self.call.target(images, weight.abs(), None, *geometry)
        return moved.reshape(len(sizes[0]), *self.call.out_shape)
