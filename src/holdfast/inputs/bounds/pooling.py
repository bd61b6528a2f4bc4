"""Max pooling.

With j* the input of a window that has the largest lower bound (of several, as after a ReLU, the one with the largest
upper bound): the output is at least x_j*.  It equals x_j* when no other input of the window can exceed l_j*, and is
otherwise at most the largest upper bound of the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holdfast.inputs.bounds.operator import Box, Call, Operator, Pulled, Relaxation
from holdfast.inputs.bounds.patches import Patches, Phases

aten = torch.ops.aten


@dataclass(frozen=True)
class Selected:
    """Output o is at least input `winner[o]` and at most `slope[o]` * that input + `constant[o]`."""

    winner: Tensor  # (examples, outputs) flat positions among the inputs
    slot: Tensor  # (examples, outputs) its place in the window
    slope: Tensor  # (examples, outputs) 1 where the window is settled, else 0
    constant: Tensor  # (examples, outputs) 0 where it is settled
    ceiling: Tensor  # (examples, *out event) largest |input| of every window
    in_shape: tuple[int, ...]
    side: int | None = None  # of the windows where these are squares that tile an image

    def pull(self, rows: Tensor, examples: slice) -> Pulled:
        flat = rows.flatten(2)
        above = flat.clamp(max=0)
        carried = torch.addcmul(flat - above, above, self.slope[examples][:, None])
        bias = (above @ self.constant[examples][..., None]).squeeze(-1)
        if self.side is not None:
            slot = self.slot[examples].reshape(-1, 1, *rows.shape[2:])
            return (_spread(carried.reshape(rows.shape), slot, self.side, self.in_shape[-2:]),), bias
        places = self.winner[examples][:, None].expand_as(carried)
        inner = torch.zeros(*rows.shape[:2], math.prod(self.in_shape), dtype=rows.dtype, device=rows.device)
        return (inner.scatter_add(2, places, carried).reshape(*rows.shape[:2], *self.in_shape),), bias

    def pull_patches(self, patches: Patches | Phases, examples: slice) -> Pulled | None:
        if self.side is None or isinstance(patches, Phases):
            return None
        values, height, width = patches.values, *patches.window
        slope, constant, slot = (
            patches.seen(part[examples].reshape(-1, values.shape[2], *patches.plane))
            for part in (self.slope, self.constant, self.slot)
        )
        above = values.clamp(max=0)
        carried = torch.addcmul(values - above, above, slope)
        pulled = replace(
            patches,
            values=_spread(carried, slot, self.side, (height * self.side, width * self.side)),
            top=patches.top * self.side,
            left=patches.left * self.side,
            plane=(self.in_shape[-2], self.in_shape[-1]),
        )
        return (pulled,), (above * constant).flatten(2).sum(-1)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return self.ceiling


def _spread(values: Tensor, slot: Tensor, side: int, plane: tuple[int, ...]) -> Tensor:
    """(..., height, width) -> (..., *plane): every entry at place `slot` of its own square, zero elsewhere."""
    whole = values.new_zeros(*values.shape[:-2], *plane)
    height, width = (side * size for size in values.shape[-2:])
    for place in range(side**2):
        part = values * (slot == place)
        whole[..., place // side : height : side, place % side : width : side] = part
    return whole


class MaxPool(Operator):
    """Largest entry of every window, with any stride, padding, dilation, ceil mode, or adaptive windows."""

    targets = (
        aten.max_pool1d.default,
        aten.max_pool2d.default,
        aten.max_pool3d.default,
        aten.max_pool1d_with_indices.default,
        aten.max_pool2d_with_indices.default,
        aten.max_pool3d_with_indices.default,
        aten.adaptive_max_pool1d.default,
        aten.adaptive_max_pool2d.default,
    )
    #: Side of the windows where they are squares that tile an image.
    side: int | None = None

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.axes = next(axes for axes in (1, 2, 3) if f"pool{axes}d" in str(call.target))
        self.table = self._table().to(call.device)
        self.absent = self.table < 0
        self.table = self.table.clamp(min=0)
        self.side = self._side()

    def _side(self) -> int | None:
        if self.axes != 2 or "adaptive" in str(self.call.target) or bool(self.absent.any()):
            return None
        kernel, stride, padding, dilation = (
            set(self.call.argument(name) or default) for name, default in self._options()
        )
        plain = len(kernel) == 1 and (stride or kernel) == kernel and padding == {0} and dilation == {1}
        return kernel.pop() if plain and len(self.call.in_shapes[0]) == 4 else None

    def _table(self) -> Tensor:
        """(outputs, window) flat input positions of every window, -1 where a window reaches over the edge."""
        inner, outer = self.call.in_shapes[0][-self.axes :], self.call.out_shape[-self.axes :]
        planes = math.prod(self.call.in_shapes[0][: -self.axes])
        flat = torch.zeros((1,) * 2 * self.axes, dtype=torch.long)
        missing = torch.zeros_like(flat, dtype=torch.bool)
        for axis, (size, outputs) in enumerate(zip(inner, outer)):
            places = self._places(axis, size, outputs)
            shape = [1] * (2 * self.axes)
            shape[axis], shape[self.axes + axis] = places.shape
            flat = flat * size + places.reshape(shape)
            missing = missing | (places < 0).reshape(shape)
        flat = torch.where(missing, -1, flat).reshape(math.prod(outer), -1)
        shift = torch.arange(planes).reshape(-1, 1, 1) * math.prod(inner)
        return torch.where(flat < 0, -1, flat + shift).reshape(planes * math.prod(outer), -1)

    def _places(self, axis: int, size: int, outputs: int) -> Tensor:
        """(outputs, window) input positions along one axis, -1 outside."""
        output = torch.arange(outputs)[:, None]
        if "adaptive" in str(self.call.target):
            first, last = output * size // outputs, -(-(output + 1) * size // outputs)
            places = first + torch.arange(int((last - first).max()))
            return torch.where(places < last, places, -1)
        kernel, stride, padding, dilation = (
            list(self.call.argument(name) or default) for name, default in self._options()
        )
        kernel, padding, dilation = (part * (self.axes // len(part)) for part in (kernel, padding, dilation))
        stride = stride * (self.axes // len(stride)) if stride else kernel
        places = output * stride[axis] - padding[axis] + torch.arange(kernel[axis]) * dilation[axis]
        return torch.where((places >= 0) & (places < size), places, -1)

    def _options(self) -> Sequence[tuple[str, list[int]]]:
        return (("kernel_size", []), ("stride", []), ("padding", [0]), ("dilation", [1]))

    @property
    def terms(self) -> int:
        return 8 + self.table.numel()

    def _windows(self, value: Tensor, absent: float = -math.inf) -> Tensor:
        return value.flatten(1)[:, self.table].masked_fill(self.absent, absent)

    def value(self, *inputs: Tensor) -> Tensor:
        return self._windows(inputs[0]).amax(-1).reshape(len(inputs[0]), *self.call.out_shape)

    def interval(self, *boxes: Box) -> Box:
        return Box(self.value(boxes[0].lower), self.value(boxes[0].upper))

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return torch.zeros(len(sizes[0]), *self.call.out_shape, dtype=sizes[0].dtype, device=sizes[0].device)

    def _contest(self, box: Box) -> tuple[Tensor, Tensor]:
        """Per window: the winner's slot, and which other slots could exceed the winner's lower bound."""
        lower, upper = self._windows(box.lower), self._windows(box.upper)
        # Lower bounds that differ by rounding only are ties.
        slack = upper.abs().amax(-1, keepdim=True) * torch.finfo(lower.dtype).eps ** 0.75
        tied = lower >= lower.amax(-1, keepdim=True) - slack
        slot = upper.masked_fill(~tied, -math.inf).argmax(-1, keepdim=True)
        rival = upper > lower.gather(2, slot)
        return slot, rival.scatter(2, slot, False)

    def wanted(self, *boxes: Box) -> Sequence[Tensor | None]:
        """Inputs that may decide a window that is still open."""
        slot, rival = self._contest(boxes[0])
        open_window = rival.any(-1, keepdim=True)
        marked = (rival.scatter(2, slot, True) & open_window).flatten(1)
        places = self.table.flatten().expand_as(marked)
        hits = torch.zeros_like(boxes[0].lower.flatten(1)).scatter_add(1, places, marked.to(boxes[0].lower))
        return [(hits > 0).reshape(boxes[0].lower.shape) & (boxes[0].lower < boxes[0].upper)]

    def relax(self, *boxes: Box, free: Tensor | None = None) -> Relaxation:
        box = boxes[0]
        slot, rival = self._contest(box)
        settled = ~rival.any(-1)
        winner = self.table.expand(len(slot), -1, -1).gather(2, slot).squeeze(-1)
        ceiling = self._windows(box.upper).amax(-1)
        largest = self._windows(box.magnitude, 0.0).amax(-1).reshape(len(slot), *self.call.out_shape)
        constant = torch.where(settled, 0.0, ceiling)
        settled = settled.to(box.lower)
        return Selected(winner, slot.squeeze(-1), settled, constant, largest, self.call.in_shapes[0], self.side)
