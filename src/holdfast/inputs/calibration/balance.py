"""Balance score: calibration without bins, as the average gain of a bettor at the forecast's fair odds.

With q the probability of the predicted side and c whether it came true, the bettor on that side gains

    g_i = c_i - q_i  (1 - q when right, -q when wrong),     B = mean_i g_i,     E[g | q] = P(c | q) - q.

B > 0: under-confident; B < 0: over-confident; B = 0 for a calibrated forecast.  |B| <= ECE = E|P(c | q) - q|, with
equality when the error has one sign.  Errors of opposite signs cancel: `balance_profile` splits the forecasts where the
sign turns and adds up what cancels.  B is no proper score: forecasting the base rate always has B = 0.

Shapes: y (n,), p (n,) or (n, classes), see `forecasts`.  Paper: "Evaluating probability estimates without the true
probability" (the balance score; binary and top-label).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import ndtr
from sklearn.isotonic import IsotonicRegression

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import paired_difference
from holdfast.core.sequences import anytime_mean
from holdfast.inputs.calibration.forecasts import Forecasts, Outcomes, sides
from holdfast.inputs.calibration.reliability import CROSS_FIT

#: Stretches of q with fewer examples than this share are not shown as parts of their own.
_SMALLEST_PART = 0.05


def gains(y: Outcomes, p: Forecasts) -> Float[np.ndarray, " n"]:
    """c - q of every example, in [-1, 1].  Raises InputError on forecasts that are no probabilities."""
    q, c = sides(y, p)
    return c - q


def balance_score(
    y: Outcomes, p: Forecasts, *, level: float = 0.95, interval: Literal["normal", "anytime"] = "normal"
) -> Estimate:
    """Signed balance B; its absolute value is the score.

    "normal": Student's interval for a fixed n >= 2.  "anytime": by betting, valid at every n and at every look.
    Raises InputError on forecasts that are no probabilities, or fewer than 2 examples for "normal".
    """
    gain = gains(y, p)
    if interval == "anytime":
        return anytime_mean(gain, level=level, bounds=(-1.0, 1.0))
    return _mean(gain, level)


def balance_test(y: Outcomes, p: Forecasts) -> float:
    """Two-sided p-value of "calibrated": B / sqrt(sum q (1 - q) / n^2) is standard normal then.

    Raises InputError on forecasts that are no probabilities, or when all are 0 or 1 and nothing is left to chance.
    """
    q, c = sides(y, p)
    variance = float(np.sum(q * (1 - q)))
    if variance == 0:
        raise InputError("every forecast is 0 or 1, so under the hypothesis nothing varies; count the errors instead")
    return float(2 * ndtr(-abs(np.sum(c - q)) / math.sqrt(variance)))


@dataclass(frozen=True)
class BalancePart:
    """Examples whose gains point one way: a user's group or a stretch of q, its share of all, and its balance."""

    name: str
    share: float
    balance: Estimate


@dataclass(frozen=True)
class BalanceProfile:
    """Where a forecast is over- and where under-confident, and what of it cancels in B.

    `lower_bound` estimates a number that the true ECE is at least: E[s g], s the sign of P(c | q) - q (or of a group's
    balance) guessed from other examples.
    """

    balance: Estimate
    parts: tuple[BalancePart, ...]
    lower_bound: Estimate


def balance_profile(
    y: Outcomes, p: Forecasts, groups: Shaped[np.ndarray, " n"] | None = None, *, level: float = 0.95
) -> BalanceProfile:
    """Balance over the groups given, else over stretches of q on which an isotonic fit of c stays on one side of q.

    The lower bound is cross-fitted: each half of the examples (every other one by q) tells the signs for the other, so
    chance does not inflate it and it is about 0, either sign, for calibrated forecasts.  Its interval allows for the
    two halves having told each other's signs (`reliability.CROSS_FIT`).
    Raises InputError on forecasts that are no probabilities, groups of another length or fewer than 8 examples.
    """
    q, c = sides(y, p)
    if len(q) < 8:
        raise InputError(f"a balance profile needs at least 8 examples, got {len(q)}")
    if groups is not None and len(groups) != len(q):
        raise InputError(f"got {len(groups)} groups for {len(q)} examples")
    half = np.empty(len(q), dtype=bool)
    half[np.lexsort((np.arange(len(q)), q))] = np.arange(len(q)) % 2 == 0
    signs = np.zeros(len(q))
    for told in (half, ~half):
        signs[~told] = _signs(q, c, groups, told)(~told)
    if groups is None:
        names, member = _stretches(q, _signs(q, c, None, np.ones(len(q), dtype=bool))(np.ones(len(q), dtype=bool)))
    else:
        found, member = np.unique(groups, return_inverse=True)
        names = tuple(str(name) for name in found)
    parts = tuple(
        BalancePart(name, float(np.mean(member == k)), _mean((c - q)[member == k], level))
        for k, name in enumerate(names)
        if np.sum(member == k) >= 2
    )
    crossed = _mean(signs * (c - q), level)
    half_width = CROSS_FIT * crossed.width / 2
    bound = replace(crossed, low=crossed.value - half_width, high=crossed.value + half_width, method="cross-fit")
    return BalanceProfile(_mean(c - q, level), parts, bound)


def _mean(values: Float[np.ndarray, " n"], level: float) -> Estimate:
    if len(values) < 2:
        raise InputError(f"an interval for a balance needs at least 2 examples, got {len(values)}")
    return paired_difference(np.zeros(len(values)), values, level)


def _signs(
    q: np.ndarray, c: np.ndarray, groups: np.ndarray | None, told: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Signs of P(c | q) - q for any examples, as the examples in `told` let one guess."""
    if groups is not None:
        sums = {group: float(np.sum((c - q)[told & (groups == group)])) for group in np.unique(groups)}
        return lambda asked: np.sign([sums[group] for group in groups[asked]])
    fit = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(q[told], c[told])
    return lambda asked: np.sign(fit.predict(q[asked]) - q[asked])


def _stretches(q: np.ndarray, signs: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Runs of one sign in the order of q; runs of few examples join a neighbour."""
    order = np.argsort(q, kind="stable")
    smallest = max(2, math.ceil(_SMALLEST_PART * len(q)))
    long_runs = [start for start, stop in _runs(signs[order]) if stop - start >= smallest]
    starts = [0]
    for before, start in itertools.pairwise(long_runs):
        if signs[order[before]] != signs[order[start]]:
            starts.append(start)
    member = np.empty(len(q), dtype=np.int64)
    member[order] = np.searchsorted(starts, np.arange(len(q)), side="right") - 1
    ends = [*starts[1:], len(q)]
    names = tuple(f"confidence {q[order[start]]:.2f} to {q[order[stop - 1]]:.2f}" for start, stop in zip(starts, ends))
    return names, member


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    turns = np.flatnonzero(np.diff(values)) + 1
    return list(zip([0, *turns.tolist()], [*turns.tolist(), len(values)]))
