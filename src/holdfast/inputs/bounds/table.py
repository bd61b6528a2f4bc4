"""The operator table: which class bounds which traced call.

A call that several classes know (a product, of one perturbed factor or of two) goes to the first that does not object.
To cover a new operator write one class (`targets`, `value`, `interval`, `magnitude`, and `relax` if it is not affine),
name it here, and add a case to the table in its test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.inputs.bounds import activation, affine, convolution, extrema, moves, pooling, product, smooth, softmax
from holdfast.inputs.bounds.operator import Call, Operator

OPERATORS: tuple[type[Operator], ...] = (
    affine.Reshape,
    affine.Identity,
    moves.Permutation,
    moves.Part,
    moves.Total,
    affine.Move,
    affine.Overwrite,
    affine.Pick,
    affine.Average,
    affine.Scale,
    moves.MaskedSum,
    affine.MatrixProduct,
    affine.Linear,
    affine.BatchNorm,
    convolution.Convolution,
    convolution.TransposedConvolution,
    activation.LeakyReLU,
    pooling.MaxPool,
    smooth.Smooth,
    product.Square,
    product.EntryProduct,
    product.MatrixProductOfTwo,
    product.Quotient,
    softmax.Softmax,
    softmax.Share,
    softmax.LogSoftmax,
    softmax.LogSumExp,
    extrema.Clamp,
    extrema.Larger,
    extrema.Largest,
    moves.Choice,
    moves.Windows,
)

BY_TARGET: dict[Callable[..., Any], list[type[Operator]]] = {}
for _operator in OPERATORS:
    for _target in _operator.targets:
        BY_TARGET.setdefault(_target, []).append(_operator)


def operator_for(call: Call) -> tuple[type[Operator] | None, str]:
    """The class that bounds `call`; or None, and why there is none."""
    objection: str | None = "no rule for this operator"
    for operator in BY_TARGET.get(call.target, ()):
        objection = operator.objection(call)
        if objection is None:
            return operator, ""
    return None, objection or ""
