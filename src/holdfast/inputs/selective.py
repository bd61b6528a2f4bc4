"""Selective prediction: answer only when confident, and know the error rate of what is answered.

Sorted by a confidence score (higher = more confident), accepting the top share c of the examples ("coverage")
leaves the mean loss r(c) among them ("risk").  The area under r(c) is the AURC; lower is better, the mean loss is
its value for a score that knows nothing.  Examples with equal scores cannot be told apart, so a run of ties enters
with its mean loss.

SCOD (selective classification with foreign inputs) also counts accepted foreign inputs, each at cost β.

El-Yaniv and Wiener, 2010; Geifman and El-Yaniv, 2017; Xia and Bouganis, 2022 (SCOD).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import weighted_clopper_pearson
from holdfast.core.seeds import numpy_generator

if TYPE_CHECKING:
    from holdfast.inputs.cascades import TPR, CoverageAtRisk, RiskAtCoverage, WindowCascade, cost_curve

__all__ = [
    "TPR",
    "CoverageAtRisk",
    "RiskAtCoverage",
    "RiskCoverage",
    "WindowCascade",
    "aurc",
    "cost_curve",
    "coverage_at_risk",
    "risk_at_coverage",
    "risk_coverage",
    "scod_risk_coverage",
]

#: Cascades are built on the curves below and found here as well.
_OF_CASCADES = ("TPR", "CoverageAtRisk", "RiskAtCoverage", "WindowCascade", "cost_curve")


def __getattr__(name: str) -> Any:
    if name not in _OF_CASCADES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("holdfast.inputs.cascades"), name)


@dataclass(frozen=True)
class RiskCoverage:
    """Risk at every attainable coverage: accepting all scores >= threshold[i] covers coverage[i] at risk[i]."""

    coverage: Float[np.ndarray, " levels"]
    risk: Float[np.ndarray, " levels"]
    threshold: Float[np.ndarray, " levels"]


def risk_coverage(scores: ArrayLike, losses: ArrayLike) -> RiskCoverage:
    """The curve of `losses` (n,) >= 0, such as 0/1 errors, under acceptance by `scores` (n,)."""
    s, loss = _checked(scores, losses)
    order = np.argsort(-s, kind="stable")
    s, loss = s[order], loss[order]
    last_of_tie = np.flatnonzero(np.append(s[1:] != s[:-1], True))
    accepted = last_of_tie + 1
    return RiskCoverage(accepted / len(s), np.cumsum(loss)[last_of_tie] / accepted, s[last_of_tie])


def aurc(
    scores: ArrayLike,
    losses: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 500,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """Area under the risk-coverage curve: the mean over k of the risk of the k most confident.

    The area is a weighted mean of the losses; its interval is the wider of the bootstrap's and that of
    `weighted_clopper_pearson` at either end.
    """
    s, loss = _checked(scores, losses)
    largest = max(1.0, float(loss.max()))
    exact = weighted_clopper_pearson(loss / largest, _area_weights(s), level)
    return _interval(_area, s, loss, (exact.low * largest, exact.high * largest), level, resamples, generator)


def coverage_at_risk(
    scores: ArrayLike,
    losses: ArrayLike,
    risk: float,
    *,
    level: float = 0.95,
    resamples: int = 500,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """Largest coverage whose risk is at most `risk`; 0 when no threshold reaches it.

    At either end the interval is the wider of the bootstrap's and of what exact binomial bounds on the risk say: it
    reaches down to the largest coverage whose upper bound is at most `risk` (0 when there is none), and up to the
    largest whose lower bound is.
    """
    if not risk >= 0:
        raise InputError(f"the risk to keep must not be negative, got {risk}")

    def covered(s: np.ndarray, loss: np.ndarray) -> float:
        curve = risk_coverage(s, loss)
        return float(curve.coverage[curve.risk <= risk].max(initial=0.0))

    s, loss = _checked(scores, losses)
    largest = max(1.0, float(loss.max()))
    curve = risk_coverage(s, loss)
    accepted, tail = np.rint(curve.coverage * len(s)), (1 - level) / 2
    errors = np.clip(curve.risk / largest * accepted, 0, accepted)
    # scipy's beta quantiles are NaN for a parameter 0, where the bounds are 0 and 1 and so never bind.
    lower = np.nan_to_num(stats.beta.ppf(tail, errors, accepted - errors + 1), nan=0.0) * largest
    upper = np.nan_to_num(stats.beta.ppf(1 - tail, errors + 1, accepted - errors), nan=1.0) * largest
    surely, perhaps = (float(curve.coverage[bound <= risk].max(initial=0.0)) for bound in (upper, lower))
    return _interval(covered, s, loss, (surely, perhaps), level, resamples, generator)


def risk_at_coverage(
    scores: ArrayLike,
    losses: ArrayLike,
    coverage: float,
    *,
    level: float = 0.95,
    resamples: int = 500,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """Risk of the smallest acceptance that covers at least `coverage`.

    The interval is the wider of the bootstrap's and the exact binomial one of the accepted examples at either end;
    losses that may exceed 1 are taken as shares of the largest one seen.
    """
    if not 0 < coverage <= 1:
        raise InputError(f"coverage must lie in (0, 1], got {coverage}")

    def left(s: np.ndarray, loss: np.ndarray) -> float:
        curve = risk_coverage(s, loss)
        return float(curve.risk[np.searchsorted(curve.coverage, coverage - 1e-12)])

    s, loss = _checked(scores, losses)
    curve = risk_coverage(s, loss)
    largest = max(1.0, float(loss.max()))
    taken = loss[s >= curve.threshold[np.searchsorted(curve.coverage, coverage - 1e-12)]] / largest
    exact = weighted_clopper_pearson(taken, np.full(len(taken), 1 / len(taken)), level)
    return _interval(left, s, loss, (exact.low * largest, exact.high * largest), level, resamples, generator)


def scod_risk_coverage(
    scores: ArrayLike, losses: ArrayLike, foreign_scores: ArrayLike, *, foreign_cost: float = 1.0
) -> RiskCoverage:
    """Risk-coverage curve with foreign inputs: accepted examples cost their loss, accepted foreign ones `foreign_cost`.

    Coverage is the accepted share of all inputs, own and foreign.
    """
    if not foreign_cost >= 0:
        raise InputError(f"the cost of an accepted foreign input must not be negative, got {foreign_cost}")
    foreign = np.asarray(foreign_scores, dtype=np.float64)
    everything = np.concatenate([np.asarray(scores, dtype=np.float64), foreign])
    costs = np.concatenate([np.asarray(losses, dtype=np.float64), np.full(len(foreign), foreign_cost)])
    return risk_coverage(everything, costs)


def _area(scores: np.ndarray, losses: np.ndarray) -> float:
    """Mean over k = 1..n of the expected loss of the k most confident when ties are broken at random."""
    order = np.argsort(-scores, kind="stable")
    scores, losses = scores[order], losses[order]
    starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
    lengths = np.diff(np.append(starts, len(scores)))
    smoothed = np.repeat(np.add.reduceat(losses, starts) / lengths, lengths)
    return float(np.mean(np.cumsum(smoothed) / np.arange(1, len(scores) + 1)))


def _area_weights(scores: np.ndarray) -> np.ndarray:
    """Weight of each example's loss in `_area`: 1/n sum over k >= its rank of 1/k, shared among ties."""
    n = len(scores)
    of_rank = np.cumsum(1 / np.arange(n, 0, -1))[::-1] / n
    _, tie, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    return (np.bincount(np.sort(tie), of_rank) / sizes)[tie]


def _interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    s: np.ndarray,
    loss: np.ndarray,
    exact: tuple[float, float],
    level: float,
    resamples: int,
    generator: np.random.Generator | None,
) -> Estimate:
    """The statistic with the wider of the bootstrap interval and `exact` at either end.

    Resampling alone never shows an error that the sample does not hold, so its interval is too short near 0 errors.
    """
    generator = numpy_generator(0, "selective bootstrap") if generator is None else generator
    value = statistic(s, loss)
    picks = (generator.integers(len(s), size=len(s)) for _ in range(resamples))
    low, high = np.quantile([statistic(s[pick], loss[pick]) for pick in picks], [(1 - level) / 2, (1 + level) / 2])
    low, high = min(low, value, exact[0]), max(high, value, exact[1])
    return Estimate(value, float(low), float(high), level, len(s), "bootstrap or exact binomial, the wider")


def _checked(scores: ArrayLike, losses: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    s, loss = np.asarray(scores, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if s.ndim != 1 or s.shape != loss.shape or len(s) == 0:
        raise InputError(f"scores and losses must be two lists of one length, got shapes {s.shape} and {loss.shape}")
    if np.isnan(s).any() or not np.isfinite(loss).all() or (loss < 0).any():
        raise InputError("scores must not hold NaN and losses must be finite and not negative")
    return s, loss
