"""Whether models agree on which factors are primary.

The k most important factors of a model are primary, the rest secondary.  With the same value function,
|phi_j of f - phi_j of g| <= 2 D, D the largest difference of the two models' worths v_x(S): every phi_j is a mean of
differences of two worths.  So |I_j of f - I_j of g| <= 2 D, and factors whose importances differ by more than 4 D in f
keep their order in g: models that predict alike must share their primary factors as far as the gaps are wide enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import kendalltau

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.seeds import numpy_generator
from holdfast.inputs.explanations.importance import as_table, shapley
from holdfast.inputs.explanations.shapley import ShapleyValues


@dataclass(frozen=True, eq=False)
class ConsistencyReport:
    """Agreement of models on factors, means over pairs of models with intervals from resampled rows.

    `overlap` is the share of primary factors in common (k / features by chance), `tau` Kendall's correlation of all
    importances, `order` the share of (primary, secondary) pairs of one model that stand in that order in the other.
    `worth_gaps[a, b]` is D, and `settled[a, b]` the share of a's (primary, secondary) pairs whose order in b is certain
    because their importances differ by more than 4 D; 0 where predictions differ too much to settle any.
    """

    names: tuple[str, ...]
    importances: Float[np.ndarray, "models features"]
    k: int
    overlap: Estimate
    tau: Estimate
    order: Estimate
    worth_gaps: Float[np.ndarray, "models models"]
    settled: Float[np.ndarray, "models models"]

    def primary(self) -> dict[str, tuple[int, ...]]:
        """The k most important factors of every model, most important first."""
        return {
            name: tuple(np.argsort(-row, kind="stable")[: self.k].tolist())
            for name, row in zip(self.names, self.importances, strict=True)
        }


def factor_consistency(
    models: Mapping[str, Any] | Sequence[Any],
    X: Any,
    k: int,
    *,
    background: Any = None,
    method: str = "permutation-shap",
    pairs: int = 4,
    level: float = 0.95,
    resamples: int = 500,
    generator: np.random.Generator | None = None,
) -> ConsistencyReport:
    """Compare at least two models on the rows X; all walk through the same orders of factors.

    Outputs of different scale make D meaningless, not the rest: importances are compared as distributions and D in the
    units of the outputs.  Raises InputError for fewer than two models, k outside 1..features - 1, models with different
    numbers of outputs, and as `importance_distribution` does.
    """
    rows = as_table(X)
    named = dict(models) if isinstance(models, Mapping) else {f"model {i}": model for i, model in enumerate(models)}
    if len(named) < 2:
        raise InputError(f"agreement needs at least two models, got {len(named)}")
    if not 1 <= k < rows.shape[1]:
        raise InputError(f"k must lie in 1..{rows.shape[1] - 1} for {rows.shape[1]} features, got {k}")
    generator = numpy_generator(0, "factor consistency") if generator is None else generator
    seed = int(generator.integers(2**31))
    found = [shapley(model, rows, background, method, pairs, np.random.default_rng(seed)) for model in named.values()]
    if len({values.values.shape[2] for values in found}) != 1:
        raise InputError("the models give different numbers of outputs, so their attributions cannot be compared")
    magnitudes = np.stack([values.magnitudes() for values in found])
    importance = magnitudes.mean(axis=1)
    picks = generator.integers(len(rows), size=(resamples, len(rows)))
    draws = np.array([_agreement(magnitudes[:, pick].mean(axis=1), k) for pick in picks])
    value = _agreement(importance, k)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    overlap, tau, order = (
        Estimate(value[i], min(low[i], value[i]), max(high[i], value[i]), level, len(rows), "bootstrap")
        for i in range(3)
    )
    gaps = np.array([[_worth_gap(a, b) for b in found] for a in found])
    settled = np.array([[_settled(importance[a], gaps[a, b], k) for b in range(len(found))] for a in range(len(found))])
    shares = importance / importance.sum(axis=1, keepdims=True)
    return ConsistencyReport(tuple(named), shares, k, overlap, tau, order, gaps, settled)


def _agreement(importance: Float[np.ndarray, "models features"], k: int) -> tuple[float, float, float]:
    """Overlap, tau and order agreement, means over pairs."""
    ranked = np.argsort(-importance, axis=1, kind="stable")
    overlaps, taus, orders = [], [], []
    for a, b in combinations(range(len(importance)), 2):
        overlaps.append(len(np.intersect1d(ranked[a, :k], ranked[b, :k])) / k)
        tau = float(kendalltau(importance[a], importance[b]).statistic)
        taus.append(tau if np.isfinite(tau) else 0.0)  # all importances of one model equal: no order to agree on
        for first, second in ((a, b), (b, a)):
            primary, secondary = ranked[first, :k], ranked[first, k:]
            orders.append(np.mean(importance[second, primary][:, None] > importance[second, secondary][None]))
    return float(np.mean(overlaps)), float(np.mean(taus)), float(np.mean(orders))


def _worth_gap(a: ShapleyValues, b: ShapleyValues) -> float:
    """The largest difference of worths, summed over outputs as importances are."""
    return float(np.abs(a.worths - b.worths).max(axis=(0, 1)).sum())


def _settled(importance: Float[np.ndarray, " features"], gap: float, k: int) -> float:
    ranked = np.sort(importance)[::-1]
    return float(np.mean(ranked[:k, None] - ranked[None, k:] > 4 * gap))
