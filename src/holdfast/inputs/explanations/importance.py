"""How much each factor matters to a model, as a distribution over factors.

I_j = mean_i |phi_j(x_i)|, P_j = I_j / sum I, phi additive attributions: Shapley values, or the gradient times the
distance from the mean, (x_j - mean_j) df/dx_j, for models with gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.explanations.alignment import attributions
from holdfast.inputs.explanations.shapley import (
    Predict,
    ShapleyValues,
    exact_shapley,
    permutation_shapley,
)
from holdfast.inputs.features import evaluating


def importance_distribution(
    model: Any,
    X: Any,
    background: Any = None,
    method: str = "permutation-shap",
    *,
    pairs: int = 4,
    generator: np.random.Generator | None = None,
) -> Float[np.ndarray, " features"]:
    """P of a model on the rows X.

    `model` is a scikit-learn estimator (probabilities of a classifier are explained, predictions of a regressor), an
    `nn.Module` or any callable; `method` is "permutation-shap", "exact-shap" (at most 12 features) or "gradient"
    (modules only).  `background` rows stand in for absent factors; X itself when None.
    Warns of constant columns, whose importance is zero.  Raises InputError for tables that hold anything but finite
    numbers, an unknown method, or a model that no factor moves; UnsupportedError for gradients of other models.
    """
    rows = as_table(X)
    if method == "gradient":
        if not isinstance(model, nn.Module):
            raise UnsupportedError(f"gradients need an nn.Module, got {type(model).__name__}; use 'permutation-shap'")
        dtype = next(model.parameters(), torch.zeros(())).dtype
        with evaluating(model):
            magnitudes = attributions(model, torch.as_tensor(rows, dtype=dtype)).abs().sum(2).double().numpy()
        return as_distribution(magnitudes.mean(axis=0))
    return as_distribution(shapley(model, rows, background, method, pairs, generator).magnitudes().mean(axis=0))


def shapley(
    model: Any, rows: np.ndarray, background: Any, method: str, pairs: int, generator: np.random.Generator | None
) -> ShapleyValues:
    """Shapley values by either method; see `importance_distribution`."""
    behind = rows if background is None else as_table(background)
    if constant := np.flatnonzero(np.ptp(np.concatenate([rows, behind]), axis=0) == 0).tolist():
        warnings.warn(f"columns {constant} are constant, so their importance is zero", stacklevel=3)
    if method == "permutation-shap":
        return permutation_shapley(predictor(model), rows, behind, pairs=pairs, generator=generator)
    if method == "exact-shap":
        return exact_shapley(predictor(model), rows, behind)
    raise InputError(f"the method must be 'permutation-shap', 'exact-shap' or 'gradient', got {method!r}")


def reference_prior(
    models: Sequence[Any], X: Any, background: Any = None, *, pairs: int = 4, smoothing: float = 1e-3
) -> Float[np.ndarray, " features"]:
    """Mean importance distribution of reference models, (1 - s) Q + s / features: domain knowledge from agreement.

    The models must be fitted on training rows only, and X must hold training rows.
    """
    if not models:
        raise InputError("a prior needs at least one reference model, got none")
    mean = np.mean([importance_distribution(model, X, background, pairs=pairs) for model in models], axis=0)
    return (1 - smoothing) * mean + smoothing / len(mean)


def predictor(model: Any) -> Predict:
    """What is explained of a model, as a function of rows."""
    if isinstance(model, nn.Module):
        dtype = next(model.parameters(), torch.zeros(())).dtype

        def module(rows: np.ndarray) -> np.ndarray:
            with torch.no_grad(), evaluating(model):
                return np.asarray(model(torch.as_tensor(rows, dtype=dtype)).double().cpu())

        return module
    if hasattr(model, "predict_proba"):
        # the probabilities of two classes are one number
        return lambda rows: model.predict_proba(rows)[:, 1:] if len(model.classes_) == 2 else model.predict_proba(rows)
    predict: Predict = model.predict if hasattr(model, "predict") else model
    return predict


def as_table(X: Any) -> Float[np.ndarray, "rows features"]:
    """Rows as float64.  Raises InputError for anything else, naming categories that are not encoded."""
    try:
        table = np.asarray(X, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("the table holds something that is not a number; encode categorical columns first") from error
    if table.ndim != 2 or not np.isfinite(table).all():
        raise InputError(f"factors must be a table of finite numbers (rows, features), got shape {table.shape}")
    return table


def as_distribution(importances: Float[np.ndarray, " features"]) -> Float[np.ndarray, " features"]:
    """I / sum I.  Raises InputError when nothing matters."""
    total = float(importances.sum())
    if not total > 0:
        raise InputError("no factor moves the model on these rows, so importances have no distribution")
    return importances / total
