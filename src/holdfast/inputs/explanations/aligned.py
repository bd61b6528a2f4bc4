"""Perceptrons for tables whose explanations are held to a prior: scikit-learn estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.explanations.alignment import ImportanceAlignment
from holdfast.inputs.perceptrons import perceptron


class _AlignedMLP(BaseEstimator):
    """What both estimators share: standardised columns, a tanh perceptron, Adam, and the penalty."""

    # scikit-learn wants every check of a setting in `fit`, none here.
    def __init__(
        self,
        prior: Any = None,
        weight: Any = 1.0,
        attribution: Any = "gradient",
        hidden: Any = (64, 64),
        epochs: Any = 200,
        batch: Any = None,
        step: Any = 3e-3,
        random_state: Any = 0,
    ):
        self.prior = prior
        self.weight = weight
        self.attribution = attribution
        self.hidden = hidden
        self.epochs = epochs
        self.batch = batch
        self.step = step
        self.random_state = random_state

    def _fit(self, X: np.ndarray, target: Tensor, outputs: int) -> None:
        if self.prior is not None and np.shape(self.prior) != (X.shape[1],):
            raise InputError(f"the prior has shape {np.shape(self.prior)} and the table {X.shape[1]} features")
        self.mean_, spread = X.mean(axis=0), X.std(axis=0)
        self.scale_ = np.where(spread > 0, spread, 1.0)
        generator = torch_generator(int(self.random_state), "aligned perceptron")
        self.network_ = perceptron((X.shape[1], *self.hidden, outputs), generator, nn.Tanh)
        if outputs > 1:
            self.network_.append(_Centred())
        penalty = None
        if self.prior is not None and self.weight > 0:
            penalty = ImportanceAlignment(self.prior, self.weight, self.attribution)
        x = self._tensor(X).float()
        optimizer = torch.optim.Adam(self.network_.parameters(), lr=self.step, fused=True)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(x), generator=generator).split(self.batch or len(x)):
                optimizer.zero_grad()
                loss = self._task_loss(self.network_(x[rows]), target[rows])
                if penalty is not None and len(rows) > 1:
                    loss = loss + penalty(self.network_, x[rows])
                loss.backward()
                optimizer.step()
        # doubles, so that a row's prediction does not depend on the rows beside it
        self.network_.eval().double()

    def _task_loss(self, said: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def _tensor(self, X: np.ndarray) -> Tensor:
        return torch.from_numpy((X - self.mean_) / self.scale_)

    def _said(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        with torch.no_grad():
            return self.network_(self._tensor(X)).numpy()


class AlignedMLPRegressor(RegressorMixin, _AlignedMLP):
    """Regression by a tanh perceptron with a penalty weight * KL(prior || importances of the batch).

    Parameters
    ----------
    prior : (features,) or None
        Importance distribution to hold to (see `reference_prior`, `prior_from_ranks`); None trains without penalty.
    weight, attribution : see `ImportanceAlignment`
    hidden : sizes of the hidden layers
    epochs, batch, step : training by Adam; `batch` None takes all rows, whose importances are steadier than a few rows'
    random_state : int

    Attributes
    ----------
    network_ : the trained `nn.Module`, of standardised columns and target
    """

    def fit(self, X: Any, y: Any) -> AlignedMLPRegressor:
        """Train on standardised columns and target.  Raises InputError for a prior that does not fit the columns."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        self.target_mean_, spread = float(np.mean(y)), float(np.std(y))
        self.target_scale_ = spread if spread > 0 else 1.0
        target = torch.from_numpy(((y - self.target_mean_) / self.target_scale_).astype(np.float32))[:, None]
        self._fit(X, target, 1)
        return self

    def predict(self, X: Any) -> Float[np.ndarray, " n"]:
        """Predicted target, in its own units."""
        return self._said(X)[:, 0] * self.target_scale_ + self.target_mean_

    def _task_loss(self, said: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(said, target)


class AlignedMLPClassifier(ClassifierMixin, _AlignedMLP):
    """Classification by a tanh perceptron with a penalty on its importances; parameters as `AlignedMLPRegressor`.

    The importance of a factor is that for the logits, less their mean over classes, summed over classes.

    Attributes
    ----------
    classes_ : (classes,)
    network_ : the trained `nn.Module`, of standardised columns
    """

    def fit(self, X: Any, y: Any) -> AlignedMLPClassifier:
        """Train.  Raises InputError for a prior that does not fit the columns, or a single class."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"a classifier needs at least two classes, the labels hold one class: {self.classes_[0]!r}"
            )
        self._fit(X, torch.from_numpy(index.astype(np.int64)), len(self.classes_))
        return self

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n classes"]:
        """Softmax of the logits."""
        return torch.from_numpy(self._said(X)).softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Most probable class, shape (n,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _task_loss(self, said: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(said, target)


class _Centred(nn.Module):
    """Logits less their mean: a softmax sees nothing else."""

    def forward(self, logits: Float[Tensor, "n classes"]) -> Tensor:
        return logits - logits.mean(1, keepdim=True)
