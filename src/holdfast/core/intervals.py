"""Intervals for a sample whose size was fixed in advance; `sequences` has those that may be looked at while it grows.

Proportions: Clopper & Pearson (1934), exact, also for weighted means of values in [0, 1]; Wilson (1927).
Differences: Newcombe (1998) for independent proportions, Bonett & Price (2012) for paired ones, Student's t for paired
numbers.  McNemar's test (1947), exact and mid-p.  Means
of bounded values: Maurer & Pontil's empirical Bernstein bound (2009).  Anything else: the BCa bootstrap (Efron, 1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate

Values = Float[np.ndarray, " _"] | Int[np.ndarray, " _"] | Bool[np.ndarray, " _"]


Count = int | np.integer

#: Entries that one block of bootstrap resamples may gather.
_BLOCK = 4_000_000


def clopper_pearson(successes: Count, n: Count, level: float = 0.95) -> Estimate:
    """Exact two-sided interval for a proportion.  Raises InputError unless 0 <= successes <= n and n >= 1."""
    _require_counts(successes, n, level)
    tail = (1 - level) / 2
    low, high = clopper_pearson_lower(successes, n, tail), clopper_pearson_upper(successes, n, tail)
    return Estimate(successes / n, low, high, level, int(n), "clopper-pearson")


def clopper_pearson_lower(successes: Count, n: Count, alpha: float) -> float:
    """Exact one-sided lower bound: the true proportion lies below it with probability at most `alpha`."""
    _require_counts(successes, n, 1 - alpha)
    return float(clopper_pearson_lowers(np.array([successes]), np.array([n]), alpha)[0])


def clopper_pearson_lowers(
    successes: Int[np.ndarray, " _"], n: Int[np.ndarray, " _"], alpha: float
) -> Float[np.ndarray, " _"]:
    """The same for many proportions; the counts are trusted."""
    some = np.maximum(successes, 1)
    return np.where(successes > 0, stats.beta.ppf(alpha, some, n - some + 1), 0.0)


def clopper_pearson_upper(successes: Count, n: Count, alpha: float) -> float:
    """Exact one-sided upper bound: the true proportion lies above it with probability at most `alpha`."""
    _require_counts(successes, n, 1 - alpha)
    return 1.0 if successes == n else float(stats.beta.ppf(1 - alpha, successes + 1, n - successes))


def wilson(successes: Count, n: Count, level: float = 0.95) -> Estimate:
    """Wilson's score interval for a proportion: covers on average; shorter than the exact one."""
    _require_counts(successes, n, level)
    z = float(stats.norm.ppf((1 + level) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(
        share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), level, int(n), "wilson"
    )


def difference_of_proportions(
    successes_a: Count, n_a: Count, successes_b: Count, n_b: Count, level: float = 0.95
) -> Estimate:
    """Proportion b minus proportion a of two independent samples (Newcombe's hybrid score interval)."""
    a, b = wilson(successes_a, n_a, level), wilson(successes_b, n_b, level)
    value = b.value - a.value
    low = value - math.hypot(b.value - b.low, a.high - a.value)
    high = value + math.hypot(b.high - b.value, a.value - a.low)
    return Estimate(value, low, high, level, int(min(n_a, n_b)), "newcombe")


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


def fractional_clopper_pearson(successes: Count | float, n: Count | float, level: float = 0.95) -> tuple[float, float]:
    """Ends of Clopper and Pearson's interval, continued to counts that are no integers through its beta quantiles.

    For a mean y of n values in [0, 1], `successes` = n y: no distribution on [0, 1] varies more than the binomial.
    Raises InputError unless 0 <= successes <= n and n >= 1.
    """
    _require_counts(successes, n, level)
    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, successes, n - successes + 1)) if successes > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


def weighted_clopper_pearson(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], level: float = 0.95
) -> Estimate:
    """Interval for y = sum_i w_i x_i, x_i independent in [0, 1], weights of sum 1; exact for 0/1 of equal weight.

    With v = sum_i w_i^2 x_i^2 the lower end takes y as the share of successes among y / v trials; the upper end counts
    one more success, of weight u = sum_i w_i^2, among (y + u) / (v + u^2).  This is the interval of Fay and Feuer
    (1997) for weighted sums of counts, for proportions in place of Poisson rates; they give the success that was not
    seen the largest weight, Tiwari, Clegg and Zou (2006) the mean one, and u lies between.
    Raises InputError on values outside [0, 1] or weights that are negative or do not sum to 1.
    """
    if not len(values) or len(values) != len(weights) or not (values.min() >= 0 and values.max() <= 1):
        raise InputError(f"{len(weights)} weights need as many values in [0, 1], at least one, got {values}")
    if not weights.min() >= 0 or abs(float(weights.sum()) - 1) > 1e-9:
        raise InputError(f"weights must not be negative and sum to 1, got a sum of {float(weights.sum()):g}")
    mean = min(1.0, float(weights @ values))
    variance, unseen = float(weights**2 @ values**2), float(weights @ weights)
    low, high = 0.0, 1.0
    if variance > 0:
        trials = max(1.0, mean / variance)
        low = fractional_clopper_pearson(mean * trials, trials, level)[0]
    if mean < 1:
        trials = max(1.0, (mean + unseen) / (variance + unseen**2))
        more, left = (mean + unseen) * trials, (1 - mean) * trials
        high = float(stats.beta.ppf((1 + level) / 2, more, left))
    return Estimate(mean, min(low, mean), max(high, mean), level, len(values), "weighted clopper-pearson")


Variance = TypeVar("Variance", float, Float[np.ndarray, "..."])


def empirical_bernstein_width(variance: Variance, n: Count, alpha: float) -> Variance:
    """One-sided deviation, with probability at least 1 - alpha, of the mean of n independent values of [0, 1].

    sqrt(2 v log(2/alpha) / n) + 7 log(2/alpha) / (3 (n - 1)), v the unbiased sample variance (Maurer & Pontil, Thm 4).
    Raises InputError when n < 2 or alpha lies outside (0, 1).
    """
    if n < 2 or not 0 < alpha < 1:
        raise InputError(f"the empirical Bernstein bound needs n >= 2 and alpha in (0, 1), got n={n}, alpha={alpha}")
    log = math.log(2 / alpha)
    width = np.sqrt(2 * np.asarray(variance) * log / int(n)) + 7 * log / (3 * (int(n) - 1))
    return width if isinstance(variance, np.ndarray) else float(width)


def empirical_bernstein(values: Values, level: float = 0.95, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """Two-sided interval for the mean of independent values within `bounds`, whatever their distribution.

    Raises InputError on fewer than two values, or values that are not finite or out of bounds.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        raise InputError(f"the empirical Bernstein bound needs at least two values, got {len(array)}")
    if not np.isfinite(array).all() or array.min() < bounds[0] or array.max() > bounds[1]:
        raise InputError(f"values must be finite and lie in {bounds}, got {array.min()} to {array.max()}")
    n, mean, scale = len(array), float(array.mean()), bounds[1] - bounds[0]
    half = scale * empirical_bernstein_width(float(array.var(ddof=1)) / scale**2, n, (1 - level) / 2)
    return Estimate(mean, max(bounds[0], mean - half), min(bounds[1], mean + half), level, n, "empirical bernstein")


def bootstrap(
    statistic: Callable[..., Any],
    *arrays: Shaped[np.ndarray, "_ ..."],
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
    stratify: Shaped[np.ndarray, " n"] | None = None,
    vectorized: bool = False,
) -> Estimate:
    """BCa bootstrap interval of `statistic(*arrays)`, resampling the rows of all arrays together.

    `statistic` gets arrays (n, ...) and returns a number; with `vectorized` it gets (resamples, n, ...) and returns
    (resamples,).  With `stratify` (n,) every stratum keeps its size in every resample.
    Where the statistic does not vary over resamples BCa is undefined, and the percentile interval is given.
    Raises InputError when arrays differ in length or hold fewer than two rows.
    """
    n = len(arrays[0])
    if n < 2 or any(len(array) != n for array in arrays) or (stratify is not None and len(stratify) != n):
        lengths = [len(array) for array in (*arrays, *(() if stratify is None else (stratify,)))]
        raise InputError(f"the bootstrap needs arrays of equal length, at least 2, got {lengths}")

    def evaluate(rows: Int[np.ndarray, "some size"]) -> Float[np.ndarray, " some"]:
        if vectorized:
            return np.asarray(statistic(*(array[rows] for array in arrays)), dtype=np.float64)
        return np.array([statistic(*(array[row] for array in arrays)) for row in rows], dtype=np.float64)

    value = float(evaluate(np.arange(n)[None])[0])
    block = max(1, _BLOCK // sum(array.size for array in arrays))
    replicates = np.concatenate(
        [
            evaluate(_resampled(n, min(block, resamples - start), stratify, generator))
            for start in range(0, resamples, block)
        ]
    )
    if not (math.isfinite(value) and np.isfinite(replicates).all()):
        raise InputError(
            "the statistic is not finite on the data or on a resample of it; pass stratify so that no class can vanish"
        )
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    below = float((replicates < value).mean() + 0.5 * (replicates == value).mean())
    adjusted = tails
    method = "percentile bootstrap"
    if 0 < below < 1:
        jackknife = _jackknife(evaluate, n, generator)
        spread = jackknife.mean() - jackknife
        scale = float((spread**2).sum()) ** 1.5
        if scale > 0:
            bias, pull = float(stats.norm.ppf(below)), float((spread**3).sum()) / (6 * scale)
            z = stats.norm.ppf(tails) + bias
            adjusted, method = stats.norm.cdf(bias + z / (1 - pull * z)), "bca bootstrap"
    low, high = (float(end) for end in np.quantile(replicates, adjusted))
    return Estimate(value, min(low, value), max(high, value), level, n, method)


def _resampled(
    n: int, resamples: int, stratify: np.ndarray | None, generator: np.random.Generator
) -> Int[np.ndarray, "resamples n"]:
    if stratify is None:
        return generator.integers(0, n, (resamples, n))
    rows = np.empty((resamples, n), dtype=np.int64)
    for stratum in np.unique(stratify):
        members = np.flatnonzero(stratify == stratum)
        rows[:, members] = members[generator.integers(0, len(members), (resamples, len(members)))]
    return rows


def _jackknife(
    evaluate: Callable[[np.ndarray], np.ndarray], n: int, generator: np.random.Generator, most: int = 200
) -> Float[np.ndarray, " folds"]:
    """Leave-one-out values; for long arrays leave-one-block-out over a random partition into `most` blocks."""
    blocks = np.array_split(generator.permutation(n), min(n, most))
    everyone = np.arange(n)
    return np.concatenate([evaluate(np.delete(everyone, block)[None]) for block in blocks])


def _require_counts(successes: Count | float, n: Count | float, level: float) -> None:
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
