"""Confidence sequences: intervals for a mean that hold at every look, so an audit may stop whenever it likes.

*Betting* (Waudby-Smith & Ramdas, 2023), for independent values in [0, 1] or draws without replacement.  For a candidate
mean m two gamblers bet on and against X_t > m:

    K+_t(m) = prod_i (1 + lambda+_i (X_i - m_i)),     K-_t(m) = prod_i (1 - lambda-_i (X_i - m_i))

with m_i = m for independent draws, and m_i = (N m - S_{i-1}) / (N - i + 1), the mean of what is left, for draws without
replacement from N values.  The bets use the past only:  lambda_i = sqrt(2 log(2/alpha) / (v_{i-1} i log(1 + i))) with
the running variance v, cut at 1/(2 m_i) and 1/(2 (1 - m_i)).  At the true mean both are nonnegative martingales started
at 1, so by Ville's inequality P(exists t: K+_t or K-_t >= 2/alpha) <= alpha.

*Beta mixture* (Robbins, 1970), for 0/1 values: with k successes in n draws

    log M_n(p) = log B(k + 1/2, n - k + 1/2) - log B(1/2, 1/2) - k log p - (n - k) log(1 - p)

is the Bayes factor of a Beta(1/2, 1/2) prior against p, a martingale at the true p; {p: M_n(p) < 1/alpha} holds for
all n.

Both report the running intersection over all looks up to now: m is out once any look excluded it, that is when the
*maximum* over t of the wealth reached the threshold.  That maximum is monotone in m on either side, so each end is
found by bisection at O(n) a step, and the interval only ever shrinks as values are appended.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import betaln

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate

Values = Float[np.ndarray, " _"] | Int[np.ndarray, " _"] | Bool[np.ndarray, " _"]

_STEPS = 50  # bisection halves the unknown part each step: 2^-50 of the range
_SHY = 0.5  # largest share of the wealth a gambler puts at risk


def anytime_mean(
    values: Values,
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
    population: int | None = None,
) -> Estimate:
    """The mean of `values` with an interval that is valid at every sample size at once.

    Parameters
    ----------
    values : the observations in the order they were made, each within `bounds`.  Booleans use the Beta mixture, numbers
        the betting method (the type decides, never the data).
    population : size of the finite set the values were drawn from without replacement; the interval is then about the
        mean of that set and closes on it.  None: independent draws, the interval is about their distribution.

    Raises
    ------
    InputError when there are no values, a value is not finite or out of bounds, or `population` is too small for them.
    """
    array = _validated(values, level, bounds, population)
    low_bound, high_bound = bounds
    scale = high_bound - low_bound
    unit = (array - low_bound) / scale
    alpha = 1 - level
    binary = values.dtype == np.bool_ and population is None and bounds == (0.0, 1.0)
    low, high = _mixture_interval(unit, alpha) if binary else _betting_interval(unit, alpha, population)
    mean = float(unit.mean())
    method = "beta mixture" if binary else "betting"
    # with probability below alpha all looks together leave nothing, or not the mean; the mean is reported all the same
    low, high = min(low, mean), max(high, mean)
    return Estimate(
        low_bound + scale * mean, low_bound + scale * low, low_bound + scale * high, level, len(array), method
    )


def anytime_difference(
    a: Values,
    b: Values,
    *,
    level: float = 0.95,
    population: int | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    """Mean of b - a over the same examples (both within `bounds`), valid at every sample size at once."""
    if a.shape != b.shape:
        raise InputError(f"paired values must have equal shapes, got {a.shape} and {b.shape}")
    width = bounds[1] - bounds[0]
    difference = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    return anytime_mean(difference, level=level, bounds=(-width, width), population=population)


def anytime_mean_path(
    values: Values,
    looks: Int[np.ndarray, " looks"],
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
    population: int | None = None,
) -> tuple[Float[np.ndarray, " looks"], Float[np.ndarray, " looks"], Float[np.ndarray, " looks"]]:
    """Value, low and high end as they stood after the first `looks[i]` values (each at least 1)."""
    seen = [anytime_mean(values[: int(look)], level=level, bounds=bounds, population=population) for look in looks]
    return (
        np.array([estimate.value for estimate in seen]),
        np.array([estimate.low for estimate in seen]),
        np.array([estimate.high for estimate in seen]),
    )


def _validated(
    values: Values, level: float, bounds: tuple[float, float], population: int | None
) -> Float[np.ndarray, " n"]:
    if not 0 < level < 1:
        raise InputError(f"level must lie strictly between 0 and 1, got {level}")
    if not bounds[0] < bounds[1]:
        raise InputError(f"bounds must be (low, high) with low < high, got {bounds}")
    if len(values) == 0:
        raise InputError("a mean needs at least one value, got none")
    array = np.asarray(values, dtype=np.float64)
    slack = 1e-9 * (bounds[1] - bounds[0])
    if not np.isfinite(array).all() or array.min() < bounds[0] - slack or array.max() > bounds[1] + slack:
        raise InputError(
            f"values must be finite and lie in [{bounds[0]:g}, {bounds[1]:g}], got {array.min()} to {array.max()}"
        )
    if population is not None and population < len(array):
        raise InputError(f"{len(array)} values were drawn without replacement from a population of only {population}")
    return np.clip(array, *bounds)


def _bisect(excluded: Callable[[float], bool], outside: float, inside: float) -> float:
    """The last excluded point between `outside` and `inside`; `outside` itself when not even that is excluded."""
    if not excluded(outside):
        return outside
    for _ in range(_STEPS):
        middle = (outside + inside) / 2
        if excluded(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _mixture_interval(unit: Float[np.ndarray, " n"], alpha: float) -> tuple[float, float]:
    draws = np.arange(1, len(unit) + 1)
    hits = np.cumsum(unit)
    evidence = betaln(hits + 0.5, draws - hits + 0.5) - betaln(0.5, 0.5)
    threshold = -np.log(alpha)
    mean = float(hits[-1] / draws[-1])

    def excluded(p: float) -> bool:
        with np.errstate(divide="ignore", invalid="ignore"):
            against = np.where(hits > 0, hits * np.log(p), 0.0) + np.where(
                draws > hits, (draws - hits) * np.log1p(-p), 0.0
            )
        return bool((evidence - against >= threshold).any())

    return _bisect(excluded, 0.0, mean), _bisect(excluded, 1.0, mean)


def _betting_interval(unit: Float[np.ndarray, " n"], alpha: float, population: int | None) -> tuple[float, float]:
    n = len(unit)
    if population == n:
        return float(unit.mean()), float(unit.mean())
    bets = _bets(unit, alpha)
    before = np.concatenate([[0.0], np.cumsum(unit)[:-1]])
    left = None if population is None else population - np.arange(n)
    threshold = np.log(2 / alpha)

    def wealth(m: float, sign: float) -> bool:
        """Whether the gambler who bets that values lie above (+1) or below (-1) the candidate m ever got rich."""
        mean_left = np.full(n, m) if left is None or population is None else (population * m - before) / left
        if left is not None and ((mean_left < 0).any() or (mean_left > 1).any()):
            return bool((mean_left < 0).any() if sign > 0 else (mean_left > 1).any())  # m was impossible from the start
        room = np.maximum(mean_left if sign > 0 else 1 - mean_left, 1e-300)
        stake = np.minimum(bets, _SHY / room)
        return bool(np.cumsum(np.log1p(sign * stake * (unit - mean_left))).max() >= threshold)

    mean = float(unit.mean())
    low, high = _bisect(lambda m: wealth(m, 1.0), 0.0, mean), _bisect(lambda m: wealth(m, -1.0), 1.0, mean)
    if population is None:
        return low, high
    seen = float(unit.sum())  # what is left can add nothing, or one each
    return max(low, seen / population), min(high, (seen + population - n) / population)


def _bets(unit: Float[np.ndarray, " n"], alpha: float) -> Float[np.ndarray, " n"]:
    """Predictable plug-in bets: the size of bet i depends on the values before i only."""
    draws = np.arange(1, len(unit) + 1)
    means = (0.5 + np.cumsum(unit)) / (draws + 1)
    variances = (0.25 + np.cumsum((unit - means) ** 2)) / (draws + 1)
    earlier = np.concatenate([[0.25], variances[:-1]])
    return np.sqrt(2 * np.log(2 / alpha) / (earlier * draws * np.log1p(draws)))
