"""Rounding: what floating-point arithmetic may have added to or taken from a bound, and how that is charged.

Bounds are computed with ordinary (nearest) rounding.  With `outward=True` every bound is then widened by a rigorous
estimate of the error made, so that it holds for the exact real-number function of the stored weights.

Any sum of products of n terms, in any order of summation, is off by at most (Higham, 2002, section 3.1)

    |computed - exact| <= gamma_n * sum |terms|,        gamma_n = n u / (1 - n u)

with u the unit roundoff.  Every operator reports `magnitude`, a bound M on that sum of absolute terms over the whole
region, so an interval is widened by gamma * M.  In a backward pass the floating-point rows A are *free multipliers*:
any rows whatever give a valid identity A_out v_out = A_in v_in + bias + residual v_in, and the residual left by
rounding is at most gamma_n |A_out| |W|.  Its effect on the bound is at most gamma_n |A_out| (|W| |v_in| + |b|) <=
gamma_n |A_out| M, which costs one inner product an operator.  One n serves a whole graph: the longest sum in it plus
the number of nodes.

With `deployed=torch.float32` the bounds hold for the program that runs in float32 too.  There every value is off by a
further gamma_n(float32) M, with M over values that are off themselves; the boxes hold those, and a backward pass
charges |rows| gamma_n(float32) M wherever it meets a value, which is what the errors made there can do to the output.
Sums that underflow are covered by `floor`.  It asks for networks of sums of products, comparisons and ReLUs, which is
what their float32 evaluation consists of.

Not covered: fast convolution algorithms (Winograd, FFT) that are not plain sums of products; torch uses none in
float64 on CPUs.  Constant subexpressions of a model (say, `1 / std`) are taken as evaluated in the bound's precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.core.errors import InputError


@dataclass(frozen=True)
class Rounding:
    """How bounds are rounded: `outward` charges gamma_`terms` times the magnitudes; otherwise nothing is charged.

    `deployed` is the dtype of a program whose own rounding is charged as well.
    """

    outward: bool
    terms: int
    deployed: torch.dtype | None = None

    def gamma(self, dtype: torch.dtype) -> float:
        """gamma_n of `dtype`, enlarged by 1 % for the rounding of the charge itself.

        Raises InputError when the sums are so long for `dtype` that no bound on their error exists.
        """
        charged = (dtype,) if self.deployed is None else (dtype, self.deployed)
        return sum(map(self._gamma, charged))

    def _gamma(self, dtype: torch.dtype) -> float:
        unit = torch.finfo(dtype).eps / 2
        if self.terms * unit >= 0.5:
            raise InputError(f"sums of {self.terms} terms cannot be bounded in {dtype}; use a float64 input")
        return 1.01 * self.terms * unit / (1 - self.terms * unit)

    @property
    def floor(self) -> float:
        """What is added to every magnitude so that gamma times it covers what underflows in the deployed program."""
        return 0.0 if self.deployed is None else 2 * torch.finfo(self.deployed).tiny / torch.finfo(self.deployed).eps

    def widen(self, lower: Tensor, upper: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """The interval with gamma * `magnitude` (and the smallest normal number) added on both sides."""
        charge = self.gamma(lower.dtype) * (magnitude + self.floor) + torch.finfo(lower.dtype).tiny
        return lower - charge, upper + charge
