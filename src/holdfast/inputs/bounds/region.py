"""What is bounded and what comes back: `Region`, `Bounds`, `BoundCertificates`, `margin_spec`.

A region is S(x) = threat's set around every x of a batch, cut by the valid range.  A specification C asks for bounds of
C f(x') instead of f(x'); with rows e_y - e_k a positive lower bound proves that class k cannot overtake class y.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.threats.base import Threat, Valid

#: How far float32 data may lie outside their range, relative to its ends.
_ROUNDED = 4 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Region:
    """All admissible inputs around each `x` of shape (batch, *shape): the threat's set, cut by the `valid` range.

    Data that were scaled in float32 may leave the range by that rounding; the set then holds them all the same.

    Raises InputError when `x` is not floating, is empty, holds NaN or infinity, or lies outside the valid range, and
    when the threat does not fit it or leaves it unbounded.
    """

    x: Float[Tensor, "batch *shape"]
    threat: Threat
    valid: Valid = None

    def __post_init__(self) -> None:
        if not self.x.is_floating_point():
            raise InputError(f"a region needs floating-point inputs, got {self.x.dtype}; convert with x.float()")
        if self.x.ndim < 2 or self.x.numel() == 0:
            raise InputError(f"a region needs inputs of shape (batch, *shape), got {tuple(self.x.shape)}")
        if not bool(torch.isfinite(self.x).all()):
            raise InputError("a region's inputs must be finite, got NaN or infinity; clean the data first")
        if self.valid is not None:
            low, high = (torch.as_tensor(end, dtype=torch.float64, device=self.x.device) for end in self.valid)
            slack = _ROUNDED * torch.maximum(low.abs(), high.abs())
            outside = ((self.x < low - slack) | (self.x > high + slack)).flatten(1).any(1)
            if bool(outside.any()):
                raise InputError(
                    f"{int(outside.sum())} of {len(self.x)} inputs lie outside the valid range; "
                    "clamp them or give the range the model is really fed"
                )
        try:
            ends = self.interval()
        except RuntimeError as error:
            raise InputError(
                f"the threat {self.threat!r} does not fit inputs {tuple(self.x.shape)}: {error}"
            ) from error
        if not all(bool(torch.isfinite(end).all()) for end in ends):
            raise InputError(
                f"the threat {self.threat!r} leaves inputs unbounded without a valid range; give one, e.g. valid=(0, 1)"
            )

    def __len__(self) -> int:
        return len(self.x)

    def interval(self) -> tuple[Tensor, Tensor]:
        """Tightest box that holds the region: two tensors like `x`."""
        return self.threat.interval(self.x, self.valid)

    def part(self, examples: slice | Tensor) -> Region:
        """The region of some of the examples."""
        return Region(self.x[examples], self.threat.part(examples), self.valid)


@dataclass(frozen=True)
class Bounds:
    """`lower` <= C f(x') <= `upper` for every x' in the region; shape (batch, rows).

    `upper` is +inf where only the lower side was asked for.  `linear`, when asked for, is (A_l, b_l, A_u, b_u) with
    A_l x' + b_l <= C f(x') <= A_u x' + b_u: shapes (batch, rows, *shape) and (batch, rows).
    """

    lower: Float[Tensor, "batch rows"]
    upper: Float[Tensor, "batch rows"]
    linear: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def width(self) -> Float[Tensor, "batch rows"]:
        """upper - lower."""
        return self.upper - self.lower


@dataclass(frozen=True)
class BoundCertificates:
    """`certified[i]`: no admissible change of example i can change its label; `margin[i]`: proven lower bound on the
    smallest difference between the label's logit and another's (`certify` says in which arithmetic), -inf where the
    time did not suffice for any.
    """

    certified: Bool[Tensor, " batch"]
    margin: Float[Tensor, " batch"]


def margin_spec(y: Int[Tensor, " batch"], classes: int) -> Float[Tensor, "batch rivals classes"]:
    """Rows e_y - e_k for every class k other than y, in ascending order of k; float64.

    Raises InputError when there are fewer than two classes, or a label is no integer or not one of them.
    """
    if classes < 2:
        raise InputError(f"a margin needs at least two classes, got {classes}")
    if y.is_floating_point() or y.ndim != 1:
        raise InputError(f"labels must be integers of shape (batch,), got {y.dtype} of shape {tuple(y.shape)}")
    if y.numel() and not (int(y.min()) >= 0 and int(y.max()) < classes):
        raise InputError(f"labels must lie in 0..{classes - 1}, got {int(y.min())}..{int(y.max())}")
    identity = torch.eye(classes, dtype=torch.float64, device=y.device)
    rows = identity[y][:, None, :] - identity
    rival = torch.arange(classes, device=y.device) != y[:, None]
    return rows[rival].reshape(len(y), classes - 1, classes)
