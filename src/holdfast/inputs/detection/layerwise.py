"""Mahalanobis scores of several layers, combined by a small classifier (Lee, Lee, Lee and Shin, 2018).

Every layer ℓ has its own class means and tied covariance.  With `magnitude` ε > 0 each input first moves a small step
towards typicality in that layer, x̂ = x + ε sign(∇_x M_ℓ(x)) with the nearest class held fixed, and M_ℓ(x̂) is the
layer's score; typical inputs gain more from the step than others.  The final score is Σ_ℓ α_ℓ M_ℓ with α from a
logistic regression on a few examples of both kinds (foreign data, or adversarial inputs when no foreign data
exists).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.inputs.detection.mahalanobis import MahalanobisDetector
from holdfast.inputs.detection.metrics import auroc
from holdfast.inputs.features import Features, Pool, as_input

#: Step sizes that the authors search, for inputs in [0, 1].
MAGNITUDES = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.0024, 0.005, 0.01, 0.05, 0.1, 0.15)


class LayerwiseMahalanobis(BaseEstimator):
    """Detector over the named layers of a trained torch classifier; inputs are arrays or tensors of its input shape.

    Parameters
    ----------
    model : nn.Module
    layers : names as in `model.named_modules()`
    magnitude : ε of the input step in input units; 0 leaves inputs as they are
    combiner : scikit-learn classifier of layer scores; default a logistic regression on standardised scores
    shrinkage, contamination : as for MahalanobisDetector
    pool : as for Features

    Attributes
    ----------
    detectors_ : one fitted MahalanobisDetector a layer
    combiner_ : the fitted combiner, after `fit_combiner`
    magnitude_ : the ε in use
    offset_ : threshold of `predict`, set once scores can be combined
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        magnitude: float = 0.0,
        combiner: Any = None,
        shrinkage: Any = "ledoit-wolf",
        contamination: float = 0.05,
        pool: Pool = "mean",
    ):
        self.model = model
        self.layers = layers
        self.magnitude = magnitude
        self.combiner = combiner
        self.shrinkage = shrinkage
        self.contamination = contamination
        self.pool = pool

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike) -> LayerwiseMahalanobis:
        """Fit one detector a layer on the features of training inputs X with labels y."""
        self.magnitude_ = _checked(self.magnitude)
        self.detectors_ = [
            MahalanobisDetector(self.shrinkage, self.contamination).fit(features, np.asarray(y))
            for features in self._features()(self._tensor(X))
        ]
        if len(self.detectors_) == 1:
            self.offset_ = float(np.quantile(self.score_layers(X)[:, 0], self.contamination))
        return self

    def fit_combiner(
        self, X_typical: ArrayLike | Tensor, X_other: ArrayLike | Tensor, magnitudes: Sequence[float] | None = None
    ) -> LayerwiseMahalanobis:
        """Learn the weights of the layers from examples of both kinds, none of which may be test data.

        With `magnitudes` (for example MAGNITUDES) the step size is chosen as well, by the cross-validated AUROC of the
        combination on these examples.  Raises InputError on an empty grid or a negative magnitude.
        """
        check_is_fitted(self, "detectors_")
        grid = (self.magnitude_,) if magnitudes is None else tuple(_checked(magnitude) for magnitude in magnitudes)
        if not grid:
            raise InputError("magnitudes is empty; give at least one step size, or None for the one in use")
        typical, other = self._tensor(X_typical), self._tensor(X_other)
        truth = np.repeat([1, 0], [len(typical), len(other)])
        tried = []
        for magnitude in grid:
            scores = self.score_layers(torch.cat([typical, other]), magnitude)
            tried.append((self._cross_validated(scores, truth) if len(grid) > 1 else 0.0, magnitude, scores))
        _, self.magnitude_, scores = max(tried, key=lambda attempt: attempt[0])
        self.combiner_ = self._new_combiner().fit(scores, truth)
        self.offset_ = float(np.quantile(self._combined(scores[truth == 1]), self.contamination))
        return self

    def score_layers(self, X: ArrayLike | Tensor, magnitude: float | None = None) -> Float[np.ndarray, "n layers"]:
        """M_ℓ of every layer after the input step (`magnitude` overrides the fitted one)."""
        check_is_fitted(self, "detectors_")
        step = self.magnitude_ if magnitude is None else _checked(magnitude)
        x = self._tensor(X)
        if step == 0:
            return np.stack(
                [d.score_samples(f) for d, f in zip(self.detectors_, self._features()(x), strict=True)], axis=1
            )
        columns = []
        for index, detector in enumerate(self.detectors_):
            moved = torch.cat([self._towards_typical(part, index, step) for part in x.split(512)])
            columns.append(detector.score_samples(self._features()(moved)[index]))
        return np.stack(columns, axis=1)

    def score_samples(self, X: ArrayLike | Tensor) -> Float[np.ndarray, " n"]:
        """Combined score; higher is more typical.

        Raises InputError for several layers without `fit_combiner`: their scales differ, so a plain sum means nothing.
        """
        return self._combined(self.score_layers(X))

    def predict(self, X: ArrayLike | Tensor) -> np.ndarray:
        """+1 for inputs that are typical of the training data, -1 for those that are not; shape (n,)."""
        return np.where(self.score_samples(X) >= self.offset_, 1, -1)

    def predict_class(self, X: ArrayLike | Tensor) -> np.ndarray:
        """Class by the nearest mean in the last named layer; shape (n,)."""
        check_is_fitted(self, "detectors_")
        return self.detectors_[-1].predict_class(self._features()(self._tensor(X))[-1])

    def _combined(self, layer_scores: np.ndarray) -> np.ndarray:
        if hasattr(self, "combiner_"):
            return np.asarray(self.combiner_.decision_function(layer_scores), dtype=np.float64)
        if layer_scores.shape[1] == 1:
            return layer_scores[:, 0]
        raise InputError("several layers need weights: call fit_combiner with typical and other examples first")

    def _towards_typical(self, x: Tensor, index: int, step: float) -> Tensor:
        detector = self.detectors_[index]
        whitener = torch.linalg.inv(torch.from_numpy(detector._cholesky))  # triangular, so the inverse is exact enough
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            features = self._features().tensors(x)[0][index].double()
            whitener = whitener.to(features.device)
            means = torch.from_numpy(detector.means_).to(features.device) @ whitener.T
            distances = torch.cdist(features @ whitener.T, means).square()
            nearest = distances.detach().argmin(1, keepdim=True)
            (gradient,) = torch.autograd.grad(-distances.gather(1, nearest).sum(), x)
        return x.detach() + step * gradient.sign()

    def _cross_validated(self, scores: np.ndarray, truth: np.ndarray) -> float:
        out_of_fold = cross_val_predict(self._new_combiner(), scores, truth, cv=5, method="decision_function")
        return auroc(out_of_fold[truth == 1], out_of_fold[truth == 0]).value

    def _new_combiner(self) -> Any:
        if self.combiner is not None:
            return clone(self.combiner)
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))

    def _features(self) -> Features:
        return Features(self.model, tuple(self.layers), pool=self.pool)

    def _tensor(self, X: ArrayLike | Tensor) -> Tensor:
        return as_input(self.model, X)


def _checked(magnitude: float) -> float:
    if not 0 <= magnitude < np.inf:
        raise InputError(f"magnitude must not be negative, got {magnitude}: the step moves towards typicality")
    return float(magnitude)
