"""Binned calibration: reliability bins, expected calibration error, Brier score and its parts.

Bins are of equal width over [0, 1] or hold equally many examples ("mass", adaptive).  With w_b the share of bin b and
d_b its mean of c - q (c: came true, q: forecast probability):

    ECE = sum_b w_b |d_b|.

Plugging in the observed d_b counts chance as miscalibration.  The debiased estimate takes each bin's sign from the
*other* examples of the bin,

    ECE_loo = (1/n) sum_i (c_i - q_i) sign(sum_{j != i, same bin} (c_j - q_j)),

so it has expectation 0 for calibrated forecasts and never more than the binned ECE; where a bin's sign is clear it is
the plug-in.  Near calibration its distribution is skewed, so the interval does not lean on it: it reaches from
ECE_cross - z k s, where each half of a bin tells the sign for the other, to plug-in + z s, with
s^2 = sum_b w_b^2 s_b^2 / n_b and k from `CROSS_FIT`.  As E[ECE_cross] <= ECE <= E[plug-in], it covers the ECE *of these
bins*, which is at most the bin-free one.

Brier score of one class:  mean (p - y)^2 = reliability - resolution + uncertainty + within,

    reliability = sum w (mean p - mean y)^2,  resolution = sum w (mean y - base)^2,  uncertainty = base (1 - base),
    within = sum w (Var_b p - 2 Cov_b(p, y)),      all per bin (Murphy, 1973; within: Stephenson et al., 2008);

for several classes all are summed over the classes.  Papers: Naeini et al. (2015, ECE); Kull et al. (2019, classwise).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import wilson
from holdfast.inputs.calibration.forecasts import Forecasts, Outcomes, checked, sides

Strategy = Literal["mass", "width"]

#: Two halves A, B that tell each other's sign give sgn(A) B + sgn(B) A.  Where the signs are chance these two have
#: correlation 2/pi, so the standard deviation of the sum is at most this factor above that of independent halves.
CROSS_FIT = math.sqrt(1 + 2 / math.pi)


@dataclass(frozen=True)
class ReliabilityBins:
    """Non-empty bins in increasing order of confidence; accuracy carries a Wilson interval."""

    confidence: Float[np.ndarray, " bins"]
    accuracy: tuple[Estimate, ...]
    counts: Int[np.ndarray, " bins"]


@dataclass(frozen=True)
class BrierParts:
    """score = reliability - resolution + uncertainty + within; lower reliability and higher resolution are better."""

    score: float
    reliability: float
    resolution: float
    uncertainty: float
    within: float


def reliability_bins(
    y: Outcomes, p: Forecasts, bins: int = 15, strategy: Strategy = "width", level: float = 0.95
) -> ReliabilityBins:
    """Mean confidence and accuracy of the predicted side per bin.  Raises InputError on bad forecasts or bins < 1."""
    q, c = sides(y, p)
    member = bin_of(q, bins, strategy)
    counts = np.bincount(member)
    accuracy = tuple(
        wilson(int(hits), int(count), level) for hits, count in zip(np.bincount(member, weights=c).round(), counts)
    )
    return ReliabilityBins(np.bincount(member, weights=q) / counts, accuracy, counts)


def expected_calibration_error(
    y: Outcomes,
    p: Forecasts,
    bins: int = 15,
    debiased: bool = True,
    *,
    strategy: Strategy = "mass",
    level: float = 0.95,
) -> Estimate:
    """Top-label ECE over `bins` bins, in probability units.

    The value is ECE_loo, not below 0, or the plug-in with `debiased=False`; the interval is the same for both.
    Raises InputError on bad forecasts or bins < 1.
    """
    q, c = sides(y, p)
    return _binned_error(q, c, bins, debiased, strategy, level)


def classwise_calibration_error(
    y: Outcomes,
    p: Float[np.ndarray, "n classes"],
    bins: int = 15,
    debiased: bool = True,
    *,
    strategy: Strategy = "mass",
    level: float = 0.95,
) -> tuple[Estimate, ...]:
    """ECE of each class's own probability against "it is that class", every example counted for every class.

    Sees errors in the probabilities of classes that were not predicted.  Raises InputError as above.
    """
    y, p = checked(y, p)
    return tuple(
        _binned_error(p[:, k], (y == k).astype(np.float64), bins, debiased, strategy, level) for k in range(p.shape[1])
    )


def brier_parts(y: Outcomes, p: Forecasts, bins: int = 15, strategy: Strategy = "mass") -> BrierParts:
    """Brier score and its parts; p (n,) counts class 1 only, p (n, classes) sums over classes (range [0, 2]).

    Raises InputError on bad forecasts or bins < 1.
    """
    y, p = checked(y, p)
    columns = [(p, (y == 1).astype(np.float64))] if p.ndim == 1 else [
        (p[:, k], (y == k).astype(np.float64)) for k in range(p.shape[1])
    ]  # fmt: skip
    parts = np.sum([_brier_of_one_class(forecast, came, bins, strategy) for forecast, came in columns], axis=0)
    return BrierParts(*(float(part) for part in parts))


def _brier_of_one_class(p: np.ndarray, y: np.ndarray, bins: int, strategy: Strategy) -> tuple[float, ...]:
    member = bin_of(p, bins, strategy)
    counts = np.bincount(member)
    mean_p, mean_y = np.bincount(member, weights=p) / counts, np.bincount(member, weights=y) / counts
    weights, base = counts / len(p), y.mean()
    spread, agreement = p - mean_p[member], y - mean_y[member]
    return (
        float(np.mean((p - y) ** 2)),
        float(weights @ (mean_p - mean_y) ** 2),
        float(weights @ (mean_y - base) ** 2),
        float(base * (1 - base)),
        float(np.mean(spread**2 - 2 * spread * agreement)),
    )


def bin_of(q: Float[np.ndarray, " n"], bins: int, strategy: Strategy) -> Int[np.ndarray, " n"]:
    """Index of every forecast's bin, empty bins left out; forecasts that are equal share a bin.

    Raises InputError when bins < 1 or the strategy is unknown.
    """
    if bins < 1:
        raise InputError(f"bins must be at least 1, got {bins}")
    if strategy == "width":
        raw = np.minimum((q * bins).astype(np.int64), bins - 1)
    elif strategy == "mass":
        raw = np.searchsorted(np.quantile(q, np.arange(1, bins) / bins), q, side="left")
    else:
        raise InputError(f'bins are made by "mass" or by "width", got {strategy!r}')
    return np.unique(raw, return_inverse=True)[1]


def _binned_error(
    q: np.ndarray, c: np.ndarray, bins: int, debiased: bool, strategy: Strategy, level: float
) -> Estimate:
    if not 0 < level < 1:
        raise InputError(f"level must lie strictly between 0 and 1, got {level}")
    n, member, gain = len(q), bin_of(q, bins, strategy), c - q
    sums = np.bincount(member, weights=gain)
    plug_in = float(np.abs(sums).sum() / n)
    left_out = float(np.mean(gain * _sign(sums[member] - gain)))
    deviation = float(ndtri((1 + level) / 2)) * _deviation(q, gain, member)
    value = max(0.0, left_out) if debiased else plug_in
    low = max(0.0, _crossed(gain, member) - CROSS_FIT * deviation)
    high = min(1.0, plug_in + deviation)
    return Estimate(value, min(low, value), max(high, value), level, n, "cross-fit to plug-in")


def _sign(sums: np.ndarray) -> np.ndarray:
    """Sums that cancel up to rounding have no sign."""
    return np.sign(np.where(np.abs(sums) < 1e-12, 0.0, sums))


def _crossed(gain: np.ndarray, member: np.ndarray) -> float:
    """Mean of every gain times the sign that the other half of its bin has."""
    half = np.empty(len(gain), dtype=np.int64)
    half[np.argsort(member, kind="stable")] = np.arange(len(gain)) % 2
    sums = np.bincount(2 * member + half, weights=gain, minlength=2 * (member.max() + 1))
    return float(np.mean(gain * _sign(sums[2 * member + 1 - half])))


def _deviation(q: np.ndarray, gain: np.ndarray, member: np.ndarray) -> float:
    """Standard deviation of sum_b w_b d_b with known signs."""
    counts, sums = np.bincount(member), np.bincount(member, weights=gain)
    squares = np.maximum(np.bincount(member, weights=gain**2) - sums**2 / counts, 0)
    # A bin of one example says nothing of its variance; q (1 - q), what calibration would give, stands in.
    alone = np.bincount(member, weights=q * (1 - q))
    total = np.where(counts > 1, squares * counts / np.maximum(counts - 1, 1), alone).sum()
    return math.sqrt(float(total)) / len(gain)
