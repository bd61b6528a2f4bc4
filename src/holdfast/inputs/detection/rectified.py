"""Energy after clipping large activations, ReAct (Sun, Guo and Li, 2021).

    score(x) = log Σ_k exp z_k,   z = W min(f, c) + b,   c a quantile of all training activations

Foreign inputs tend to set off few features strongly; clipping takes that away from them and little from others.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, check_is_fitted

from holdfast.core.errors import InputError
from holdfast.core.seeds import numpy_generator
from holdfast.inputs.detection.linear_head import LinearHead
from holdfast.inputs.detection.scores import energy

#: About how many values are looked at to say where a quantile lies.
SAMPLE = 20_000


class RectifiedEnergy(BaseEstimator):
    """Detector on the features that enter a classifier's last layer.

    Parameters
    ----------
    head : the last layer, `LinearHead.of(model)`
    quantile : of the training activations that are kept as they are
    contamination : share of the training examples that `predict` calls not typical

    Attributes
    ----------
    clip_ : float
    offset_ : threshold of `predict`
    """

    def __init__(self, head: LinearHead, quantile: float = 0.9, contamination: float = 0.05):
        self.head = head
        self.quantile = quantile
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> RectifiedEnergy:
        """Find the clipping value on features of training inputs; `y` is ignored."""
        if not (0 < self.quantile <= 1 and 0 <= self.contamination <= 0.5):
            raise InputError(
                f"quantile must lie in (0, 1] and contamination in [0, 0.5], got {self.quantile} and "
                f"{self.contamination}"
            )
        X = check_array(X, dtype=np.float64)
        self.clip_ = quantile_of_many(X.ravel(), self.quantile)
        self.offset_ = float(np.quantile(self._energy(X), self.contamination))
        return self

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """Energy of the clipped features; higher is more typical."""
        check_is_fitted(self, "clip_")
        return self._energy(check_array(X, dtype=np.float64))

    def predict(self, X: Any) -> np.ndarray:
        """+1 for rows that are typical of the training data, -1 for rows that are not; shape (n,)."""
        return np.where(self.score_samples(X) >= self.offset_, 1, -1)

    def _energy(self, X: np.ndarray) -> Float[np.ndarray, " n"]:
        return energy(self.head.logits(np.minimum(X, self.clip_)))


def quantile_of_many(values: Float[np.ndarray, " n"], q: float) -> float:
    """`np.quantile` of finite values, exactly, several times sooner for millions.

    A sample says between which two values the quantile very probably lies; only what lies between them is ordered.
    """
    n = len(values)
    place = q * (n - 1)
    rank = min(int(place), n - 2)
    if n >= 4 * SAMPLE:
        # Whatever the sample, the answer is the same; random places, since steps can fall in with the features.
        sample = np.sort(values[numpy_generator(0, "quantile").integers(n, size=SAMPLE)])
        slack = 4 * math.sqrt(SAMPLE)
        first, last = int(q * SAMPLE - slack), int(q * SAMPLE + slack)
        low = sample[first] if first >= 0 else -math.inf
        high = sample[last] if last < SAMPLE else math.inf
        between = values[(values >= low) & (values <= high)]
        order = rank - int(np.count_nonzero(values < low))
        if 0 <= order < len(between) - 1:
            lower, upper = np.partition(between, [order, order + 1])[order : order + 2]
            return float(lower + (upper - lower) * (place - rank))
    return float(np.quantile(values, q))
