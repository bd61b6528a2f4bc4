"""Linear fusion of the features of several modalities, plain and by orthonormal rows; `multimodal` certifies it.

    h_k = sum_m a_k^m zeta_k^m + b_k,        zeta_k^m = <W_k^m, phi^m>

with features phi^m, rows W^m (classes, dim), scales a and bias b.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.errors import InputError

Views = Sequence[Tensor]


class Fused(NamedTuple):
    """What a fusion gives: `scores` zeta (batch, modalities, classes) and `logits` h (batch, classes)."""

    scores: Float[Tensor, "batch modalities classes"]
    logits: Float[Tensor, "batch classes"]


class ConcatenationFusion(nn.Module):
    """One linear layer on the concatenated features: the joint classifier that is the usual choice.

    `dims` are the numbers of features of every modality.  Rows are the weights themselves, scales are 1 and not learnt.
    Raises InputError for fewer than two modalities or classes, or features that do not fit `dims`.
    """

    scales: Tensor

    def __init__(self, dims: Sequence[int], classes: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if len(dims) < 2 or min(dims) < 1 or classes < 2:
            raise InputError(
                f"fusion needs at least two modalities with features and two classes, got dims {tuple(dims)} and "
                f"{classes} classes"
            )
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(classes, dim, generator=generator) / dim**0.5) for dim in dims
        )
        self.bias = nn.Parameter(torch.zeros(classes))
        self.register_buffer("scales", torch.ones(len(dims), classes))

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(weight.shape[1] for weight in self.weights)

    def rows(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """W^m (classes, dim) of every modality, in `dtype` if given."""
        return [weight.to(dtype or weight.dtype) for weight in self.weights]

    def forward(self, features: Views) -> Fused:
        shapes = tuple(part.shape[1] for part in features if part.ndim == 2)
        if shapes != self.dims:
            raise InputError(f"features of shapes {[tuple(part.shape) for part in features]} do not fit {self.dims}")
        scores = torch.stack([part @ rows.T for part, rows in zip(features, self.rows())], 1)
        return Fused(scores, (self.scales * scores).sum(1) + self.bias)


class OrthogonalFusion(ConcatenationFusion):
    """Fusion by centred orthonormal rows with one learnt scale a modality and class.

    W = S^{-1/2} (V - mean of each row),  S its Gram matrix.  `groups` splits the classes into that many runs that are
    made orthonormal on their own: 1 all together, `classes` merely centred unit rows.  Scales start at 0.1.

    Raises InputError, besides those of `ConcatenationFusion`, when `groups` does not divide the classes or a modality
    has too few features: centred rows live in one dimension less, so a group of n rows needs more than n features.
    """

    def __init__(
        self, dims: Sequence[int], classes: int, groups: int = 1, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(dims, classes, generator=generator)
        if groups < 1 or classes % groups:
            raise InputError(f"{groups} groups do not divide {classes} classes; use 1, {classes} or another divisor")
        if min(dims) <= classes // groups:
            raise InputError(
                f"{classes // groups} centred rows cannot be orthonormal in {min(dims)} features: widen the encoder "
                "to more features than classes, or use more groups"
            )
        self.groups = groups
        del self.scales
        self.scales = nn.Parameter(torch.full((len(dims), classes), 0.1))

    def rows(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Orthonormal W^m (classes, dim) of every modality.  Raises InputError when weights have become dependent."""
        return [_orthonormal(weight, self.groups) for weight in super().rows(dtype)]


def _orthonormal(weight: Tensor, groups: int) -> Tensor:
    centred = (weight - weight.mean(1, keepdim=True)).unflatten(0, (groups, -1))
    root: Any = _InverseRoot.apply(centred @ centred.mT)
    return (root @ centred).flatten(0, 1)


class _InverseRoot(torch.autograd.Function):
    """S^{-1/2} of symmetric positive matrices.

    With S = V diag(s^2) V' the derivative is V (L o V' dS V) V', L_ij = -1 / (s_i s_j (s_i + s_j)): finite also where
    eigenvalues coincide, as they do once rows are nearly orthonormal, and where differentiating V is not.
    """

    @staticmethod
    def forward(ctx: Any, gram: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(gram)
        if not bool((values > 10 * torch.finfo(gram.dtype).eps * values.amax(-1, keepdim=True)).all()):
            raise InputError("rows of a fusion layer have become dependent and cannot be made orthonormal")
        roots = values.sqrt()
        ctx.save_for_backward(roots, vectors)
        return (vectors / roots[..., None, :]) @ vectors.mT

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        roots, vectors = ctx.saved_tensors
        product, total = roots[..., :, None] * roots[..., None, :], roots[..., :, None] + roots[..., None, :]
        inner = vectors.mT @ gradients[0] @ vectors
        return vectors @ (-inner / (product * total)) @ vectors.mT
