"""Virtual-logit matching: what features hold beside the classes' subspace, against the energy (Wang et al., 2022).

With the last layer's logits z = W f + b, the origin u = -W⁺ b, and P the projection on the directions of least variance
of f - u over training data (all but the first `dimension`),

    score(x) = log Σ_k exp z_k - α || P (f - u) ||,   α = mean max_k z_k / mean || P (f - u) ||   over training data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, check_is_fitted

from holdfast.core.errors import InputError
from holdfast.inputs.detection.linear_head import LinearHead
from holdfast.inputs.detection.scores import energy


class VirtualLogit(BaseEstimator):
    """Detector on the features that enter a classifier's last layer.

    Parameters
    ----------
    head : the last layer, `LinearHead.of(model)`
    dimension : of the principal subspace; None: 1000 of 2048 features or more, 512 of 768 or more, else half of them
    contamination : share of the training examples that `predict` calls not typical

    Attributes
    ----------
    origin_ : (features,)
    residual_ : (features, features - dimension), orthonormal
    alpha_ : float
    offset_ : threshold of `predict`
    """

    def __init__(self, head: LinearHead, dimension: int | None = None, contamination: float = 0.05):
        self.head = head
        self.dimension = dimension
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> VirtualLogit:
        """Find subspace and scale on features of training inputs; `y` is ignored.

        Raises InputError for a dimension that leaves no residual, or features that have none.
        """
        X = check_array(X, dtype=np.float64, ensure_min_samples=2)
        size = X.shape[1]
        dimension = self.dimension
        if dimension is None:
            dimension = 1000 if size >= 2048 else 512 if size >= 768 else size // 2
        if not 1 <= dimension < size or not 0 <= self.contamination <= 0.5:
            raise InputError(
                f"dimension must lie in 1..{size - 1} and contamination in [0, 0.5], got {dimension} and "
                f"{self.contamination}"
            )
        logits = self.head.logits(X)
        self.origin_ = -np.linalg.pinv(self.head.weight) @ self.head.bias
        centred = X - self.origin_
        _, directions = np.linalg.eigh(centred.T @ centred / len(X))  # by rising variance
        self.residual_ = directions[:, : size - dimension]
        lengths = np.linalg.norm(centred @ self.residual_, axis=1)
        if not lengths.mean() > 1e-9 * np.abs(centred).max():
            raise InputError(
                f"the features lie in {dimension} dimensions and have no residual; choose a smaller dimension"
            )
        self.alpha_ = float(logits.max(axis=1).mean() / lengths.mean())
        self.offset_ = float(np.quantile(energy(logits) - self.alpha_ * lengths, self.contamination))
        return self

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """Energy less the virtual logit; higher is more typical."""
        check_is_fitted(self, "alpha_")
        X = check_array(X, dtype=np.float64)
        return energy(self.head.logits(X)) - self.alpha_ * self._length(X)

    def predict(self, X: Any) -> np.ndarray:
        """+1 for rows that are typical of the training data, -1 for rows that are not; shape (n,)."""
        return np.where(self.score_samples(X) >= self.offset_, 1, -1)

    def _length(self, X: np.ndarray) -> np.ndarray:
        return np.linalg.norm(X @ self.residual_ - self.origin_ @ self.residual_, axis=1)
