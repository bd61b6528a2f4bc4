"""Shapley values of a prediction (Shapley, 1953; Štrumbelj and Kononenko, 2014).

The worth of a set S of features at x is what the model says when the others come from background rows,

    v_x(S) = mean_b f(x_S, b_{not S}),

and phi_j is the mean rise of v when j joins, over all orders of joining.  `exact_shapley` weighs all 2^d sets;
`permutation_shapley` walks through some orders, each also backwards (antithetic), the same for all rows.  Along any
order the rises add up to v(all) - v(none), so f(x) = base + sum_j phi_j holds for every row, however many orders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np
from jaxtyping import Bool, Float

from holdfast.core.errors import InputError
from holdfast.core.seeds import numpy_generator

#: Maps rows (m, features) to one number a row, or one a row and output.
Predict = Callable[[np.ndarray], np.ndarray]
MOST_EXACT = 12
#: Rows that go through the model in one call.
_CALL = 200_000


@dataclass(frozen=True, eq=False)
class ShapleyValues:
    """phi of every row, feature and output; f(row) = base + sum over features.

    `worths` are all v_x(S) that were evaluated, sets first: what differences between two models are bounded by.
    """

    values: Float[np.ndarray, "rows features outputs"]
    base: Float[np.ndarray, " outputs"]
    worths: Float[np.ndarray, "sets rows outputs"]

    def magnitudes(self) -> Float[np.ndarray, "rows features"]:
        """|phi|, summed over outputs."""
        return np.abs(self.values).sum(axis=2)


def permutation_shapley(
    predict: Predict,
    X: Float[np.ndarray, "rows features"],
    background: Float[np.ndarray, "many columns"],
    *,
    pairs: int = 4,
    generator: np.random.Generator | None = None,
) -> ShapleyValues:
    """Mean rise over `pairs` random orders and their reverses; 2 pairs (features - 1) calls of len(X) len(background)
    rows.

    Raises InputError when shapes do not fit, a number is not finite, or `pairs` is below one.
    """
    _check(X, background)
    if pairs < 1:
        raise InputError(f"at least one pair of orders is needed, got {pairs}")
    generator = numpy_generator(0, "shapley orders") if generator is None else generator
    features = X.shape[1]
    orders = [generator.permutation(features) for _ in range(pairs)]
    orders = [walked for order in orders for walked in (order, order[::-1])]
    nothing, everything = np.zeros(features, dtype=bool), np.ones(features, dtype=bool)
    bottom, top = (_worth(predict, X, background, end) for end in (nothing, everything))
    worths = []
    for order in orders:
        inside = nothing.copy()
        for feature in order[:-1]:
            inside = inside.copy()
            inside[feature] = True
            worths.append(_worth(predict, X, background, inside))
    values = np.zeros((len(X), features, bottom.shape[1]))
    for index, order in enumerate(orders):
        between = worths[index * (features - 1) : (index + 1) * (features - 1)]
        rises = np.diff(np.stack([bottom, *between, top]), axis=0)
        values[:, order] += rises.transpose(1, 0, 2) / len(orders)
    return ShapleyValues(values, bottom[0], np.stack([bottom, *worths, top]))


def exact_shapley(
    predict: Predict, X: Float[np.ndarray, "rows features"], background: Float[np.ndarray, "many columns"]
) -> ShapleyValues:
    """Shapley values from all 2^d sets, d <= 12.  Raises InputError for more features or shapes that do not fit."""
    _check(X, background)
    features = X.shape[1]
    if features > MOST_EXACT:
        raise InputError(
            f"exact Shapley values of {features} features need 2^{features} sets; use permutation_shapley beyond "
            f"{MOST_EXACT}"
        )
    sets = ((np.arange(2**features)[:, None] >> np.arange(features)) & 1).astype(bool)
    worths = np.stack([_worth(predict, X, background, inside) for inside in sets])
    sizes = sets.sum(axis=1)
    values = np.zeros((len(X), features, worths.shape[2]))
    for feature in range(features):
        without = np.flatnonzero(~sets[:, feature])
        weights = np.array([1 / (features * comb(features - 1, size)) for size in sizes[without]])
        rises = worths[without + 2**feature] - worths[without]
        values[:, feature] = np.tensordot(weights, rises, axes=1)
    return ShapleyValues(values, worths[0, 0], worths)


def _worth(
    predict: Predict, X: np.ndarray, background: np.ndarray, inside: Bool[np.ndarray, " features"]
) -> Float[np.ndarray, "rows outputs"]:
    """v_x of one set for every row."""
    if inside.all():
        return _said(predict, X)
    if not inside.any():
        return np.repeat(_said(predict, background).mean(axis=0)[None], len(X), axis=0)
    many = max(1, _CALL // len(background))
    parts = []
    for start in range(0, len(X), many):
        rows = X[start : start + many]
        mixed = np.where(inside, rows[:, None], background[None])
        said = _said(predict, mixed.reshape(-1, X.shape[1]))
        parts.append(said.reshape(len(rows), len(background), -1).mean(axis=1))
    return np.concatenate(parts)


def _said(predict: Predict, rows: np.ndarray) -> Float[np.ndarray, "rows outputs"]:
    said = np.asarray(predict(rows), dtype=np.float64)
    if said.ndim not in (1, 2) or len(said) != len(rows):
        raise InputError(f"the model must give one number a row, or one a row and output; got shape {said.shape}")
    if not np.isfinite(said).all():
        raise InputError("the model gave NaN or infinity; explain probabilities or clipped log-odds instead")
    return said[:, None] if said.ndim == 1 else said


def _check(X: np.ndarray, background: np.ndarray) -> None:
    if len(X) == 0 or len(background) == 0 or X.shape[1] != background.shape[1] or X.shape[1] == 0:
        raise InputError(f"rows and background must be tables of the same features, got {X.shape}, {background.shape}")
    if not (np.isfinite(X).all() and np.isfinite(background).all()):
        raise InputError("rows and background must be finite numbers; fill gaps and encode categories first")
