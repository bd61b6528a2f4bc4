"""The operator table: which class bounds which traced call.

To cover a new operator write one class (`targets`, `value`, `interval`, `magnitude`, and `relax` if it is not affine),
name it here, and add a case to the table in its test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.inputs.bounds import activation, affine, convolution, pooling
from holdfast.inputs.bounds.operator import Operator

OPERATORS: tuple[type[Operator], ...] = (
    affine.Reshape,
    affine.Identity,
    affine.Move,
    affine.Overwrite,
    affine.Pick,
    affine.Average,
    affine.Scale,
    affine.Sum,
    affine.MatrixProduct,
    affine.Linear,
    affine.BatchNorm,
    convolution.Convolution,
    convolution.TransposedConvolution,
    activation.LeakyReLU,
    pooling.MaxPool,
)

BY_TARGET: dict[Callable[..., Any], type[Operator]] = {
    target: operator for operator in OPERATORS for target in operator.targets
}
