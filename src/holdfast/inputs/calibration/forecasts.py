"""Probability forecasts and what came of them, in the one form all calibration measures take.

A forecast is p (n,), the probability of class 1 of a binary event, or p (n, classes).  Its *side* is the class it
predicts (class 1 on a tie at 1/2; the first of tied classes), q the probability it gives that side, and c whether the
side came true: top-label calibration asks whether P(c = 1 | q) = q.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from holdfast.core.errors import InputError

Outcomes = Int[np.ndarray, " n"] | Bool[np.ndarray, " n"] | Float[np.ndarray, " n"]
Forecasts = Float[np.ndarray, " n"] | Float[np.ndarray, "n classes"]

_SUM_SLACK = 1e-3  # float32 softmax over many classes does not sum to one exactly, nor do averages stay within [0, 1]


def checked(y: Outcomes, p: Forecasts) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "..."]]:
    """Class indices and float64 probabilities.

    Raises InputError when lengths differ or are zero, p holds NaN or leaves [0, 1], rows of p do not sum to one, or
    y holds anything but class indices.  Probabilities beyond 0 or 1 by what rounding can do are clipped.
    """
    if len(y) != len(p) or len(y) == 0:
        raise InputError(
            f"calibration needs one forecast for every outcome and at least one, got {len(p)} and {len(y)}"
        )
    p = np.asarray(p, dtype=np.float64)
    if not (np.isfinite(p).all() and p.min() >= -_SUM_SLACK and p.max() <= 1 + _SUM_SLACK):
        raise InputError(
            f"forecasts must be probabilities in [0, 1], got values from {p.min():g} to {p.max():g}; pass logits "
            "through a softmax first"
        )
    if p.ndim == 2 and np.abs(p.sum(axis=1) - 1).max() > _SUM_SLACK:
        raise InputError(f"rows of probabilities must sum to 1, one sums to {p.sum(axis=1)[_worst_row(p)]:g}")
    p = np.clip(p, 0, 1)
    classes = 2 if p.ndim == 1 else p.shape[1]
    outcomes = np.asarray(y, dtype=np.float64)
    if not np.isin(outcomes, np.arange(classes)).all():
        wanted = "0 or 1" if p.ndim == 1 else f"class indices 0..{classes - 1}"
        raise InputError(f"outcomes must be {wanted}, got values from {outcomes.min():g} to {outcomes.max():g}")
    return outcomes.astype(np.int64), p


def _worst_row(p: np.ndarray) -> int:
    return int(np.abs(p.sum(axis=1) - 1).argmax())


def sides(y: Outcomes, p: Forecasts) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """q, the probability of the predicted side, and c, 1.0 where it came true.  Raises InputError as `checked`."""
    y, p = checked(y, p)
    if p.ndim == 1:
        return np.maximum(p, 1 - p), ((p >= 0.5) == (y == 1)).astype(np.float64)
    return p.max(axis=1), (p.argmax(axis=1) == y).astype(np.float64)
