"""Maps from logits to the probability simplex, and how steep they are.

    softmax     exp(t z_c) / sum_k exp(t z_k)
    sparsemax   the point of the simplex nearest to t z (Martins & Astudillo, 2016)
    hardmax     1 at the largest logit, 0 elsewhere: the limit of both for t -> infinity

A larger temperature t sharpens.  *Margin Lipschitz constant*: the largest slope (in L2) of s_a(z) - s_b(z), any a, b:
t / sqrt 2 for softmax (attained at z_a = z_b with nothing else in play), t sqrt 2 for sparsemax, none for hardmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.errors import InputError

Kind = Literal["softmax", "sparsemax", "hardmax"]


def softmax(logits: Float[Tensor, "*some classes"], temperature: float | Tensor = 1.0) -> Float[Tensor, "..."]:
    """exp(t z) normalised; `temperature` may be a tensor that broadcasts against the logits."""
    return torch.softmax(temperature * logits, dim=-1)


def sparsemax(logits: Float[Tensor, "*some classes"], temperature: float | Tensor = 1.0) -> Float[Tensor, "..."]:
    """Euclidean projection of t z on the simplex; `temperature` may be a tensor that broadcasts against the logits.

    Logits of -inf are classes that cannot be had.
    """
    # The projection ignores shifts; with the largest entry at 0 large temperatures cost no digits.  No entry below
    # -1 / t is ever in the support, so that cutting far below changes nothing and keeps -inf out of the sums.
    scaled = (temperature * (logits - logits.amax(-1, keepdim=True))).clamp(min=-2.0)
    ordered = scaled.sort(dim=-1, descending=True).values
    place = torch.arange(1, logits.shape[-1] + 1, dtype=logits.dtype, device=logits.device)
    sums = ordered.cumsum(-1)
    support = (1 + place * ordered > sums).sum(-1, keepdim=True)
    threshold = (sums.gather(-1, support - 1) - 1) / support
    return (scaled - threshold).clamp(0, 1)


def hardmax(logits: Float[Tensor, "*some classes"]) -> Float[Tensor, "*some classes"]:
    """All on the largest logit; ties go to the first of them."""
    return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)


@dataclass(frozen=True)
class SimplexMap:
    """One of the three with a temperature (which hardmax has no use for).

    Raises InputError on another name, or a temperature that is not positive and finite.
    """

    kind: Kind
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"no map to the simplex is called {self.kind!r}; there are {', '.join(get_args(Kind))}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(f"a temperature must be positive and finite, got {self.temperature}; hardmax is the limit")

    def __call__(self, logits: Float[Tensor, "*some classes"]) -> Float[Tensor, "*some classes"]:
        if self.kind == "hardmax":
            return hardmax(logits)
        return (softmax if self.kind == "softmax" else sparsemax)(logits, self.temperature)

    @property
    def margin_lipschitz(self) -> float:
        """Largest slope of a difference of two entries; inf for hardmax."""
        slopes = {"softmax": 1 / math.sqrt(2), "sparsemax": math.sqrt(2), "hardmax": math.inf}
        return self.temperature * slopes[self.kind]

    def __str__(self) -> str:
        return self.kind if self.kind == "hardmax" else f"{self.kind}({self.temperature:g})"
