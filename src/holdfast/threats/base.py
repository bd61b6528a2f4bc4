"""A threat: the set of perturbations an example may undergo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: Lowest and highest valid input value: floats, or tensors that broadcast against one example.  None: unbounded.
Valid = tuple[float | Tensor, float | Tensor] | None

# `typing.Self` would say the same, but beartype cannot check it on single methods, as the tests' import hook does.
AnyThreat = TypeVar("AnyThreat", bound="Threat")


class Threat(ABC):
    """A set S(x) of admissible inputs around each x.  One object drives attack, certificate, training and wording.

    Every method takes a batch and, where it matters, the `valid` input range, which always clips the set.
    Subclasses are frozen dataclasses.
    """

    @property
    @abstractmethod
    def radius(self) -> float:
        """Size of the set, in the unit `describe` names."""

    @abstractmethod
    def scaled(self: AnyThreat, radius: float) -> AnyThreat:
        """The same family with another radius."""

    @abstractmethod
    def describe(self) -> str:
        """Words for the report: "every pixel moved by at most 0.1"."""

    @abstractmethod
    def norm(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Size of each perturbation in the threat's own measure; admissible means at most `radius`."""

    @abstractmethod
    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        """Nearest admissible input (Euclidean where that is defined)."""

    @abstractmethod
    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """A random admissible input."""

    @abstractmethod
    def steepest(self, grad: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The direction of size one (in `norm`) that has the largest inner product with `grad`."""

    @abstractmethod
    def worst(
        self,
        rows: Float[Tensor, "batch rows *shape"],
        x: Float[Tensor, "batch *shape"],
        valid: Valid = None,
    ) -> Float[Tensor, "batch rows"]:
        """min over x' in S(x) of <row, x' - x>: the (negative) support function that certificates need."""

    @abstractmethod
    def interval(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """Tightest box that holds S(x)."""

    def contains(
        self,
        x_adv: Float[Tensor, "batch *shape"],
        x: Float[Tensor, "batch *shape"],
        valid: Valid = None,
        tolerance: float = 1e-6,
    ) -> Bool[Tensor, " batch"]:
        """Whether each x_adv is admissible, to `tolerance` in the threat's measure and in the valid range."""
        inside = self.norm(x_adv - x) <= self.radius + tolerance
        if valid is not None:
            low, high = valid
            inside &= ((x_adv >= low - tolerance) & (x_adv <= high + tolerance)).flatten(1).all(1)
        return inside
