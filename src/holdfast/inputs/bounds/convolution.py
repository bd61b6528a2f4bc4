"""Convolutions of one, two or three dimensions, with strides, padding, dilation and groups.

The adjoint of a strided convolution is the transposed one with the output padding that restores the input's size: rows
that the stride leaves out at the far edge get zeros there, not a smaller image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.inputs.bounds.affine import Signed, operands
from holdfast.inputs.bounds.operator import Call, Operand
from holdfast.inputs.bounds.patches import Patches, Phases
from holdfast.inputs.bounds.rows import Rows

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
        self._phased: Tensor | None = None
        self._matrices: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}
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

    def adjoint(self, rows: Tensor) -> tuple[Rows, ...]:
        """A transposed convolution; of a strided one, as `Phases`."""
        stride, padding, *_ = self._explicit()
        if padding is None:
            return super().adjoint(rows)
        inner = self.call.in_shapes[0]
        images = rows.reshape(-1, *self.call.out_shape[-self.axes - 1 :])
        if len(inner) == 4 and self._has_phases and images.dtype == torch.float32:
            images = images.contiguous(memory_format=torch.channels_last)
            phases = F.conv2d(images, self._by_phase(stride[0]), padding=self._reach(stride[0])).permute(0, 2, 3, 1)
            values = phases.reshape(*rows.shape[:2], *phases.shape[1:])
            return (Phases(values, stride[0], (padding[0], padding[1]), (inner[-2], inner[-1])),)
        pulled = self._transposed(images, tuple(inner[-self.axes :]), padding)
        return (pulled.reshape(*rows.shape[:2], *inner),)

    def adjoint_patches(self, patches: Patches) -> tuple[Patches, ...] | None:
        stride, padding, dilation, groups = self._explicit()
        if padding is None or groups != 1 or self.axes != 2 or len(self.call.in_shapes[0]) != 4:
            return None
        values, kernel = patches.values, self.weight.shape[2:]
        grown = tuple((patches.window[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1))
        if self._has_phases and values.dtype == torch.float32:
            phases = F.conv2d(values.flatten(0, 1), self._by_phase(stride[0]), padding=self._reach(stride[0]))
            pulled = F.pixel_shuffle(phases, stride[0])[..., : grown[0], : grown[1]]
        else:
            pulled = self._transposed(values.flatten(0, 1), grown, [0, 0])
        return (self._moved(patches.top, patches.left, pulled.reshape(*values.shape[:2], *pulled.shape[1:])),)

    @property
    def _has_phases(self) -> bool:
        """Whether the adjoint is a plain convolution but for the order of pixels."""
        stride, _, dilation, groups = self._explicit()
        return self.axes == 2 and groups == 1 and stride[0] == stride[1] > 1 and dilation == [1, 1]

    def _reach(self, stride: int) -> list[int]:
        """How many further squares of side `stride` the kernel touches along each axis."""
        return [-(-size // stride) - 1 for size in self.weight.shape[2:]]

    def _by_phase(self, stride: int) -> Tensor:
        """Weights of the plain convolution that gives the adjoint sorted by phase, one output channel a phase.

        Output pixel stride * t + a collects input pixel i times kernel entry a + stride * (t - i).
        """
        if self._phased is None:
            reach = self._reach(stride)
            parts = []
            for above in range(stride):
                for left in range(stride):
                    part = self.weight[:, :, above::stride, left::stride]
                    missing = [reach[i] + 1 - part.shape[2 + i] for i in (0, 1)]
                    parts.append(F.pad(part, (0, missing[1], 0, missing[0])).transpose(0, 1).flip(2, 3))
            self._phased = torch.stack(parts, 1).flatten(0, 1)
        return self._phased

    def _transposed(self, images: Tensor, size: tuple[int, ...], padding: list[int]) -> Tensor:
        """Adjoint of the convolution on images (batch, channels, *outer) -> (batch, channels, *size)."""
        stride, _, dilation, groups = self._explicit()
        if self._worth_a_matrix(images, size):
            matrix = self._matrix(tuple(images.shape[1:]), size, padding)
            return (images.flatten(1) @ matrix).reshape(len(images), -1, *size)
        if images.dtype == torch.float64 and images.device.type == "cpu":
            # The transposed convolution has no fast kernel there; the gradient of the forward one has.
            shape = images.new_empty(1).expand(len(images), self.weight.shape[1] * groups, *size)
            wanted = [True, False, False]
            return aten.convolution_backward(
                images, shape, self.weight, None, stride, padding, dilation, False, [0] * self.axes, groups, wanted
            )[0]
        return self._plain(images, size, padding)

    def _worth_a_matrix(self, images: Tensor, size: tuple[int, ...]) -> bool:
        """Whether a dense product, which multiplies by zeros too, still beats the convolution's kernels."""
        stride, _, _, groups = self._explicit()
        slow = 3 if images.dtype == torch.float64 else 8 if max(stride) > 1 else 2
        waste = math.prod(size) / self.weight.shape[2:].numel()
        return groups == 1 and waste <= slow and len(images) >= 2 * images[0].numel()

    def _plain(self, images: Tensor, size: tuple[int, ...], padding: list[int]) -> Tensor:
        stride, _, dilation, groups = self._explicit()
        outer, kernel = images.shape[2:], self.weight.shape[2:]
        reached = [
            (outer[i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + 1 for i in range(self.axes)
        ]
        rest = [size[i] - reached[i] for i in range(self.axes)]
        return _TRANSPOSED[self.axes](images, self.weight, None, stride, padding, rest, groups, dilation)

    def _matrix(self, outer: tuple[int, ...], size: tuple[int, ...], padding: list[int]) -> Tensor:
        """The adjoint as a matrix, (entries of one image, entries of the result); worth it where it is nearly full."""
        key = (outer, size)
        if key not in self._matrices:
            entries = math.prod(outer)
            units = torch.eye(entries, dtype=self.weight.dtype, device=self.weight.device).reshape(entries, *outer)
            self._matrices[key] = self._plain(units, size, padding).flatten(1)
        return self._matrices[key]

    def unit_rows(self, index: Tensor) -> Rows | None:
        _, padding, dilation, groups = self._explicit()
        plain = padding is not None and groups == 1 and self.axes == 2 and len(self.call.in_shapes[0]) == 4
        if not plain or dilation != [1, 1]:
            return None
        height, width = self.call.out_shape[-2:]
        channel, place = index // (height * width), index % (height * width)
        return self._moved(place // width, place % width, self.weight[channel])

    def _moved(self, top: Tensor, left: Tensor, values: Tensor) -> Patches:
        """Windows on the input that belong to windows with these corners on the output."""
        stride, padding, _, _ = self._explicit()
        assert padding is not None
        height, width = self.call.in_shapes[0][-2:]
        corners = top * stride[0] - padding[0], left * stride[1] - padding[1]
        return Patches(values, *corners, (height, width)).masked()

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
