"""Separable terms g(x) = sum_i g_i(x_i) with their proximal maps, exact in float64.

    prox(v, step) = argmin_x  g(x) + sum_i (x_i - v_i)² / (2 step_i)

`step` may differ by coordinate.  `each` gives the g_i, `free` says where g is smooth around x, `slope` is its
derivative there, and `reach` how far x may move in direction d before a free coordinate meets a kink, and `kink`
the nearest kink.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from holdfast.core.errors import InputError

Vector = Float[np.ndarray, " n"]


@runtime_checkable
class Separable(Protocol):
    """The protocol; any object with these methods will do."""

    def each(self, x: Vector) -> Vector: ...

    def prox(self, v: Vector, step: Vector) -> Vector: ...

    def free(self, x: Vector) -> Bool[np.ndarray, " n"]: ...

    def slope(self, x: Vector) -> Vector: ...

    def reach(self, x: Vector, d: Vector) -> Vector: ...

    def kink(self, x: Vector) -> Vector: ...


@dataclass(frozen=True)
class Nothing:
    """g = 0."""

    def each(self, x: Vector) -> Vector:
        return np.zeros(len(x))

    def prox(self, v: Vector, step: Vector) -> Vector:
        return v

    def free(self, x: Vector) -> Bool[np.ndarray, " n"]:
        return np.ones(len(x), dtype=bool)

    def slope(self, x: Vector) -> Vector:
        return np.zeros(len(x))

    def reach(self, x: Vector, d: Vector) -> Vector:
        return np.full(len(x), np.inf)

    def kink(self, x: Vector) -> Vector:
        return x


@dataclass(frozen=True)
class L1:
    """g(x) = weight ||x||_1; its proximal map is soft thresholding."""

    weight: float

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InputError(f"the weight of an l1 term must not be negative, got {self.weight}")

    def each(self, x: Vector) -> Vector:
        return self.weight * np.abs(x)

    def prox(self, v: Vector, step: Vector) -> Vector:
        return np.sign(v) * np.maximum(np.abs(v) - self.weight * step, 0.0)

    def free(self, x: Vector) -> Bool[np.ndarray, " n"]:
        return np.asarray(x != 0)

    def slope(self, x: Vector) -> Vector:
        return self.weight * np.sign(x)

    def reach(self, x: Vector, d: Vector) -> Vector:
        towards_zero = x * d < 0
        return np.where(towards_zero, np.abs(x) / np.where(towards_zero, np.abs(d), 1.0), np.inf)

    def kink(self, x: Vector) -> Vector:
        return np.zeros(len(x))


@dataclass(frozen=True)
class Box:
    """g(x) = 0 for low <= x <= high, else infinite; its proximal map is the projection."""

    low: float = 0.0
    high: float = np.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(f"a box needs low < high, got {self.low} and {self.high}")

    def each(self, x: Vector) -> Vector:
        return np.where((x >= self.low) & (x <= self.high), 0.0, np.inf)

    def prox(self, v: Vector, step: Vector) -> Vector:
        return np.clip(v, self.low, self.high)

    def free(self, x: Vector) -> Bool[np.ndarray, " n"]:
        return np.asarray((x > self.low) & (x < self.high))

    def slope(self, x: Vector) -> Vector:
        return np.zeros(len(x))

    def reach(self, x: Vector, d: Vector) -> Vector:
        bound = np.where(d > 0, self.high, self.low)
        moving = d != 0
        return np.where(moving, np.abs(bound - x) / np.where(moving, np.abs(d), 1.0), np.inf)

    def kink(self, x: Vector) -> Vector:
        return np.where(np.abs(x - self.low) <= np.abs(x - self.high), self.low, self.high)
