"""Mahalanobis feature detector (Lee, Lee, Lee and Shin, 2018).

Features of class c are modelled as N(mu_c, Sigma) with one shared covariance; the confidence of an input is

    M(x) = max_c  -(f(x) - mu_c)^T Sigma^-1 (f(x) - mu_c)

so low scores are unlike anything in the training set.  Since a softmax classifier is the posterior of such a model,
argmax_c of the same quantity is a classifier as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, solve_triangular
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from holdfast.core.errors import InputError


class MahalanobisDetector(BaseEstimator):
    """Score how typical feature vectors are of the classes seen in training.

    Parameters
    ----------
    shrinkage : float in [0, 1] or "ledoit-wolf"
        Pull of the shared covariance towards a scaled identity; needed when features outnumber examples.  0 is the
        paper's maximum-likelihood covariance.
    contamination : float in [0, 0.5]
        Share of the training examples that `predict` calls not typical; it sets `offset_`.

    Attributes
    ----------
    classes_ : (classes,)
    means_ : (classes, features)
    pooled_covariance_ : (features, features), before shrinkage
    covariance_ : (features, features), after shrinkage
    shrinkage_ : float, the share that was used
    offset_ : float, the threshold of `predict`
    """

    # scikit-learn wants every check of a setting in `fit`, none here.
    def __init__(self, shrinkage: Any = "ledoit-wolf", contamination: Any = 0.05):
        self.shrinkage = shrinkage
        self.contamination = contamination

    def fit(self, X: Any, y: Any) -> MahalanobisDetector:
        """Estimate class means and the tied covariance.

        Raises InputError when a class has fewer than two examples, or the covariance is singular at this shrinkage.
        """
        _check_settings(self.shrinkage, self.contamination)
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        counts = np.bincount(index)
        if counts.min() < 2:
            alone = self.classes_[counts.argmin()]
            raise InputError(
                f"class {alone!r} has 1 sample; a mean and a spread need at least two, add more or drop it"
            )
        self.means_ = np.stack([X[index == c].mean(axis=0) for c in range(len(self.classes_))])
        residuals = X - self.means_[index]
        self.pooled_covariance_ = residuals.T @ residuals / len(X)
        self.shrinkage_ = (
            float(ledoit_wolf_shrinkage(residuals, assume_centered=True))
            if isinstance(self.shrinkage, str)
            else float(self.shrinkage)
        )
        self._factorise()
        self.offset_ = float(np.quantile(self.score_samples(X), self.contamination))
        return self

    def partial_fit_class(self, X: Any, label: Any) -> MahalanobisDetector:
        """Add a class from its examples alone: Sigma <- (C Sigma + Sigma_new) / (C + 1), no retraining.

        `offset_` stays as it was.  Raises InputError when the class is known already, is of another kind than the known
        ones (a name among numbers), or has fewer than two examples.
        """
        check_is_fitted(self)
        kind, given = self.classes_.dtype.kind, np.asarray(label)
        if given.ndim or not (kind in ("O", given.dtype.kind) or (kind in "iuf" and given.dtype.kind in "iu")):
            raise InputError(
                f"class {label!r} is no label like the known ones ({self.classes_[0]!r}, ...); name it as they are"
            )
        X = validate_data(self, X, dtype=np.float64, reset=False)
        if label in self.classes_:
            raise InputError(f"class {label!r} is known already; fit again to change it")
        if len(X) < 2:
            raise InputError(f"class {label!r} has {len(X)} example; a mean and a spread need at least two")
        known = len(self.classes_)
        mean = X.mean(axis=0)
        covariance = (X - mean).T @ (X - mean) / len(X)
        self.pooled_covariance_ = (known * self.pooled_covariance_ + covariance) / (known + 1)
        self.classes_ = np.append(self.classes_, label)
        self.means_ = np.vstack([self.means_, mean])
        self._factorise()
        return self

    def class_distances(self, X: Any) -> Float[np.ndarray, "n classes"]:
        """Squared Mahalanobis distance of every row to every class mean."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return cdist(self._whiten(X), self._whiten(self.means_), "sqeuclidean")

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """Negative squared distance to the nearest class mean; higher is more typical."""
        return -self.class_distances(X).min(axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """+1 for rows that are typical of the training data, -1 for rows that are not; shape (n,)."""
        return np.where(self.score_samples(X) >= self.offset_, 1, -1)

    def predict_class(self, X: Any) -> np.ndarray:
        """Class with the nearest mean: the generative classifier behind the score; shape (n,)."""
        return self.classes_[self.class_distances(X).argmin(axis=1)]

    def _whiten(self, X: np.ndarray) -> np.ndarray:
        return solve_triangular(self._cholesky, X.T, lower=True).T

    def _factorise(self) -> None:
        covariance, share = self.pooled_covariance_, self.shrinkage_
        features = len(covariance)
        scale = np.trace(covariance) / features
        self.covariance_ = (1 - share) * covariance + share * scale * np.eye(features)
        try:
            factor, _ = cho_factor(self.covariance_, lower=True)
        except np.linalg.LinAlgError as error:
            raise _singular(features, share) from error
        factor = np.tril(factor)
        # Rounding can let a singular matrix through; its last pivots are then noise and distances mean nothing.
        spread = np.sqrt(np.diag(self.covariance_))
        if np.any(np.diag(factor) <= 1e-7 * spread):
            raise _singular(features, share)
        self._cholesky = factor

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def _singular(features: int, share: float) -> InputError:
    return InputError(
        f"the shared covariance of {features} features is singular at shrinkage {share:g} (constant or dependent "
        'features, or fewer examples than features); use shrinkage="ledoit-wolf" or a positive number, '
        "or drop those features"
    )


def _check_settings(shrinkage: Any, contamination: float | int) -> None:
    if isinstance(shrinkage, str):
        if shrinkage != "ledoit-wolf":
            raise InputError(f'shrinkage must be a number in [0, 1] or "ledoit-wolf", got {shrinkage!r}')
    elif not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage must lie in [0, 1], got {shrinkage}")
    if not 0 <= contamination <= 0.5:
        raise InputError(f"contamination must lie in [0, 0.5], got {contamination}")
