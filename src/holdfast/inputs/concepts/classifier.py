"""`EnergyConceptModel` behind a perceptron as a scikit-learn classifier of tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.concepts.energy import EnergyConceptModel
from holdfast.inputs.concepts.joint import ConceptPosterior
from holdfast.inputs.perceptrons import perceptron


class EnergyConceptClassifier(ClassifierMixin, BaseEstimator):
    """Predict a class and binary concepts, take corrections, and ask conditional questions of the fitted model.

    Columns are standardised, a perceptron with one hidden layer gives the features.  Without concepts it is a plain
    classifier.

    Parameters
    ----------
    hidden : int, width of the perceptron and of the embeddings
    epochs, batch, step : training by Adam under a cosine schedule
    concept_weight, consistency_weight : float, lambda_c and lambda_g of the energy
    normalised : bool, see `EnergyConceptModel`
    method : "exact" or "gradient", see `EnergyConceptModel.infer`
    random_state : int

    Attributes
    ----------
    classes_ : (classes,)
    model_ : the trained EnergyConceptModel, in evaluation mode; takes standardised columns
    """

    # scikit-learn wants every check of a setting in `fit`, none here.
    def __init__(
        self,
        hidden: Any = 64,
        epochs: Any = 100,
        batch: Any = 50,
        step: Any = 3e-3,
        concept_weight: Any = 1.0,
        consistency_weight: Any = 1.0,
        normalised: Any = True,
        method: Any = "exact",
        random_state: Any = 0,
    ):
        self.hidden = hidden
        self.epochs = epochs
        self.batch = batch
        self.step = step
        self.concept_weight = concept_weight
        self.consistency_weight = consistency_weight
        self.normalised = normalised
        self.method = method
        self.random_state = random_state

    def fit(self, X: Any, y: Any, concepts: Any = None) -> EnergyConceptClassifier:
        """Train on rows X, classes y and `concepts` (n, K) of 0 and 1.

        Raises InputError when there is one class only, or concepts are not 0 or 1 or not one row an example.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"a classifier needs at least two classes, the labels hold one class: {self.classes_[0]!r}"
            )
        known = np.zeros((len(X), 0)) if concepts is None else np.asarray(concepts)
        if known.ndim != 2 or len(known) != len(X) or not np.isin(known, (0, 1)).all():
            raise InputError(f"concepts must be (n, K) of 0 and 1 with one row an example, got shape {known.shape}")
        self.mean_ = X.mean(axis=0)
        spread = X.std(axis=0)
        self.scale_ = np.where(spread > 0, spread, 1.0)
        generator = torch_generator(int(self.random_state), "energy concepts")
        encoder = nn.Sequential(perceptron((X.shape[1], self.hidden), generator), nn.ReLU())
        self.model_ = EnergyConceptModel(
            encoder,
            self.hidden,
            known.shape[1],
            len(self.classes_),
            self.hidden,
            concept_weight=self.concept_weight,
            consistency_weight=self.consistency_weight,
            normalised=self.normalised,
            generator=generator,
        )
        train(
            self.model_,
            self._tensor(X),
            torch.from_numpy(known.astype(np.int64)),
            torch.from_numpy(index.astype(np.int64)),
            generator,
            epochs=self.epochs,
            batch=self.batch,
            step=self.step,
        )
        return self

    def infer(self, X: Any, known: Mapping[int, int | Tensor] | Tensor | None = None) -> ConceptPosterior:
        """Everything about every row, with some concepts known (see `EnergyConceptModel.infer`)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.model_.infer(self._tensor(X), known, method=self.method)

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n classes"]:
        """Probabilities of the classes, summed over the concepts."""
        return self.infer(X).class_probs.numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Most probable class, shape (n,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def predict_concepts(self, X: Any) -> Int[np.ndarray, "n concepts"]:
        """The more probable value of every concept."""
        return (self.infer(X).concept_probs.numpy() > 0.5).astype(np.int64)

    def _tensor(self, X: np.ndarray) -> Tensor:
        return torch.from_numpy(((X - self.mean_) / self.scale_).astype(np.float32))


def train(
    model: Any,
    x: Float[Tensor, "n ..."],
    c: Int[Tensor, "n concepts"],
    y: Int[Tensor, " n"],
    generator: torch.Generator,
    *,
    epochs: int = 100,
    batch: int = 50,
    step: float = 3e-3,
) -> None:
    """Minimise `model.loss` by Adam under a cosine schedule; leaves the model in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=step)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(x) // batch))
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            optimizer.zero_grad()
            model.loss(x[rows], c[rows], y[rows], generator=generator).backward()
            optimizer.step()
            schedule.step()
    model.eval()
