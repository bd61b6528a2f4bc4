"""Intrinsic dimension of a data set, and how sharply its labels change: what they say about learning from it.

With T_j(x) the distance of x to its j-th neighbour and r_2/r_1 the ratio of the first two,

    MLE      1/m_k(x) = (1/(k-1)) sum_{j<k} log(T_k(x) / T_j(x)),   d = 1 / mean_x 1/m_k(x)   (Levina, Bickel; MacKay)
    TwoNN    mu = r_2/r_1 has law F(mu) = 1 - mu^-d;  d = slope of -log(1 - F) on log mu through 0   (Facco et al.)
    GeoMLE   m_k(x) of bootstrap samples regressed on the distance T_k(x), read off at distance 0   (Gomtsyan et al.)

    label sharpness   K_F = max_{i, j} 1{y_i != y_j} / |x_i - x_j|   over M random examples

K_F is the reciprocal of the smallest gap between two classes in the sample, so no classifier that is right on it can
be robust at every sampled point beyond radius 1 / (2 K_F).  Distances are float64; a point with an exact copy has no
ratio, so copies are dropped and counted.  Inputs are used as given: scale features first, or distances mean nothing.

Reference: Konz and Mazurowski, "The Effect of Intrinsic Dataset Properties on Generalization: Unraveling Learning
Differences Between Natural and Medical Images", ICLR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.data.neighbours import nearest

_RESAMPLES = 500


class MLEDimension(BaseEstimator):
    """Maximum-likelihood dimension from k nearest neighbours, with inverses averaged over points.

    Attributes
    ----------
    dimension_ : float
    estimate_ : Estimate, 95 % percentile bootstrap over points
    pointwise_ : (distinct points,) m_k(x)
    duplicates_ : number of points dropped because an equal one was kept
    """

    def __init__(self, k: int = 20, random_state: int = 0):
        self.k = k
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> MLEDimension:
        """Estimate the dimension of X (examples, features).  Raises InputError when k >= distinct points."""
        X, self.duplicates_ = _distinct(validate_data(self, X, dtype=np.float64, ensure_min_samples=3))
        _check_neighbours(self.k, X)
        distances, _ = nearest(X, X, self.k, exclude_self=True)
        inverse = np.log(distances[:, -1:] / distances[:, :-1]).mean(axis=1)
        self.pointwise_ = 1 / inverse
        self.dimension_ = float(1 / inverse.mean())
        self.estimate_ = _bootstrap(inverse, lambda sample: 1 / sample.mean(-1), self.random_state)
        return self


class TwoNN(BaseEstimator):
    """Dimension from the ratio of the first two neighbour distances, the largest `discard` share of ratios left out.

    Attributes
    ----------
    dimension_ : float
    estimate_ : Estimate, 95 % percentile bootstrap over points
    pointwise_ : (distinct points,) 1 / log mu, the one-point maximum-likelihood value
    duplicates_ : number of points dropped because an equal one was kept
    """

    def __init__(self, discard: float = 0.1, random_state: int = 0):
        self.discard = discard
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> TwoNN:
        """Estimate the dimension of X (examples, features).  Raises InputError for fewer than 3 distinct points."""
        if not 0 <= self.discard < 1:
            raise InputError(f"discard is a share in [0, 1), got {self.discard}")
        X, self.duplicates_ = _distinct(validate_data(self, X, dtype=np.float64, ensure_min_samples=3))
        _check_neighbours(2, X)
        distances, _ = nearest(X, X, 2, exclude_self=True)
        log_ratio = np.log(distances[:, 1] / distances[:, 0])
        with np.errstate(divide="ignore"):
            self.pointwise_ = 1 / log_ratio
        self.dimension_ = float(self._slope(log_ratio))
        self.estimate_ = _bootstrap(log_ratio, self._slope, self.random_state)
        return self

    def _slope(self, log_ratio: np.ndarray) -> Any:
        number = log_ratio.shape[-1]
        kept = min(max(2, int(number * (1 - self.discard))), number - 1)  # the last one has F = 1
        ratios = np.sort(log_ratio, axis=-1)[..., :kept]
        levels = -np.log1p(-np.arange(1, kept + 1) / number)
        return (ratios * levels).sum(-1) / (ratios**2).sum(-1)


class GeoMLE(BaseEstimator):
    """MLE corrected for curvature and uneven density: extrapolated to neighbourhoods of size zero.

    Over `bootstraps` samples of the points, m_k(x) and T_k(x) are averaged for every k in `neighbours`; a polynomial
    of the given `degree` in T_k without its linear term fits m_k with weights 1 / variance, and its constant is the
    value at x.

    Attributes
    ----------
    dimension_ : float, mean over points
    estimate_ : Estimate, 95 % percentile bootstrap over points
    pointwise_ : (distinct points,)
    duplicates_ : number of points dropped because an equal one was kept
    """

    def __init__(
        self, neighbours: tuple[int, int] = (10, 40), degree: int = 2, bootstraps: int = 20, random_state: int = 0
    ):
        self.neighbours = neighbours
        self.degree = degree
        self.bootstraps = bootstraps
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> GeoMLE:
        """Estimate the dimension of X (examples, features).  Raises InputError for too few distinct points."""
        X, self.duplicates_ = _distinct(validate_data(self, X, dtype=np.float64, ensure_min_samples=3))
        first, last = self.neighbours
        if not 2 <= first < last:
            raise InputError(f"neighbours must be a range (first >= 2, last > first), got {self.neighbours}")
        _check_neighbours(2 * last, X)
        rng = np.random.default_rng(self.random_state)
        sizes = np.arange(first, last + 1)
        dimensions, radii = [], []
        for _ in range(self.bootstraps):
            # A point's own copies, and copies of its neighbours, would be at distance 0 of each other: draw a set.
            sample = np.unique(rng.integers(0, len(X), len(X)))
            distances, _ = nearest(X, X[sample], last + 1)
            own = distances[:, :1] == 0
            logs = np.log(np.where(own, distances[:, 1:], distances[:, :-1]))
            means = np.cumsum(logs, axis=1)[:, sizes - 2] / (sizes - 1)
            dimensions.append(1 / (logs[:, sizes - 1] - means))
            radii.append(np.exp(logs[:, sizes - 1]))
        values = np.stack(dimensions)
        self.pointwise_ = self._intercepts(np.mean(radii, axis=0), values.mean(0), values.var(0))
        self.dimension_ = float(self.pointwise_.mean())
        self.estimate_ = _bootstrap(self.pointwise_, lambda sample: sample.mean(-1), self.random_state)
        return self

    def _intercepts(self, radii: np.ndarray, values: np.ndarray, variances: np.ndarray) -> np.ndarray:
        scaled = radii / radii.max(axis=1, keepdims=True)
        powers = np.stack([scaled**0] + [scaled**power for power in range(2, self.degree + 1)], axis=-1)
        weights = 1 / np.maximum(variances, 1e-12 * variances.max())
        normal = np.einsum("xkp,xk,xkq->xpq", powers, weights, powers)
        target = np.einsum("xkp,xk,xk->xp", powers, weights, values)
        return np.linalg.solve(normal, target[..., None])[:, 0, 0]


def label_sharpness(
    X: Float[np.ndarray, "examples features"],
    y: Integer[np.ndarray, " examples"],
    samples: int = 1000,
    repeats: int = 10,
    *,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """K_F: the largest rate at which labels change with inputs, in 1 / units of X.

    The maximum over `samples` random examples is repeated `repeats` times; the value is the mean and the interval (95
    %, Student's t) is that of the mean over draws.  A maximum grows with `samples`: compare only equal numbers. Pairs
    at distance zero with different labels have no finite rate and are left out (they are `leakage`'s business).

    Raises InputError when fewer than two classes are there or two draws are not asked for.
    """
    if len(X) != len(y) or len(np.unique(y)) < 2:
        raise InputError(f"label sharpness needs one label a row and two classes; got {len(X)} rows, {len(y)} labels")
    if repeats < 2 or samples < 2:
        raise InputError(f"label sharpness needs at least 2 samples and 2 repeats, got {samples} and {repeats}")
    rng = np.random.default_rng(0) if generator is None else generator
    rates = []
    for _ in range(repeats):
        chosen = rng.choice(len(X), min(samples, len(X)), replace=False)
        if (gap := _class_gap(X[chosen].astype(np.float64), y[chosen])) is not None:
            rates.append(1 / gap)
    if len(rates) < 2:
        raise InputError("no sample held two classes at a positive distance; raise `samples` or check the labels")
    mean = float(np.mean(rates))
    half = float(stats.t.ppf(0.975, len(rates) - 1) * np.std(rates, ddof=1) / np.sqrt(len(rates)))
    return Estimate(mean, mean - half, mean + half, n=len(rates), method="student-t over draws")


def _class_gap(X: np.ndarray, y: np.ndarray) -> float | None:
    """Smallest positive distance between examples of different classes."""
    centred = X - X.mean(0)
    sizes = np.einsum("nf,nf->n", centred, centred)
    squared = sizes[:, None] + sizes[None, :] - 2 * centred @ centred.T
    squared[y[:, None] == y[None, :]] = np.inf
    # The expansion cancels for close pairs, so the closest few are measured again from their difference.
    closest = np.argpartition(squared, min(64, squared.size - 1), axis=None)[:64]
    left, right = np.unravel_index(closest, squared.shape)
    measured = np.linalg.norm(X[left] - X[right], axis=1)[y[left] != y[right]]
    measured = measured[measured > 0]
    return float(measured.min()) if len(measured) else None


def representation_dimension(
    model: nn.Module, layer: str, data: Float[Tensor, "examples ..."], k: int = 20, batch: int = 512
) -> MLEDimension:
    """Fitted `MLEDimension` of what the submodule named `layer` puts out for `data`, flattened per example.

    Raises InputError when the model has no such layer or its output is not one row an example.
    """
    modules = dict(model.named_modules())
    if layer not in modules:
        raise InputError(f"the model has no layer {layer!r}; it has {', '.join(name for name in modules if name)}")
    rows: list[np.ndarray] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        rows.append(output.detach().flatten(1).double().cpu().numpy())

    handle = modules[layer].register_forward_hook(keep)
    try:
        with torch.no_grad():
            for part in data.split(batch):
                model(part)
    finally:
        handle.remove()
    features = np.concatenate(rows)
    if len(features) != len(data):
        raise InputError(f"layer {layer!r} puts out {len(features)} rows for {len(data)} examples")
    return MLEDimension(k).fit(features)


@dataclass(frozen=True)
class ScalingFit:
    """log(loss) = intercept + slope · log(size), least squares; `slope` with its 95 % t interval."""

    slope: Estimate
    intercept: float


def scaling_fit(sizes: Float[np.ndarray, " runs"], losses: Float[np.ndarray, " runs"]) -> ScalingFit:
    """Exponent of a power law.  The theory puts it at or below -1 / dimension.

    Raises InputError for fewer than three runs or values that are not positive.
    """
    if len(sizes) < 3 or np.any(sizes <= 0) or np.any(losses <= 0) or len(np.unique(sizes)) < 2:
        raise InputError("a scaling fit needs at least 3 runs with positive sizes (two different) and positive losses")
    fit = stats.linregress(np.log(sizes), np.log(losses))
    half = stats.t.ppf(0.975, len(sizes) - 2) * fit.stderr
    slope = Estimate(fit.slope, fit.slope - half, fit.slope + half, n=len(sizes), method="least squares, student-t")
    return ScalingFit(slope, float(fit.intercept))


@dataclass(frozen=True)
class Vulnerability:
    """What the data alone says about robustness: no accurate classifier is robust everywhere beyond `radius` (L2)."""

    sharpness: Estimate
    dimension: Estimate
    radius: Estimate


def predict_vulnerability(
    X: Float[np.ndarray, "examples features"],
    y: Integer[np.ndarray, " examples"],
    samples: int = 1000,
    k: int = 20,
    *,
    generator: np.random.Generator | None = None,
) -> Vulnerability:
    """Label sharpness, intrinsic dimension and the implied L2 radius 1 / (2 K_F), before any model is trained.

    Raises InputError as `label_sharpness` and `MLEDimension` do.
    """
    sharpness = label_sharpness(X, y, samples, generator=generator)
    dimension = MLEDimension(k).fit(X).estimate_
    ends = [1 / (2 * rate) if rate > 0 else float("inf") for rate in (sharpness.high, sharpness.value, sharpness.low)]
    radius = Estimate(ends[1], ends[0], ends[2], n=sharpness.n, method=sharpness.method)
    return Vulnerability(sharpness, dimension, radius)


def _distinct(X: np.ndarray) -> tuple[np.ndarray, int]:
    _, first = np.unique(X, axis=0, return_index=True)
    return X[np.sort(first)], len(X) - len(first)


def _check_neighbours(k: int, X: np.ndarray) -> None:
    if k < 2 or k >= len(X):
        raise InputError(f"k must be at least 2 and below the number of distinct points, got k={k} and {len(X)} points")


def _bootstrap(values: np.ndarray, statistic: Any, random_state: int) -> Estimate:
    rng = np.random.default_rng(random_state)
    draws = [float(statistic(values[rng.integers(0, len(values), len(values))])) for _ in range(_RESAMPLES)]
    value = float(statistic(values))
    low, high = np.quantile(draws, [0.025, 0.975])
    # The percentile interval of a biased resample can miss the value itself by a hair.
    return Estimate(value, min(low, value), max(high, value), n=len(values), method="bootstrap")
