"""Block coordinate descent: greedy rules, message passing, active sets (Nutini, Laradji and Schmidt, 2022).

For smooth f with ∇²f ⪯ H, a step d on block b satisfies

    f(x + U_b d)  <=  f(x) + ∇_b fᵀ d + ½ dᵀ H_b d

Three choices are independent.  *Rule*: which block promises most,

    gs    ||∇_b f||²               gsl   ||∇_b f||² / L_b            L_b = λ_max(H_b)
    gsd   Σ (∇_i f)² / D_i          gsq   ∇_b fᵀ H_b⁻¹ ∇_b f         D_i = Σ_j |H_ij|, so that D ⪰ H
    random, cyclic

*Update*: gradient d = -∇_b f / L_b, diagonal d_i = -∇_i f / D_i, matrix d = -H_b⁻¹ ∇_b f, newton (the Hessian at x,
with Armijo's rule), message_passing (matrix, in linear time on a forest). *Blocks*: variable (any `block_size`
coordinates), sorted (fixed, by coordinate constants), red_black (colour classes of H's graph), forest (greedy
forests), or a list of index arrays.  Half the score is the guaranteed progress of the pairs (gsl, gradient), (gsd,
diagonal) and (gsq, matrix).

A separable penalty (l1, bounds) is met by proximal gradient or diagonal steps; coordinates are then ranked by the
decrease their own model promises.  Once the set of free coordinates has been the same for a while, the free
coordinates are solved for exactly (a working-set step), which ends in finitely many steps for quadratics.

The residual is max_i L_i |x_i - prox(x_i - ∇_i f / L_i)|, the largest gradient entry when there is no penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.core.seeds import numpy_generator
from holdfast.optim.blocks import Partition, curvature_diagonals, make_partition
from holdfast.optim.forest import forest_block, solve_forest
from holdfast.optim.problem import Problem, Tracker, submatrix
from holdfast.optim.prox import Nothing
from holdfast.optim.result import TRACE, Result
from holdfast.optim.working_set import working_set_step

__all__ = ["BlockCoordinateDescent", "forest_block", "solve_forest"]

Rule = Literal["gs", "gsl", "gsd", "gsq", "random", "cyclic"]
Update = Literal["gradient", "diagonal", "matrix", "newton", "message_passing"]
Blocks = Literal["variable", "sorted", "red_black", "forest"]


@dataclass(frozen=True)
class BlockCoordinateDescent:
    """Solver for a `Problem`; one iteration updates one block.

    `tol` bounds the residual.  `working_set_after` is the number of iterations the free set must stay the same before
    exact steps on it are tried (None: never).  Oracle calls are counted in coordinates updated.
    """

    rule: Rule = "gsd"
    update: Update = "gradient"
    blocks: Blocks | Sequence[np.ndarray] = "variable"
    block_size: int = 5
    tol: float = 1e-8
    max_iter: int = 10_000
    working_set_after: int | None = 10

    def __post_init__(self) -> None:
        if self.update == "message_passing" and self.blocks in ("variable", "sorted"):
            raise InputError("message passing needs blocks without cycles; use blocks='forest' or 'red_black'")
        if not self.tol > 0 or self.max_iter < 1:
            raise InputError(f"tol and max_iter must be positive, got {self.tol} and {self.max_iter}")

    def solve(
        self,
        problem: Problem,
        x0: Float[np.ndarray, " n"] | None = None,
        *,
        generator: np.random.Generator | None = None,
    ) -> Result:
        """Minimise from `x0` (default zero).  `generator` feeds the random rule.

        Raises InputError for an infeasible x0, a coordinate without curvature, a block size above n, or a block whose
        matrix is not positive definite where its inverse is needed; UnsupportedError for matrix updates under a
        penalty.
        """
        run = _Run(self, problem, x0, numpy_generator(0, "coordinate descent") if generator is None else generator)
        rows: list[tuple[Any, ...]] = []
        run.record(rows, 0, False)
        for iteration in range(1, self.max_iter + 1):
            if run.settled():
                break
            run.record(rows, iteration, run.step(iteration))
        return run.result(rows)


class _Run:
    """The moving parts of one solve."""

    def __init__(
        self, solver: BlockCoordinateDescent, problem: Problem, x0: np.ndarray | None, generator: np.random.Generator
    ):
        self.solver, self.problem, self.generator = solver, problem, generator
        x0 = np.zeros(problem.size) if x0 is None else np.asarray(x0, dtype=np.float64)
        if x0.shape != (problem.size,) or not np.isfinite(x0).all():
            raise InputError(f"x0 must be {problem.size} finite numbers, got shape {x0.shape}")
        if not np.isfinite(problem.penalty.each(x0)).all():
            raise InputError("x0 lies outside the constraint set; start from a feasible point")
        self.smooth = isinstance(problem.penalty, Nothing)
        if not self.smooth and solver.update not in ("gradient", "diagonal"):
            raise UnsupportedError(f"update {solver.update!r} has no closed form under a penalty; use 'diagonal'")
        self.lipschitz, self.majoriser = curvature_diagonals(problem.curvature)
        self.partition: Partition = make_partition(solver.blocks, solver.block_size, problem.curvature, self.lipschitz)
        self.tracker: Tracker = problem.track(x0)
        self.calls = 0
        self.unchanged, self.free = 0, problem.penalty.free(x0)

    def residual(self) -> float:
        x, gradient = self.tracker.x, self.tracker.gradient
        moved = self.problem.penalty.prox(x - gradient / self.lipschitz, 1 / self.lipschitz)
        return float(np.max(np.abs(self.lipschitz * (x - moved))))

    def settled(self) -> bool:
        if self.residual() > self.solver.tol:
            return False
        self.tracker.refresh()  # what was kept up to date has drifted; only a fresh gradient may end the run
        return self.residual() <= self.solver.tol

    def record(self, rows: list[tuple[Any, ...]], iteration: int, working_set: bool) -> None:
        value = self.tracker.value() + float(self.problem.penalty.each(self.tracker.x).sum())
        rows.append((iteration, self.calls, value, self.residual(), working_set))

    def result(self, rows: list[tuple[Any, ...]]) -> Result:
        self.tracker.refresh()
        x, residual = self.tracker.x, self.residual()
        value = self.problem.value(x) + float(self.problem.penalty.each(x).sum())
        done = residual <= self.solver.tol
        return Result(x, value, residual, len(rows) - 1, self.calls, done, np.array(rows, dtype=TRACE))

    def step(self, iteration: int) -> bool:
        """One update; True when it was a working-set step."""
        after = self.solver.working_set_after
        if not self.smooth and after is not None and self.unchanged >= after and self.free.any():
            self.unchanged = 0
            self.calls += working_set_step(self.problem, self.tracker)
            self.free = self.problem.penalty.free(self.tracker.x)
            return True
        block = self._choose(iteration)
        change = self._change(block)
        self.calls += len(block)
        self.tracker.move(block, change)
        free = self.problem.penalty.free(self.tracker.x)
        self.unchanged = self.unchanged + 1 if np.array_equal(free, self.free) else 0
        self.free = free
        return False

    def _choose(self, iteration: int) -> np.ndarray:
        rule, size = self.solver.rule, self.partition.block_size
        if self.partition.blocks is not None:
            count = len(self.partition.blocks)
            if rule == "cyclic":
                return self.partition.blocks[(iteration - 1) % count]
            if rule == "random":
                return self.partition.blocks[int(self.generator.integers(count))]
            return self.partition.blocks[int(np.argmax(self._block_scores()))]
        n = self.problem.size
        if rule == "cyclic":
            return np.sort((np.arange(size) + (iteration - 1) * size) % n)
        if rule == "random" and self.partition.adjacency is None:
            return np.sort(self.generator.choice(n, size, replace=False))
        scores = self.generator.random(n) if rule == "random" else self._coordinate_scores()
        if self.partition.adjacency is not None:
            return forest_block(scores, self.partition.adjacency)
        block = np.sort(np.argpartition(-scores, size - 1)[:size])
        return self._thresholded(block) if rule == "gsq" and self.smooth else block

    def _block_scores(self) -> np.ndarray:
        assert self.partition.blocks is not None
        if not self.smooth:
            scores = self._coordinate_scores()
            return np.array([scores[block].sum() for block in self.partition.blocks])
        return self.partition.scores(self.solver.rule, self.tracker.gradient, self.majoriser)

    def _coordinate_scores(self) -> np.ndarray:
        gradient = self.tracker.gradient
        weight = {"gs": np.ones_like(self.lipschitz), "gsl": self.lipschitz}.get(self.solver.rule, self.majoriser)
        if self.smooth:
            return gradient**2 / weight
        x, penalty = self.tracker.x, self.problem.penalty
        moved = penalty.prox(x - gradient / weight, 1 / weight)
        d = moved - x
        return penalty.each(x) - penalty.each(moved) - gradient * d - weight * d**2 / 2

    def _thresholded(self, start: np.ndarray) -> np.ndarray:
        """Block of nearly the largest gsq score: iterative hard thresholding from the gsd block, at most 10 steps."""
        H, g = self.problem.curvature, self.tracker.gradient
        step = 1 / self.partition.largest_eigenvalue
        block, d = start, np.zeros(len(g))
        for _ in range(10):
            d = d - step * (g + H @ d)
            found = np.sort(np.argpartition(-np.abs(d), len(start) - 1)[: len(start)])
            d[np.setdiff1d(np.arange(len(d)), found)] = 0.0
            block = found
        scores = [g[b] @ _solved(submatrix(H, b), g[b]) for b in (start, block)]
        return block if scores[1] > scores[0] else start

    def _change(self, block: np.ndarray) -> np.ndarray:
        update, gradient = self.solver.update, self.tracker.gradient[block]
        if update in ("gradient", "diagonal"):
            return self._proximal(block, gradient)
        if update == "newton":
            return self._newton(block, gradient)
        H = self.problem.curvature
        if update == "message_passing":
            return solve_forest(H[block][:, block] if sp.issparse(H) else submatrix(H, block), gradient)
        return -_solved(submatrix(H, block), gradient)

    def _proximal(self, block: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        if self.solver.update == "diagonal":
            weight = self.majoriser[block]
        else:
            weight = np.full(len(block), self.partition.lipschitz(block, self.problem.curvature))
        x = self.tracker.x[block]
        return self.problem.penalty.prox(x - gradient / weight, 1 / weight) - x

    def _newton(self, block: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        direction = -_solved(self.problem.hessian(self.tracker.x, block), gradient)
        slope, start, x, length = float(gradient @ direction), self.problem.value(self.tracker.x), self.tracker.x, 1.0
        rounding = 1e-14 * max(1.0, abs(start))  # near the end a decrease is smaller than the value's last digit
        while length > 1e-10:
            trial = x.copy()
            trial[block] += length * direction
            if self.problem.value(trial) <= start + 1e-4 * length * slope + rounding:
                return length * direction
            length /= 2
        return np.zeros(len(block))


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    try:
        factor = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError as error:
        raise InputError(
            "a block of the curvature matrix is not positive definite; use the gradient or diagonal update, or add a "
            "little l2"
        ) from error
    return np.asarray(np.linalg.solve(factor.T, np.linalg.solve(factor, right)))
