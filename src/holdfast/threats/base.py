"""A threat: the set of perturbations an example may undergo.

One object S drives the attack (`project`, `random_start`, `steepest`), the certificate (`worst`, `interval`),
training and the report's wording (`describe`).  `x` is a batch (batch, *shape) in input units; `valid` is the range
inputs may take.  An example that lies outside `valid` itself stays admissible: the range is widened to hold it, so
S(x) is never empty. An operation that a set does not have raises UnsupportedError naming both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.core.errors import InputError, UnsupportedError

#: A number, or a tensor that broadcasts against one example.
Size = float | int | Tensor
#: Lowest and highest valid input value.  None: unbounded.
Valid = tuple[Size, Size] | None


class Threat(ABC):
    """A set S(x) of admissible inputs around each x.

    Every method takes a batch and, where it matters, the `valid` input range, which always clips the set.
    Subclasses are frozen dataclasses; two threats are equal when their fields are.
    """

    @property
    @abstractmethod
    def radius(self) -> float:
        """Size of the set, in the unit `describe` names."""

    @abstractmethod
    def scaled(self, radius: float | int) -> Threat:
        """The same family with another radius."""

    @abstractmethod
    def describe(self) -> str:
        """Words for the report: "every value moved by at most 0.1"."""

    def part(self, examples: slice | Tensor) -> Threat:
        """The threat to some of the examples of a batch; differs from the whole where it holds things of each."""
        return self

    def norm(self, delta: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Size of each perturbation in the threat's own measure; admissible means at most `radius`."""
        raise self._lacks("a norm")

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> Float[Tensor, "batch *shape"]:
        """Nearest admissible input (Euclidean)."""
        raise self._lacks("a projection")

    def random_start(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """A random admissible input."""
        raise self._lacks("a random point")

    def steepest(self, grad: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The direction of size one (in `norm`) that has the largest inner product with `grad`."""
        raise self._lacks("a steepest direction")

    def worst(
        self,
        rows: Float[Tensor, "batch rows *shape"],
        x: Float[Tensor, "batch *shape"],
        valid: Valid = None,
    ) -> Float[Tensor, "batch rows"]:
        """min over x' in S(x) of <row, x' - x>: the (negative) support function that certificates need."""
        raise self._lacks("a support function")

    def interval(
        self, x: Float[Tensor, "batch *shape"], valid: Valid = None
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """Tightest box that holds S(x)."""
        raise self._lacks("an enclosing box")

    def stride(self, valid: Valid = None) -> float:
        """Length that gradient steps along `steepest` are measured in: a step of one `stride` crosses the set once."""
        return self.radius

    def contains(
        self,
        x_adv: Float[Tensor, "batch *shape"],
        x: Float[Tensor, "batch *shape"],
        valid: Valid = None,
        tolerance: float = 1e-6,
    ) -> Bool[Tensor, " batch"]:
        """Whether each x_adv is admissible.

        `tolerance` is relative to max(1, radius) in the threat's measure; a change of a coordinate that its floating-
        point type cannot tell from none at its magnitude does not count (x + eps is rounded when it is stored).
        """
        size = self.norm(without_rounding(x_adv, x))
        inside = size <= self.radius + tolerance * max(1.0, self.radius)
        return inside & within(x_adv, x, valid, tolerance)

    def _lacks(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"the threat {self!r} has no {what.removeprefix('an ').removeprefix('a ')}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]

    def __hash__(self) -> int:
        parts = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return hash((type(self), *(tuple(p.flatten().tolist()) if isinstance(p, Tensor) else p for p in parts)))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return bool(a == b)


def valid_bounds(
    x: Float[Tensor, "batch *shape"], valid: Valid
) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
    """Lowest and highest value of every coordinate, widened to hold x itself; infinite where nothing bounds it."""
    if valid is None:
        return torch.full_like(x, -torch.inf), torch.full_like(x, torch.inf)
    low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in valid)
    return torch.minimum(x, low), torch.maximum(x, high)


def room(
    x: Float[Tensor, "batch *shape"], valid: Valid
) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
    """How far every coordinate may move down (at most 0) and up (at least 0) before it leaves the valid range."""
    low, high = valid_bounds(x, valid)
    return low - x, high - x


def value_range(valid: Valid, threat: Threat) -> float:
    """Width of the valid range.  InputError when there is none: `threat` frees values completely and nothing would
    bound them.
    """
    if valid is None:
        raise InputError(f"{threat!r} frees values completely, so it needs a valid range: pass valid=(low, high)")
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in valid)
    width = float((high - low).max())
    if not 0 < width < torch.inf:
        raise InputError(f"{threat!r} needs a finite valid range with low < high, got {valid}")
    return width


def within(
    x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], valid: Valid, tolerance: float
) -> Bool[Tensor, " batch"]:
    """Whether each x_adv lies in the valid range (widened to hold x) and is finite."""
    low, high = valid_bounds(x, valid)
    inside = (x_adv >= low - tolerance) & (x_adv <= high + tolerance) & torch.isfinite(x_adv)
    return inside.flatten(1).all(1)


def without_rounding(
    x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"]
) -> Float[Tensor, "batch *shape"]:
    """x_adv - x with every coordinate pulled towards zero by one unit in the last place of its magnitude."""
    delta = x_adv - x
    unit = torch.finfo(x.dtype).eps * torch.maximum(x.abs(), x_adv.abs())
    return delta.sign() * (delta.abs() - unit).clamp(min=0)


def uniform(like: Tensor, generator: torch.Generator | None, shape: tuple[int, ...] | None = None) -> Tensor:
    """Numbers from U(0, 1) with the type and device of `like`, drawn on the generator's own device."""
    device = like.device if generator is None else generator.device
    drawn = torch.rand(like.shape if shape is None else shape, dtype=like.dtype, device=device, generator=generator)
    return drawn.to(like.device)


def gaussian(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers shaped like `like`, drawn on the generator's own device."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) -> (batch, 1, ..., 1) so that it broadcasts against `like`."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
