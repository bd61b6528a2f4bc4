"""Intervals for a sample whose size was fixed in advance; `sequences` has those that may be looked at while it grows.

Proportions: Clopper & Pearson (1934), exact; Wilson (1927).  Differences: Newcombe (1998) for independent proportions,
Bonett & Price (2012) for paired ones, Student's t for paired numbers.  McNemar's test (1947), exact and mid-p.  Means
of bounded values: Maurer & Pontil's empirical Bernstein bound (2009).  Anything else: the BCa bootstrap (Efron, 1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate

Values = Float[np.ndarray, " _"] | Int[np.ndarray, " _"] | Bool[np.ndarray, " _"]


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Exact two-sided interval for a proportion.  Raises InputError unless 0 <= successes <= n and n >= 1."""
    _require_counts(successes, n, level)
    tail = (1 - level) / 2
    low, high = clopper_pearson_lower(successes, n, tail), clopper_pearson_upper(successes, n, tail)
    return Estimate(successes / n, low, high, level, n, "clopper-pearson")


def clopper_pearson_lower(successes: int, n: int, alpha: float) -> float:
    """Exact one-sided lower bound: the true proportion lies below it with probability at most `alpha`."""
    _require_counts(successes, n, 1 - alpha)
    return 0.0 if successes == 0 else float(stats.beta.ppf(alpha, successes, n - successes + 1))


def clopper_pearson_upper(successes: int, n: int, alpha: float) -> float:
    """Exact one-sided upper bound: the true proportion lies above it with probability at most `alpha`."""
    _require_counts(successes, n, 1 - alpha)
    return 1.0 if successes == n else float(stats.beta.ppf(1 - alpha, successes + 1, n - successes))


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Wilson's score interval for a proportion: covers on average; shorter than the exact one."""
    _require_counts(successes, n, level)
    z = float(stats.norm.ppf((1 + level) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), level, n, "wilson")


def difference_of_proportions(successes_a: int, n_a: int, successes_b: int, n_b: int, level: float = 0.95) -> Estimate:
    """Proportion b minus proportion a of two independent samples (Newcombe's hybrid score interval)."""
    a, b = wilson(successes_a, n_a, level), wilson(successes_b, n_b, level)
    value = b.value - a.value
    low = value - math.hypot(b.value - b.low, a.high - a.value)
    high = value + math.hypot(b.high - b.value, a.value - a.low)
    return Estimate(value, low, high, level, min(n_a, n_b), "newcombe")


def paired_difference(a: Values, b: Values, level: float = 0.95) -> Estimate:
    """Mean of b - a over the same examples.

    Booleans: Bonett & Price's adjusted Wald interval (adds one pair of either kind, so it has width even where a and b
    never differ).  Numbers: Student's t; with n = 1 nothing is known and the interval is infinite.
    Raises InputError when shapes differ, are empty, or hold NaN.
    """
    _require_pairs(a, b, level)
    n = len(a)
    if a.dtype == np.bool_ and b.dtype == np.bool_:
        gained, lost = int((b & ~a).sum()), int((a & ~b).sum())
        value = (gained - lost) / n
        up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
        half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
        low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
        return Estimate(value, min(low, value), max(high, value), level, n, "bonett-price")
    difference = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    value = float(difference.mean())
    if n == 1:
        return Estimate(value, -math.inf, math.inf, level, n, "student t")
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(difference.std(ddof=1)) / math.sqrt(n)
    return Estimate(value, value - half, value + half, level, n, "student t")


@dataclass(frozen=True)
class McNemar:
    """How often one of two paired yes/no outcomes was right alone, and how surprising that is if neither is better."""

    only_a: int
    only_b: int
    exact_p: float
    mid_p: float


def mcnemar(a: Bool[np.ndarray, " _"], b: Bool[np.ndarray, " _"]) -> McNemar:
    """McNemar's test of equal success rates on the same examples: two-sided exact and mid-p values."""
    _require_pairs(a, b, 0.95)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_a + only_b
    if discordant == 0:
        return McNemar(0, 0, 1.0, 1.0)
    fewer = min(only_a, only_b)
    tail, point = float(stats.binom.cdf(fewer, discordant, 0.5)), float(stats.binom.pmf(fewer, discordant, 0.5))
    return McNemar(only_a, only_b, min(1.0, 2 * tail), min(1.0, 2 * tail - point))


def empirical_bernstein(values: Values, level: float = 0.95, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """Two-sided interval for the mean of independent values within `bounds`, whatever their distribution."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        raise InputError(f"the empirical Bernstein bound needs at least two values, got {len(array)}")
    if not np.isfinite(array).all() or array.min() < bounds[0] or array.max() > bounds[1]:
        raise InputError(f"values must be finite and lie in {bounds}, got {array.min()} to {array.max()}")
    n, mean = len(array), float(array.mean())
    log = math.log(4 / (1 - level))
    half = math.sqrt(2 * float(array.var(ddof=1)) * log / n) + 7 * (bounds[1] - bounds[0]) * log / (3 * (n - 1))
    return Estimate(mean, max(bounds[0], mean - half), min(bounds[1], mean + half), level, n, "empirical bernstein")


def bootstrap(
    statistic: Callable[..., Any],
    *arrays: Shaped[np.ndarray, "_ ..."],
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> Estimate:
    """BCa bootstrap interval of `statistic(*arrays)`, resampling the rows of all arrays together.

    Where the statistic does not vary over resamples BCa is undefined, and the percentile interval is given.
    Raises InputError when arrays differ in length or hold fewer than two rows.
    """
    n = len(arrays[0])
    if n < 2 or any(len(array) != n for array in arrays):
        raise InputError(
            f"the bootstrap needs arrays of equal length, at least 2, got {[len(array) for array in arrays]}"
        )
    value = float(statistic(*arrays))
    replicates = np.empty(resamples)
    for r in range(resamples):
        rows = generator.integers(0, n, n)
        replicates[r] = statistic(*(array[rows] for array in arrays))
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    below = float((replicates < value).mean() + 0.5 * (replicates == value).mean())
    adjusted = tails
    method = "percentile bootstrap"
    if 0 < below < 1:
        jackknife = _jackknife(statistic, arrays, generator)
        spread = jackknife.mean() - jackknife
        scale = float((spread**2).sum()) ** 1.5
        if scale > 0:
            bias, pull = float(stats.norm.ppf(below)), float((spread**3).sum()) / (6 * scale)
            z = stats.norm.ppf(tails) + bias
            adjusted, method = stats.norm.cdf(bias + z / (1 - pull * z)), "bca bootstrap"
    low, high = (float(end) for end in np.quantile(replicates, adjusted))
    return Estimate(value, min(low, value), max(high, value), level, n, method)


def _jackknife(
    statistic: Callable[..., Any], arrays: tuple[np.ndarray, ...], generator: np.random.Generator, most: int = 200
) -> Float[np.ndarray, " folds"]:
    """Leave-one-out values; for long arrays leave-one-block-out over a random partition into `most` blocks."""
    n = len(arrays[0])
    blocks = np.array_split(generator.permutation(n), min(n, most))
    return np.array([float(statistic(*(np.delete(array, block, axis=0) for array in arrays))) for block in blocks])


def _require_counts(successes: int, n: int, level: float) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"a proportion needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    if not 0 < level < 1:
        raise InputError(f"level must lie strictly between 0 and 1, got {level}")


def _require_pairs(a: np.ndarray, b: np.ndarray, level: float) -> None:
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise InputError(
            f"paired values must be two vectors of one length, at least 1, got shapes {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("paired values must be finite, got NaN or infinity")
    if not 0 < level < 1:
        raise InputError(f"level must lie strictly between 0 and 1, got {level}")
