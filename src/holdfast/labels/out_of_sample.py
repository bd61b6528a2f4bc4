"""Probabilities for examples their model has not seen, by cross-validation."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold

from holdfast.core.errors import InputError


def cross_validated_probabilities(
    estimator: Any,
    X: np.ndarray,
    y: Integer[np.ndarray, " examples"],
    folds: int = 5,
    *,
    classes: int | None = None,
    random_state: int = 0,
) -> Float[np.ndarray, "examples classes"]:
    """Class probabilities of every example from a clone of `estimator` fitted without the example's fold.

    `estimator` is a scikit-learn classifier with `predict_proba`; `y` holds class indices 0 .. `classes` - 1 (by
    default the largest label decides).  Folds are stratified; a class absent from a training part gets probability
    zero there. `random_state` shuffles the examples into folds; a random estimator carries its own.

    Raises InputError for fewer than two folds, fewer examples than folds, fewer than two classes or negative labels.
    """
    if not hasattr(estimator, "predict_proba"):
        raise InputError(f"{type(estimator).__name__} has no predict_proba; give a classifier that has")
    if folds < 2 or len(y) < folds:
        raise InputError(
            f"cross-validation needs at least 2 folds and one example a fold, got {folds} folds, {len(y)} examples"
        )
    if len(X) != len(y):
        raise InputError(f"got {len(X)} rows but {len(y)} labels")
    if y.min() < 0 or len(np.unique(y)) < 2:
        raise InputError("y must hold class indices 0 .. K-1 of at least two classes")
    width = int(y.max()) + 1 if classes is None else classes
    if width <= y.max():
        raise InputError(f"labels run to {y.max()} but classes is {width}")
    probabilities = np.zeros((len(y), width))
    for fitting, held_out in _folds(y, folds, random_state):
        fitted = clone(estimator).fit(X[fitting], y[fitting])
        probabilities[held_out[:, None], fitted.classes_[None, :]] = fitted.predict_proba(X[held_out])
    return probabilities


def _folds(y: np.ndarray, folds: int, random_state: int) -> list[tuple[np.ndarray, np.ndarray]]:
    # scikit-learn warns (or refuses) when a class is rarer than the number of folds; such classes are spread by rank
    # instead.
    counts = np.bincount(y)
    if counts[counts > 0].min() >= folds:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=random_state)
        return list(splitter.split(np.zeros(len(y)), y))
    shuffled = np.random.default_rng(random_state).permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    fold = np.empty(len(y), dtype=np.int64)
    fold[by_class] = np.arange(len(y)) % folds
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds)]
