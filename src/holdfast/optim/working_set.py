"""Exact steps on the coordinates where the penalty is smooth."""

from __future__ import annotations

import numpy as np

from holdfast.optim.problem import Problem, Tracker


def working_set_step(problem: Problem, tracker: Tracker) -> int:
    """Minimise over the free coordinates by Newton steps that stop at the first kink; returns coordinates updated.

    On a quadratic each step either reaches the minimiser of the face or puts at least one more coordinate on its kink,
    so there are at most as many steps as free coordinates.  Otherwise Armijo's rule guards each step.
    """
    penalty, calls = problem.penalty, 0
    for _ in range(int(penalty.free(tracker.x).sum())):
        tracker.refresh()  # finite termination is a statement about exact gradients
        block = np.flatnonzero(penalty.free(tracker.x))
        if len(block) == 0:
            break
        slope = tracker.gradient[block] + penalty.slope(tracker.x)[block]
        direction = -np.linalg.lstsq(problem.hessian(tracker.x, block), slope, rcond=None)[0]
        target, whole = _search(problem, tracker, block, direction, float(slope @ direction))
        tracker.move(block, target - tracker.x[block])
        calls += len(block)
        if whole:
            break
    tracker.refresh()
    return calls


def _search(
    problem: Problem, tracker: Tracker, block: np.ndarray, direction: np.ndarray, slope: float
) -> tuple[np.ndarray, bool]:
    """Where the free coordinates go along `direction`, and whether that is all there is to do on this face."""
    penalty, x = problem.penalty, tracker.x
    whole = np.zeros(problem.size)
    whole[block] = direction
    reach = penalty.reach(x, whole)[block]
    length = min(1.0, float(reach.min()))
    kinked = reach <= length
    start = _objective(problem, x)
    rounding = 1e-14 * max(1.0, abs(start))
    while length > 1e-12:
        target = x[block] + length * direction
        target[kinked] = penalty.kink(target)[kinked]  # exactly on the kink, not one rounding beside it
        trial = x.copy()
        trial[block] = target
        if _objective(problem, trial) <= start + 1e-4 * length * slope + rounding:
            return target, length == 1.0 and not kinked.any()
        length /= 2
        kinked = np.zeros(len(block), dtype=bool)
    return x[block], True


def _objective(problem: Problem, x: np.ndarray) -> float:
    return problem.value(x) + float(problem.penalty.each(x).sum())
