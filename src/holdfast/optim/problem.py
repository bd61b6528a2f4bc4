"""Problems as solvers see them: value, gradient, curvature bound, and a tracker that keeps the gradient up to date.

A problem is f(x) + g(x) with f smooth, convex, and ∇²f ⪯ H everywhere (`curvature`), and g separable (`penalty`).  Any
object with these attributes will do; there is no base class.  `track(x)` starts a `Tracker`, which pays for a change of
few coordinates and not for a new gradient: `move(block, step)` updates what changed.

    LeastSquares(A, b)      f = ½ ||A x - b||²                          H = AᵀA
    Logistic(A, y, l2)      f = sum_i log(1 + exp(-y_i a_iᵀx)) + ½ l2 ||x||²   H = ¼ AᵀA + l2 I
    Quadratic(H, q)         f = ½ xᵀH x + qᵀx

A and H may be dense or scipy sparse, and sparse stays sparse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.special import expit

from holdfast.core.errors import InputError
from holdfast.optim.prox import Nothing, Separable

Vector = Float[np.ndarray, " n"]
Block = Int[np.ndarray, " block"]
#: Dense array or scipy sparse array.
Matrix = Any


@runtime_checkable
class Tracker(Protocol):
    """A point x with f's value and gradient there."""

    x: np.ndarray
    gradient: np.ndarray

    def value(self) -> float: ...

    def move(self, block: np.ndarray, step: np.ndarray) -> None: ...

    def refresh(self) -> None: ...


@runtime_checkable
class Problem(Protocol):
    """What a coordinate solver needs."""

    @property
    def size(self) -> int: ...

    @property
    def penalty(self) -> Separable: ...

    @property
    def curvature(self) -> Matrix: ...

    def value(self, x: np.ndarray) -> float: ...

    def hessian(self, x: np.ndarray, block: np.ndarray) -> np.ndarray: ...

    def track(self, x: np.ndarray) -> Tracker: ...


@dataclass(frozen=True)
class LeastSquares:
    """½ ||A x - b||² + penalty, A of shape (m, n)."""

    A: Matrix
    b: Float[np.ndarray, " m"]
    penalty: Separable = field(default_factory=Nothing)

    def __post_init__(self) -> None:
        _check_design(self.A, self.b)

    @property
    def size(self) -> int:
        return int(self.A.shape[1])

    @cached_property
    def curvature(self) -> Matrix:
        """AᵀA."""
        return _symmetric_product(self.A)

    def value(self, x: np.ndarray) -> float:
        """f(x), without the penalty."""
        residual = self.A @ x - self.b
        return float(residual @ residual / 2)

    def hessian(self, x: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Rows and columns `block` of ∇²f(x)."""
        return submatrix(self.curvature, block)

    def track(self, x: np.ndarray) -> Tracker:
        return _LeastSquaresTracker(self, x)


class _LeastSquaresTracker:
    def __init__(self, problem: LeastSquares, x: np.ndarray):
        self.problem = problem
        self.x = x.astype(np.float64)
        self.refresh()

    def refresh(self) -> None:
        self.residual = self.problem.A @ self.x - self.problem.b
        self.gradient = self.problem.A.T @ self.residual

    def value(self) -> float:
        return float(self.residual @ self.residual / 2)

    def move(self, block: np.ndarray, step: np.ndarray) -> None:
        self.x[block] += step
        self.residual += self.problem.A[:, block] @ step
        self.gradient += columns(self.problem.curvature, block) @ step


@dataclass(frozen=True)
class Logistic:
    """sum_i log(1 + exp(-y_i a_iᵀ x)) + ½ l2 ||x||² + penalty, labels y in {-1, +1}."""

    A: Matrix
    y: Float[np.ndarray, " m"]
    l2: float = 0.0
    penalty: Separable = field(default_factory=Nothing)

    def __post_init__(self) -> None:
        _check_design(self.A, self.y)
        if not np.isin(self.y, (-1.0, 1.0)).all():
            raise InputError("logistic labels must be -1 or +1; map your two classes to these")
        if not self.l2 >= 0:
            raise InputError(f"l2 must not be negative, got {self.l2}")

    @property
    def size(self) -> int:
        return int(self.A.shape[1])

    @cached_property
    def curvature(self) -> Matrix:
        """¼ AᵀA + l2 I."""
        gram = _symmetric_product(self.A)
        identity = sp.eye_array(self.size, format="csc") if sp.issparse(gram) else np.eye(self.size)
        return gram / 4 + self.l2 * identity

    def value(self, x: np.ndarray) -> float:
        """f(x), without the penalty."""
        return float(np.logaddexp(0, -self.y * (self.A @ x)).sum() + self.l2 * (x @ x) / 2)

    def hessian(self, x: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Rows and columns `block` of ∇²f(x)."""
        p = expit(self.A @ x)
        part = self.A[:, block]
        part = part.toarray() if sp.issparse(part) else part
        return part.T @ (part * (p * (1 - p))[:, None]) + self.l2 * np.eye(len(block))

    def track(self, x: np.ndarray) -> Tracker:
        return _LogisticTracker(self, x)


class _LogisticTracker:
    def __init__(self, problem: Logistic, x: np.ndarray):
        self.problem = problem
        self.x = x.astype(np.float64)
        self.refresh()

    def refresh(self) -> None:
        self.margins = self.problem.A @ self.x
        self._differentiate()

    def value(self) -> float:
        losses = np.logaddexp(0, -self.problem.y * self.margins)
        return float(losses.sum() + self.problem.l2 * (self.x @ self.x) / 2)

    def move(self, block: np.ndarray, step: np.ndarray) -> None:
        self.x[block] += step
        self.margins += self.problem.A[:, block] @ step
        self._differentiate()

    def _differentiate(self) -> None:
        # A gradient of the logistic loss costs a product with Aᵀ; what is kept up to date is A x.
        slopes = -self.problem.y * expit(-self.problem.y * self.margins)
        self.gradient = self.problem.A.T @ slopes + self.problem.l2 * self.x


@dataclass(frozen=True)
class Quadratic:
    """½ xᵀH x + qᵀx + penalty, H symmetric of shape (n, n)."""

    H: Matrix
    q: Float[np.ndarray, " n"]
    penalty: Separable = field(default_factory=Nothing)

    def __post_init__(self) -> None:
        n = len(self.q)
        if self.H.shape != (n, n):
            raise InputError(f"H must have shape {(n, n)} to fit q, got {self.H.shape}")
        _check_finite(self.H, self.q)
        if abs(self.H - self.H.T).max() > 1e-10 * max(abs(self.H).max(), 1e-300):
            raise InputError("H is not symmetric; pass (H + Hᵀ) / 2, which gives the same quadratic")

    @property
    def size(self) -> int:
        return len(self.q)

    @cached_property
    def curvature(self) -> Matrix:
        """H, by columns when sparse."""
        return self.H.tocsc() if sp.issparse(self.H) else self.H

    def value(self, x: np.ndarray) -> float:
        """f(x), without the penalty."""
        return float(x @ (self.H @ x) / 2 + self.q @ x)

    def hessian(self, x: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Rows and columns `block` of H."""
        return submatrix(self.curvature, block)

    def track(self, x: np.ndarray) -> Tracker:
        return _QuadraticTracker(self, x)


class _QuadraticTracker:
    def __init__(self, problem: Quadratic, x: np.ndarray):
        self.problem = problem
        self.x = x.astype(np.float64)
        self.refresh()

    def refresh(self) -> None:
        self.gradient = self.problem.H @ self.x + self.problem.q

    def value(self) -> float:
        return float(self.x @ (self.gradient + self.problem.q) / 2)

    def move(self, block: np.ndarray, step: np.ndarray) -> None:
        self.x[block] += step
        self.gradient += columns(self.problem.curvature, block) @ step


def submatrix(H: Matrix, block: np.ndarray) -> np.ndarray:
    """Dense H[block, block]."""
    if sp.issparse(H):
        return np.asarray(H[block][:, block].toarray())
    return np.asarray(H[np.ix_(block, block)])


def columns(H: Matrix, block: np.ndarray) -> Matrix:
    """H[:, block], sparse if H is."""
    return H[:, block]


def _symmetric_product(A: Matrix) -> Matrix:
    product = A.T @ A
    return product.tocsc() if sp.issparse(product) else product


def _check_design(A: Matrix, b: np.ndarray) -> None:
    if A.ndim != 2 or A.shape[0] != len(b):
        raise InputError(f"A must have one row a value of the second argument: got {A.shape} and {len(b)} values")
    _check_finite(A, b)


def _check_finite(A: Matrix, b: np.ndarray) -> None:
    entries = A.data if sp.issparse(A) else A
    if not (np.isfinite(entries).all() and np.isfinite(b).all()):
        raise InputError("the problem's data hold NaN or infinite values; remove or mend them")
