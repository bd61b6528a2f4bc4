"""Radii from the means of a simplex map's values: bounds, slopes and the comparison of many maps on the same draws.

The equations stand in `lvm`, whose classifier uses them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import erf, ndtri
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.core.intervals import clopper_pearson_lowers, empirical_bernstein_width
from holdfast.inputs.smoothing.simplex import Kind, SimplexMap, hardmax, softmax, sparsemax

Array = Float[np.ndarray, "..."]

#: Maps whose values are held in memory at a time when many are compared.
_AT_ONCE = 64


def default_maps() -> tuple[SimplexMap, ...]:
    """Hard votes, and softmax and sparsemax at temperatures 1, 100 steps from 0.1 to 50, and 10^7."""
    temperatures = (1.0, *np.linspace(0.1, 50, 100).tolist(), 1e7)
    kinds: tuple[Kind, ...] = ("softmax", "sparsemax")
    return (SimplexMap("hardmax"), *(SimplexMap(kind, t) for kind in kinds for t in temperatures))


def smoothed_lipschitz(lipschitz: float, sigma: float, range: float = 1.0) -> float:
    """Lipschitz constant of h * N(0, sigma^2 I) for an L-Lipschitz h whose values span at most `range`.

    L erf(range / (2 sqrt 2 L sigma)), attained by a ramp; range / (sigma sqrt(2 pi)) for L = inf, never above L.
    Raises InputError unless all three are positive and sigma and range finite.
    """
    if not (lipschitz > 0 and 0 < sigma < math.inf and 0 < range < math.inf):
        raise InputError(
            f"a Lipschitz constant, sigma and a range must be positive, got {lipschitz}, {sigma} and {range}"
        )
    if math.isinf(lipschitz):
        return range / (sigma * math.sqrt(2 * math.pi))
    return lipschitz * float(erf(range / (2 * math.sqrt(2) * lipschitz * sigma)))


def margin_radius(lower: Array, upper: Array, sigma: float, lipschitz: float | Array = math.inf) -> Array:
    """Certified L2 radius of a label whose mean is at least `lower` while the others' are at most `upper`.

    `lipschitz` bounds the slope of every difference of two classes before smoothing.  Negative where nothing is
    certified.
    """
    lower, upper = np.clip(lower, 0, 1), np.clip(upper, 0, 1)
    with np.errstate(invalid="ignore"):
        by_quantile = sigma / 2 * (ndtri(lower) - ndtri(upper))
    slope = np.vectorize(lambda one: smoothed_lipschitz(float(one), sigma, 2.0), otypes=[float])(lipschitz)
    by_quantile = np.where((lower > 0) & (upper < 1), by_quantile, -math.inf)
    return np.asarray(np.maximum(by_quantile, (lower - upper) / slope))


def bernstein_radius(
    mean: Float[np.ndarray, "*maps classes"],
    variance: Float[np.ndarray, "*maps classes"],
    n: int,
    sigma: float,
    alpha: float,
    label: np.ndarray | int,
    lipschitz: float | Array = math.inf,
) -> tuple[Array, Array]:
    """Radius and lower bound of `label` from means and unbiased variances of n draws; both (*maps,).

    All K bounds hold together with probability 1 - alpha.  Raises InputError for n < 2, fewer than two classes or alpha
    outside (0, 1).
    """
    classes = mean.shape[-1]
    if classes < 2:
        raise InputError(f"a margin needs at least 2 classes, got {classes}")
    width = empirical_bernstein_width(variance, n, alpha / classes)
    lower, upper = margin_ends(mean - width, mean + width, label)
    return margin_radius(lower, upper, sigma, lipschitz), lower


def margin_ends(
    low: Float[np.ndarray, "*maps classes"], high: Float[np.ndarray, "*maps classes"], label: np.ndarray | int
) -> tuple[Array, Array]:
    """Lower bound of `label`, upper bound of all other classes; on the simplex none exceeds what the label leaves."""
    chosen = np.arange(low.shape[-1]) == np.asarray(label)[..., None]
    lower = np.asarray(np.where(chosen, low, -math.inf).max(-1))
    upper = np.where(chosen, -math.inf, high).max(-1)
    return lower, np.asarray(np.minimum(upper, 1 - lower))


@dataclass(frozen=True)
class Moments:
    """Mean and unbiased variance of every class under every map, and the label each map would give: (maps, classes)."""

    mean: Float[np.ndarray, "maps classes"]
    variance: Float[np.ndarray, "maps classes"]
    label: np.ndarray


def moments(maps: Sequence[SimplexMap], logits: Float[Tensor, "draws classes"], prior: float = 0.0) -> Moments:
    """Moments of the maps' values over draws.

    `prior` adds that many imagined draws, half for the label and half spread over the others, so that a class that was
    never contested does not pass for one that never can be.
    """
    sums, squares = (np.zeros((len(maps), logits.shape[1])) for _ in range(2))
    for kind in ("softmax", "sparsemax", "hardmax"):
        places = [place for place, one in enumerate(maps) if one.kind == kind]
        for first in range(0, len(places), _AT_ONCE):
            part = places[first : first + _AT_ONCE]
            values = _mapped(kind, [maps[place].temperature for place in part], logits)
            sums[part], squares[part] = values.sum(1).numpy(), values.square().sum(1).numpy()
    label = sums.argmax(1)
    n, classes = len(logits) + prior, logits.shape[1]
    imagined = np.where(np.arange(classes) == label[:, None], 0.5, 0.5 / (classes - 1))
    mean = (sums + prior * imagined) / n
    variance = np.maximum(squares + prior * imagined**2 - n * mean**2, 0) / (n - 1)
    return Moments(mean, variance, label)


def _mapped(kind: str, temperatures: list[float], logits: Tensor) -> Float[Tensor, "maps draws classes"]:
    if kind == "hardmax":
        return hardmax(logits)[None].expand(len(temperatures), -1, -1)
    column = torch.tensor(temperatures, dtype=logits.dtype)[:, None, None]
    return (softmax if kind == "softmax" else sparsemax)(logits[None], column)


def map_radii(
    maps: Sequence[SimplexMap], found: Moments, n: int, sigma: float, alpha: float, lipschitz: float = math.inf
) -> tuple[Array, Array]:
    """Radius and lower bound, (maps,), that each map alone certifies (or would) with n draws of these moments."""
    slopes = np.array([one.margin_lipschitz for one in maps]) * lipschitz
    radius, lower = bernstein_radius(found.mean, found.variance, n, sigma, alpha, found.label, slopes)
    for place, one in enumerate(maps):
        if one.kind == "hardmax":
            votes = np.floor(found.mean[place, found.label[place]] * n + 0.5).astype(np.int64)
            lower[place] = clopper_pearson_lowers(votes[None], np.array([n]), alpha)[0]
            radius[place] = sigma * ndtri(lower[place])
    return radius, lower


def best_of_maps_radius(
    maps: Sequence[SimplexMap],
    logits: Float[Tensor, "draws classes"],
    label: int,
    sigma: float,
    alpha: float,
    lipschitz: float = math.inf,
) -> float:
    """The largest radius over maps, all judged on the same draws at full alpha: as published, and NOT a certificate.

    Each map's bound may fail with probability alpha, so the largest of them may fail more often; nothing says how much.
    Kept for comparison.
    """
    found = moments(maps, logits.double())
    there = Moments(found.mean, found.variance, np.full(len(maps), label))
    return max(0.0, float(map_radii(maps, there, len(logits), sigma, alpha, lipschitz)[0].max()))
