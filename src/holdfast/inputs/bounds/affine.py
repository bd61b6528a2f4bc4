"""Affine operators: moving, averaging, scaling and adding entries, and products with constant matrices.

Where J has no negative entry (moves and averages) `Affine`'s end-by-end intervals are exact.  Where it has, intervals
are kept as centre c and radius r:  c' = J c + b,  r' = |J| r.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.inputs.bounds.operator import Affine, Box, Call, Operand, Pulled
from holdfast.inputs.bounds.patches import Patches
from holdfast.inputs.bounds.rows import Active, Columns, Rows, dense

aten = torch.ops.aten
Targets = tuple[Callable[..., Any], ...]


def operands(call: Call) -> int:
    """How many of a call's arguments are perturbed; a value used twice counts twice."""
    return sum(isinstance(part, Operand) for part in call.args)


class Reshape(Affine):
    """The same entries in the same order under another shape."""

    targets: ClassVar[Targets] = (
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
    )
    diagonal = True

    @property
    def terms(self) -> int:
        return 0

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(len(inputs[0]), *self.call.out_shape)

    def adjoint(self, rows: Tensor) -> tuple[Rows, ...]:
        return (rows.reshape(*rows.shape[:2], *self.call.in_shapes[0]),)

    def adjoint_patches(self, patches: Patches) -> tuple[Patches, ...] | None:
        return (patches,) if self.call.in_shapes[0] == self.call.out_shape else None


class Identity(Reshape):
    """Copies, casts between floating types, and dropout in evaluation mode."""

    targets: ClassVar[Targets] = (
        aten.clone.default,
        aten.contiguous.default,
        aten.alias.default,
        aten.detach.default,
        aten.lift_fresh_copy.default,
        aten.dropout.default,
        aten.feature_dropout.default,
        aten.alpha_dropout.default,
        aten._to_copy.default,
        aten.to.dtype,
    )

    @classmethod
    def objection(cls, call: Call) -> str | None:
        if "dropout" in str(call.target) and call.argument("train"):
            return "dropout in training mode; call model.eval()"
        wanted = call.argument("dtype") if "to" in str(call.target) else None
        if wanted is not None and not wanted.is_floating_point:
            return f"a conversion to {wanted}"
        return None


class Move(Affine):
    """Entries moved, dropped, repeated or joined; nothing is computed."""

    targets: ClassVar[Targets] = (
        aten.expand.default,
        aten.repeat.default,
        aten.cat.default,
        aten.stack.default,
        aten.gather.default,
        aten.index.Tensor,
        aten.slice_scatter.default,
        aten.select_scatter.default,
        aten.repeat_interleave.self_int,
        aten.upsample_nearest1d.vec,
        aten.upsample_nearest2d.vec,
        aten.unfold.default,
        aten.pad.default,
    )

    has_offset: ClassVar[bool] = True  # joined or overwritten constants

    @classmethod
    def objection(cls, call: Call) -> str | None:
        if call.target is aten.pad.default and call.argument("mode", "constant") == "constant":
            return "padding by a constant"
        if "index" in str(call.target) and any(isinstance(part, Operand) for part in call.args[1]):
            return "an index that depends on the input"
        return None


class Overwrite(Move):
    """An assignment `a[...] = b`: the entries of b in a's shape."""

    targets: ClassVar[Targets] = (aten.copy.default,)

    def __init__(self, call: Call) -> None:
        # The traced operator has no derivative; the same map written as an expansion has.
        super().__init__(replace(call, target=_overwritten, kwargs={}, args=call.args[:2]))


def _overwritten(old: Tensor, new: Tensor) -> Tensor:
    return new.expand(old.shape)


class Pick(Move):
    """Every input entry moved to at most one place."""

    targets: ClassVar[Targets] = (
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.movedim.int,
        aten.slice.Tensor,
        aten.select.int,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.chunk.default,
        aten.unbind.int,
        aten.flip.default,
        aten.roll.default,
        aten.pixel_shuffle.default,
        aten.pixel_unshuffle.default,
        aten.constant_pad_nd.default,
        aten.pad.default,
        aten.diagonal.default,
    )
    diagonal = True
    has_offset = False

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.has_offset = "pad" in str(call.target)  # type: ignore[misc]

    @classmethod
    def objection(cls, call: Call) -> str | None:
        if call.target is aten.pad.default and call.argument("mode", "constant") != "constant":
            return f"padding by {call.argument('mode')}"
        return None


class Average(Affine):
    """Sums and means with weights that are not negative."""

    targets: ClassVar[Targets] = (
        aten.sum.default,
        aten.sum.dim_IntList,
        aten.mean.default,
        aten.mean.dim,
        aten.avg_pool1d.default,
        aten.avg_pool2d.default,
        aten.avg_pool3d.default,
        aten.adaptive_avg_pool1d.default,
        aten.adaptive_avg_pool2d.default,
        aten.adaptive_avg_pool3d.default,
        aten._adaptive_avg_pool2d.default,
        aten.upsample_bilinear2d.vec,
        aten.cumsum.default,
    )


class Signed(Affine):
    """J with entries of both signs: centre and radius."""

    has_offset: ClassVar[bool] = True

    @abstractmethod
    def absolute(self, *sizes: Tensor) -> Tensor:
        """|J| sizes."""

    def interval(self, *boxes: Box) -> Box:
        centre = self.value(*((box.upper + box.lower) / 2 for box in boxes))
        radius = self.absolute(*((box.upper - box.lower) / 2 for box in boxes))
        return Box(centre - radius, centre + radius)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        size = self.absolute(*sizes)
        return size + self.offset().abs() if self.has_offset else size


class Scale(Signed):
    """Multiplication or division by constants, entry by entry, and negation."""

    targets: ClassVar[Targets] = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.neg.default)
    has_offset = False

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.diagonal = call.out_shape == call.in_shapes[0]  # type: ignore[misc]
        constant: Any = -1.0
        if call.target is not aten.neg.default:
            constant = next(part for part in call.args if not isinstance(part, Operand))
        self.constant = torch.as_tensor(constant, dtype=call.dtype, device=call.device)
        self.combine = torch.div if "div" in str(call.target) else torch.mul

    @classmethod
    def objection(cls, call: Call) -> str | None:
        if operands(call) == 2:
            return "a product or quotient of two perturbed values"
        if "div" in str(call.target) and not isinstance(call.args[0], Operand):
            return "a division by a perturbed value"
        return None

    @property
    def terms(self) -> int:
        return 4 + math.prod(self.call.out_shape) // max(1, math.prod(self.call.in_shapes[0]))

    def value(self, *inputs: Tensor) -> Tensor:
        return self.combine(self._lift(inputs[0]), self.constant)

    def absolute(self, *sizes: Tensor) -> Tensor:
        return self.combine(self._lift(sizes[0]), self.constant.abs())

    def adjoint(self, rows: Tensor) -> tuple[Rows, ...]:
        return (self.combine(rows, self.constant),) if self.diagonal else super().adjoint(rows)

    def adjoint_patches(self, patches: Patches) -> tuple[Patches, ...] | None:
        if not self.diagonal or self.constant.shape[-2:].numel() > 1:
            return None
        constant = self.constant.reshape(-1, 1, 1) if self.constant.ndim > 2 else self.constant
        return (replace(patches, values=self.combine(patches.values, constant)),)

    def _lift(self, value: Tensor) -> Tensor:
        # A constant of higher rank than the event would broadcast against the examples' axis.
        missing = max(0, self.constant.ndim - (value.ndim - 1))
        return value.reshape(len(value), *(1,) * missing, *value.shape[1:])


class Sum(Signed):
    """a + alpha b, a - alpha b and b - alpha a, where either may be constant."""

    targets: ClassVar[Targets] = (
        aten.add.Tensor,
        aten.add.Scalar,
        aten.sub.Tensor,
        aten.sub.Scalar,
        aten.rsub.Scalar,
        aten.rsub.Tensor,
    )

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        alpha = float(call.argument("alpha", 1))
        signs = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[str(call.target).split(".")[1]]
        placed = [(part.position, sign) for part, sign in zip(call.args, signs) if isinstance(part, Operand)]
        self.coefficients = [sum(s for p, s in placed if p == i) for i in range(len(call.in_shapes))]
        self.aligned = all(shape == call.out_shape for shape in call.in_shapes)
        self.has_offset = len(placed) == 1  # type: ignore[misc]
        self.diagonal = len(call.in_shapes) == 1 and self.aligned  # type: ignore[misc]

    @property
    def terms(self) -> int:
        return 4 + (0 if self.aligned else math.prod(self.call.out_shape))

    def absolute(self, *sizes: Tensor) -> Tensor:
        parts = [abs(weight) * size for weight, size in zip(self.coefficients, sizes)]
        if self.aligned:
            return sum(parts[1:], parts[0])
        rank = len(self.call.out_shape) + 1
        lifted = [p.reshape(len(p), *(1,) * (rank - p.ndim), *p.shape[1:]) for p in parts]
        return sum(lifted[1:], lifted[0]).expand(-1, *self.call.out_shape)

    def interval(self, *boxes: Box) -> Box:
        ends = [
            (box.lower, box.upper) if weight >= 0 else (box.upper, box.lower)
            for box, weight in zip(boxes, self.coefficients)
        ]
        return Box(self.value(*(low for low, _ in ends)), self.value(*(high for _, high in ends)))

    def adjoint(self, rows: Tensor) -> tuple[Rows, ...]:
        if not self.aligned:
            return super().adjoint(rows)
        return tuple(rows if weight == 1 else rows * weight for weight in self.coefficients)

    def adjoint_patches(self, patches: Patches) -> tuple[Patches, ...] | None:
        if not self.aligned:
            return None
        return tuple(replace(patches, values=patches.values * weight) for weight in self.coefficients)


class MatrixProduct(Signed):
    """A product with one constant factor, on either side."""

    targets: ClassVar[Targets] = (aten.mm.default, aten.bmm.default, aten.matmul.default, aten.mv.default)
    has_offset = False

    @classmethod
    def objection(cls, call: Call) -> str | None:
        return "a matrix product of two perturbed values" if operands(call) > 1 else None

    def absolute(self, *sizes: Tensor) -> Tensor:
        return torch.func.vmap(self.call.with_constants(torch.abs))(*sizes)


class Linear(Signed):
    """W x + b over the last axis."""

    targets: ClassVar[Targets] = (aten.linear.default, aten.addmm.default)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        if call.target is aten.addmm.default:
            self.weight: Tensor = call.argument("mat2").t()
            self.bias: Tensor | None = call.argument("self")
        else:
            self.weight, self.bias = call.argument("weight"), call.argument("bias")
        self.has_offset = self.bias is not None  # type: ignore[misc]

    @classmethod
    def objection(cls, call: Call) -> str | None:
        moved = "mat1" if call.target is aten.addmm.default else "input"
        if not isinstance(call.argument(moved), Operand) or operands(call) > 1:
            return "a linear layer whose weights depend on the input"
        if call.target is aten.addmm.default and (call.argument("alpha") != 1 or call.argument("beta") != 1):
            return "addmm with factors other than one"
        return None

    @property
    def terms(self) -> int:
        return 4 + sum(self.weight.shape)

    def offset(self) -> Tensor:
        assert self.bias is not None
        return self.bias.expand(self.call.out_shape)

    def value(self, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], self.weight, self.bias)

    def absolute(self, *sizes: Tensor) -> Tensor:
        return F.linear(sizes[0], self.weight.abs())

    def adjoint(self, rows: Tensor) -> tuple[Rows, ...]:
        return (rows @ self.weight,)

    def pull_columns(self, rows: Rows, active: Active | None) -> Pulled:
        """`pull` where only some columns of `rows`, or of the result, matter; None: all."""
        outer = rows.active if isinstance(rows, Columns) else None
        keeper = active or outer
        weight, bias = (
            self._block(outer, active)
            if keeper is None
            else keeper.once(self, outer, lambda: self._block(outer, active))
        )
        values = rows.values if isinstance(rows, Columns) else dense(rows)
        offset = None if bias is None else (values @ bias).reshape(*values.shape[:2], -1).sum(-1)
        if active is None:
            return ((values @ weight).reshape(*values.shape[:2], *self.call.in_shapes[0]),), offset
        return (Columns(values.flatten(2) @ weight, active),), offset

    def _block(self, outer: Active | None, inner: Active | None) -> tuple[Tensor, Tensor | None]:
        """The weight and bias between some outputs and some inputs; None: all."""
        weight, bias = self.weight, self.bias
        if outer is not None:
            weight, bias = weight[outer.index], None if bias is None else bias[outer.index]
        return weight if inner is None else weight[:, inner.index], bias

    def unit_rows(self, index: Tensor) -> Tensor | None:
        if math.prod(self.call.out_shape) != len(self.weight):
            return None
        return self.weight[index].reshape(*index.shape, *self.call.in_shapes[0])


class BatchNorm(Signed):
    """gamma (x - mean) / sqrt(variance + eps) + beta with the stored statistics; axis 1 of the event is the channel."""

    targets: ClassVar[Targets] = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
    diagonal = True

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        mean, variance = call.argument("running_mean"), call.argument("running_var")
        weight, bias = call.argument("weight"), call.argument("bias")
        scale = (variance + call.argument("eps")).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        self.shape = (-1, *(1,) * (len(call.out_shape) - 2))
        self.scale, self.shift = scale.reshape(self.shape), shift.reshape(self.shape)
        self.spread = (mean * scale).abs().reshape(self.shape)

    @classmethod
    def objection(cls, call: Call) -> str | None:
        if call.target is aten.batch_norm.default and call.argument("training"):
            return "batch normalisation in training mode; call model.eval()"
        return None

    @property
    def terms(self) -> int:
        return 12

    def offset(self) -> Tensor:
        return self.shift.expand(self.call.out_shape)

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * self.scale + self.shift

    def absolute(self, *sizes: Tensor) -> Tensor:
        return sizes[0] * self.scale.abs()

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return self.absolute(*sizes) + self.shift.abs() + 2 * self.spread

    def adjoint(self, rows: Tensor) -> tuple[Rows, ...]:
        return (rows * self.scale,)

    def adjoint_patches(self, patches: Patches) -> tuple[Patches, ...] | None:
        return (replace(patches, values=patches.values * self.scale),)
