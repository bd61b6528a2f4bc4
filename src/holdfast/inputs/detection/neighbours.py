"""Distance to the k-th nearest training example in feature space (Sun, Ming, Zhu and Li, 2022).

    score(x) = -|| z - z_(k) ||,   z = f / ||f||,   z_(k) the k-th nearest of the training features

Nothing is assumed of the shape of the data.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.validation import check_is_fitted, validate_data

from holdfast.core.errors import InputError

#: At most so many training examples, evenly spaced, set the threshold: all pairs would take longer than all else.
THRESHOLD_EXAMPLES = 2000


@dataclass(eq=False)
class _Threshold:
    """A quantile of the training examples' own scores; apart, because an estimator's `predict` must not change it."""

    neighbours: NearestNeighbors
    rows: Float[np.ndarray, "n features"]
    k: int
    contamination: float

    @cached_property
    def value(self) -> float:
        # One more neighbour than k: the nearest is the example itself.
        own = self.neighbours.kneighbors(self.rows, self.k + 1)[0][:, -1]
        return float(np.quantile(-own, self.contamination))


class NeighbourDetector(BaseEstimator):
    """Score how near features are to those of training.

    Parameters
    ----------
    k : which neighbour; the authors take 50 for ten classes of 5 000, 1000 for ImageNet.  Fewer examples than k: the
        farthest, with a warning
    normalise : scale features to unit length first
    contamination : float in [0, 0.5], share of the training examples that `predict` calls not typical

    Attributes
    ----------
    k_ : the neighbour in use
    neighbours_ : fitted NearestNeighbors
    offset_ : threshold of `predict`
    """

    # scikit-learn wants every check of a setting in `fit`, none here.
    def __init__(self, k: Any = 50, normalise: Any = True, contamination: Any = 0.05):
        self.k = k
        self.normalise = normalise
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> NeighbourDetector:
        """Remember the training features; `y` is ignored."""
        if self.k < 1 or not 0 <= self.contamination <= 0.5:
            raise InputError(f"k must be at least 1 and contamination in [0, 0.5], got {self.k}, {self.contamination}")
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self.k_ = min(self.k, len(X) - 1)
        if self.k_ < self.k:
            warnings.warn(f"k={self.k} is not below the number of examples, {len(X)}; {self.k_} is used", stacklevel=2)
        self.neighbours_ = NearestNeighbors(n_neighbors=self.k_).fit(self._scaled(X))
        some = X[np.linspace(0, len(X) - 1, min(len(X), THRESHOLD_EXAMPLES)).astype(int)]
        self._threshold = _Threshold(self.neighbours_, self._scaled(some), self.k_, self.contamination)
        return self

    @property
    def offset_(self) -> float:
        """Threshold of `predict`; found when it is first asked for, since that takes nearly as long as scoring."""
        check_is_fitted(self)
        return self._threshold.value

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """Negative distance to the k-th neighbour; higher is more typical."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return -self.neighbours_.kneighbors(self._scaled(X))[0][:, -1]

    def predict(self, X: Any) -> np.ndarray:
        """+1 for rows that are typical of the training data, -1 for rows that are not; shape (n,)."""
        return np.where(self.score_samples(X) >= self.offset_, 1, -1)

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        if not self.normalise:
            return X
        return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
