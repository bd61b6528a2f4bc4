"""Confidence sequences: intervals for the mean of bounded values that hold at every look, however often one looks.

For a candidate mean m a gambler's wealth M_t(m) is a non-negative martingale that starts at 1 when m is the truth; by
Ville's inequality it ever reaches 1/alpha with probability at most alpha.  So {m : M_s(m) < 1/alpha for all s <= t}
covers the true mean at all t at once: one may look after every value, and stop for any reason.  The interval reported
is that running intersection; it never grows when values are appended.

*Beta mixture* (Robbins, 1970), for binary values, k ones among n:

    M_n(p) = B(k + 1/2, n - k + 1/2) / B(1/2, 1/2) / (p^k (1 - p)^(n - k))                 independent draws
    M_n(K) = B(k + 1/2, n - k + 1/2) / B(1/2, 1/2) / (K_(k) (N - K)_(n - k) / N_(n))       K ones in a population of N

with falling factorials x_(j) = x (x - 1) ... (x - j + 1); both are log-convex in p or K, so the set is an interval.
Values are binary when their *type* says so (boolean or integer), never because of what was seen.

*Betting* (Waudby-Smith & Ramdas, 2024), for other values, mapped to [0, 1]: two gamblers with half the money each,

    M+_t(m) = prod_s (1 + min(b_s, c/m_s) (x_s - m_s)),    M-_t(m) = prod_s (1 - min(b_s, c/(1 - m_s)) (x_s - m_s)),
    b_s = sqrt(2 log(2/alpha) / (v_{s-1} s log(1 + s))),   c = 1/2,   m is out when either reaches 2/alpha,

v the running variance of the past, m_s = m for independent draws and m_s = (N m - sum of earlier x) / (N - s + 1), the
mean of what is left, without replacement.  M+ falls and M- rises in m, so each end is one threshold, found by a nested
search that stops on the outer side.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import betaln, expit, gammaln

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate

Values = Float[np.ndarray, " n"] | Int[np.ndarray, " n"] | Bool[np.ndarray, " n"]
Ends = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]

_SHY = 0.5  # c: no single value can cost a gambler more than half of the wealth
_FAN, _ROUNDS = 16, 10  # candidates a round of the search: ends are within 16^-10 of the range of the exact ones
_PATH_GRID = 1000  # candidates along the path of general values, for display
_BLOCK = 1 << 20  # entries of one block of bets
_NEWTON_STEPS = 60  # far beyond what quadratic convergence needs; the loop leaves at rest


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
    values : the observations in the order they were made, each within `bounds`.  Booleans, and integers within (0, 1),
        use the Beta mixture, floats betting (the type decides, never the data).
    population : size of the finite set the values were drawn from without replacement; the interval is then about the
        mean of that set and closes on it.  None: independent draws, the interval is about their distribution.

    Where earlier looks have excluded the mean of all values, or all looks together leave nothing (random order does
    either with probability at most 1 - level), the interval is widened to hold the mean, or the last one that left
    something is.

    Raises
    ------
    InputError when there are no values, a value is not finite or out of bounds, or `population` is too small for them.
    """
    unit = _validated(values, level, bounds, population)
    low_bound, scale = bounds[0], bounds[1] - bounds[0]
    binary = _is_binary(values, bounds)
    if population == len(unit):
        low = high = float(unit.mean())
    elif binary:
        low, high = (float(ends[-1]) for ends in _mixture_path(unit, 1 - level, population))
    else:
        low, high = _betting_interval(unit, 1 - level, population)
    mean = float(unit.mean())
    low, high = min(low, mean), max(high, mean)
    return Estimate(
        low_bound + scale * mean,
        low_bound + scale * low,
        low_bound + scale * high,
        level,
        len(unit),
        "beta mixture" if binary else "betting",
    )


def anytime_difference(
    a: Values,
    b: Values,
    *,
    level: float = 0.95,
    population: int | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    """Mean of b - a over the same examples (both within `bounds`), valid at every sample size at once.

    Betting adapts to the variance of b - a, so two models that rarely disagree get a short interval.
    Raises InputError as `anytime_mean` does, and on shapes that differ.
    """
    if a.shape != b.shape:
        raise InputError(f"paired values must have equal shapes, got {a.shape} and {b.shape}")
    width = bounds[1] - bounds[0]
    difference = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    return anytime_mean(difference, level=level, bounds=(-width, width), population=population)


def anytime_mean_path(
    values: Values,
    looks: Int[np.ndarray, " looks"] | None = None,
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
    population: int | None = None,
) -> tuple[Float[np.ndarray, " looks"], Float[np.ndarray, " looks"], Float[np.ndarray, " looks"]]:
    """Value, low and high end as they stood after the first `looks[i]` values (each at least 1; None: after every one).

    `low` never falls and `high` never rises, except to hold the value (see `anytime_mean`).  Binary values give exactly
    what `anytime_mean` said at every step; others are resolved to a thousandth of the range, on the outer side, for
    display.  Raises InputError as `anytime_mean` does, and on looks out of range.
    """
    unit = _validated(values, level, bounds, population)
    n, low_bound, scale = len(unit), bounds[0], bounds[1] - bounds[0]
    if looks is None:
        looks = np.arange(1, n + 1)
    if len(looks) and not (looks.min() >= 1 and looks.max() <= n):
        raise InputError(f"looks must lie in 1..{n}, got {looks.min()}..{looks.max()}")
    path = _mixture_path if _is_binary(values, bounds) else _betting_path
    low, high = path(unit, 1 - level, population)
    means = np.cumsum(unit) / np.arange(1, n + 1)
    if population == n:
        low[-1] = high[-1] = means[-1]
    ends = np.stack([means, np.minimum(low, means), np.maximum(high, means)])[:, looks - 1]
    value, low, high = low_bound + scale * ends
    return value, low, high


def mixture_ends(
    ones: Float[np.ndarray, " n"] | Int[np.ndarray, " n"],
    draws: Float[np.ndarray, " n"] | Int[np.ndarray, " n"],
    alpha: float,
    prior: tuple[Float[np.ndarray, " n"] | float, Float[np.ndarray, " n"] | float] = (0.5, 0.5),
) -> Ends:
    """Ends of {p : M_n(p) < 1/alpha} for `ones` of `draws` independent binary values, element by element.

    The mixture is Beta(prior).  Any prior fixed before the values were seen is valid, so one may centre it where other
    values of the same kind, which are not counted here, fell.  Over the looks at one stream the highest lower end and
    the lowest upper end so far are valid, too.  Raises InputError unless 0 <= ones <= draws, draws >= 1 and
    0 < alpha < 1.
    """
    k, n = np.asarray(ones, dtype=np.float64), np.asarray(draws, dtype=np.float64)
    if not ((k >= 0) & (k <= n) & (n >= 1)).all() or not 0 < alpha < 1:
        raise InputError("a proportion's sequence needs 0 <= ones <= draws, draws >= 1 and alpha in (0, 1)")
    evidence = betaln(k + prior[0], n - k + prior[1]) - betaln(prior[0], prior[1])
    return expit(_outer_root(k, n, evidence, alpha)), expit(-_outer_root(n - k, n, evidence, alpha))


class BernsteinSequence:
    """Lower and upper ends for the means of streams of values in [0, 1], held at every look, in constant memory.

    The predictable plug-in empirical Bernstein sequence (Waudby-Smith & Ramdas, 2024, theorem 2): with weights that
    know only the past,

        |sum_s l_s x_s / sum_s l_s - mean| <= (log(1/alpha) + sum_s (x_s - m_{s-1})^2 psi(l_s)) / sum_s l_s,
        psi(l) = -log(1 - l) - l,    l_s = min(c, sqrt(2 log(1/alpha) / (v_{s-1} s log(1 + s)))),    c = 1/2,

    m and v the running mean and variance.  Each end of each stream holds with probability 1 - alpha at all looks at
    once; the ends kept are the tightest so far.

    Parameters
    ----------
    streams : how many values come at a time.
    alpha : one-sided error of each end.

    Raises InputError unless streams >= 1 and 0 < alpha < 1.
    """

    def __init__(self, streams: int, alpha: float) -> None:
        if streams < 1 or not 0 < alpha < 1:
            raise InputError(f"a sequence needs at least one stream and alpha in (0, 1), got {streams} and {alpha}")
        self.alpha, self.n = alpha, 0
        self.low, self.high = np.zeros(streams), np.ones(streams)
        self._sum, self._squares = np.zeros(streams), np.zeros(streams)
        self._weight, self._weighted, self._spread = np.zeros(streams), np.zeros(streams), np.zeros(streams)

    def add(self, values: Float[np.ndarray, "n streams"]) -> None:
        """Take the next `n` values of every stream, in order.  Raises InputError on values outside [0, 1]."""
        if values.shape[1] != len(self.low) or not ((values >= 0) & (values <= 1)).all():
            raise InputError(f"values must have shape (n, {len(self.low)}) and lie in [0, 1]")
        if not len(values):
            return
        place = self.n + np.arange(1, len(values) + 1, dtype=np.float64)[:, None]
        means = (0.5 + self._sum + np.cumsum(values, axis=0)) / (place + 1)
        squares = self._squares + np.cumsum((values - means) ** 2, axis=0)
        before_mean = np.concatenate([(0.5 + self._sum)[None] / (self.n + 1), means[:-1]])
        before_spread = (0.25 + np.concatenate([self._squares[None], squares[:-1]])) / place
        log = -math.log(self.alpha)
        weight = np.minimum(_SHY, np.sqrt(2 * log / (before_spread * place * np.log1p(place))))
        self._weight += weight.sum(0)
        self._weighted += (weight * values).sum(0)
        self._spread += ((values - before_mean) ** 2 * (-np.log1p(-weight) - weight)).sum(0)
        self._sum, self._squares, self.n = self._sum + values.sum(0), squares[-1], self.n + len(values)
        centre, half = self._weighted / self._weight, (log + self._spread) / self._weight
        self.low, self.high = np.maximum(self.low, centre - half), np.minimum(self.high, centre + half)


def _is_binary(values: Values, bounds: tuple[float, float]) -> bool:
    return values.dtype.kind in "biu" and tuple(bounds) == (0.0, 1.0)


def _validated(
    values: Values, level: float, bounds: tuple[float, float], population: int | None
) -> Float[np.ndarray, " n"]:
    """The values mapped from `bounds` to [0, 1]."""
    if not 0 < level < 1:
        raise InputError(f"level must lie strictly between 0 and 1, got {level}")
    if not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise InputError(f"bounds must be finite with low < high, got {bounds}")
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
    return np.clip((array - bounds[0]) / (bounds[1] - bounds[0]), 0.0, 1.0)


def _mixture_path(unit: Float[np.ndarray, " n"], alpha: float, population: int | None) -> Ends:
    """Running intersection after each of the binary values."""
    n = np.arange(1, len(unit) + 1, dtype=np.float64)
    ones = np.cumsum(unit)
    if population is None:
        low, high = mixture_ends(ones, n, alpha)
    else:
        evidence = betaln(ones + 0.5, n - ones + 0.5) - betaln(0.5, 0.5)
        low = _fewest_ones(ones, n, evidence, alpha, population) / population
        high = 1 - _fewest_ones(n - ones, n, evidence, alpha, population) / population
    return _never_growing(low, high)


def _outer_root(ones: np.ndarray, n: np.ndarray, evidence: np.ndarray, alpha: float) -> Float[np.ndarray, " n"]:
    """Smallest log-odds t at which  g(t) = evidence - ones t + n log(1 + e^t)  is not above log(1/alpha).

    g is convex.  Newton's method starts where the line  evidence - ones t  below g crosses the threshold, left of the
    root, and approaches it from there without passing it: the end errs outwards.  -inf when there are no ones.
    """
    threshold = -math.log(alpha)
    some = ones > 0
    roots = np.full(len(ones), -np.inf)
    ones, n, evidence = ones[some], n[some], evidence[some]
    t = (evidence - threshold) / ones
    for _ in range(_NEWTON_STEPS):
        excess = evidence - ones * t + n * np.logaddexp(0, t) - threshold
        slope = n * expit(t) - ones
        # Left of the root g lies above the threshold and falls; anything else is rounding at the root itself.
        falling = (excess > 0) & (slope < 0)
        step = np.where(falling, -excess / np.where(falling, slope, -1.0), 0.0)
        t = t + step
        if (step <= 1e-12 * (1 + np.abs(t))).all():
            break
    roots[some] = t
    return roots


def _fewest_ones(
    ones: np.ndarray, n: np.ndarray, evidence: np.ndarray, alpha: float, population: int
) -> Float[np.ndarray, " n"]:
    """Smallest number K of ones in the population that the evidence does not reject, by bisection over integers."""
    log_factorial = gammaln(np.arange(population + 1) + 1.0)
    threshold = -math.log(alpha)
    k, seen = ones.astype(np.int64), n.astype(np.int64)
    all_orders = log_factorial[population] - log_factorial[population - seen]

    def rejected(K: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        others = population - K
        likelihood = log_factorial[K] - log_factorial[K - k] + log_factorial[others]
        likelihood -= log_factorial[others - (seen - k)] + all_orders
        return evidence - likelihood >= threshold

    # The likelihood rises up to its mode, which a mixture of likelihoods cannot beat; below it rejection is monotone.
    mode = np.clip(-(-k * (population + 1) // seen) - 1, k, population - (seen - k))
    out, kept = k - 1, mode
    while (open_ := out + 1 < kept).any():
        middle = np.maximum((out + kept) // 2, k)
        falls = rejected(middle)
        out, kept = np.where(open_ & falls, middle, out), np.where(open_ & ~falls, middle, kept)
    return kept.astype(np.float64)


def _never_growing(low: Float[np.ndarray, " n"], high: Float[np.ndarray, " n"]) -> Ends:
    """Running intersection; from the step at which it would become empty the last non-empty one stays."""
    low, high = np.maximum.accumulate(low), np.minimum.accumulate(high)
    empty = low > high
    if empty.any():
        first = int(np.argmax(empty))
        low[first:], high[first:] = (low[first - 1], high[first - 1]) if first else (0.0, 1.0)
    return low, high


def _betting_interval(unit: Float[np.ndarray, " n"], alpha: float, population: int | None) -> tuple[float, float]:
    ends = _betting_ends(unit, alpha, population)
    if ends[0] <= ends[1]:
        return ends
    # Once empty the intersection stays empty, so the last prefix that leaves something is found by bisection.
    good, bad, best = 0, len(unit), (0.0, 1.0)
    while good + 1 < bad:
        middle = (good + bad) // 2
        ends = _betting_ends(unit[:middle], alpha, population)
        good, bad, best = (middle, bad, ends) if ends[0] <= ends[1] else (good, middle, best)
    return best


def _betting_ends(unit: Float[np.ndarray, " n"], alpha: float, population: int | None) -> tuple[float, float]:
    """Largest mean that the upward gambler rejects, and the mirror image; low > high when nothing is left."""
    bets = _bets(unit, alpha)
    low = _largest_rejected(unit, bets, alpha, population)
    high = 1 - _largest_rejected(1 - unit, bets, alpha, population)
    if population is not None:  # what was seen bounds the total, whatever the rest holds
        low = max(low, float(unit.sum()) / population)
        high = min(high, (float(unit.sum()) + population - len(unit)) / population)
    return low, high


def _largest_rejected(unit: np.ndarray, bets: np.ndarray, alpha: float, population: int | None) -> float:
    """The last rejected point of a grid of 2^40 candidates: the grid is the same at every look, so that ends nest."""
    rejected, width = 0.0, 1.0
    for _ in range(_ROUNDS):
        width /= _FAN
        candidates = rejected + width * np.arange(1, _FAN)
        # Wealth falls with the candidate, so the rejected ones come first.
        first = _first_rejection(unit, bets, candidates, alpha, population)
        rejected += width * int(np.count_nonzero(first < len(unit)))
    return rejected


def _betting_path(unit: Float[np.ndarray, " n"], alpha: float, population: int | None) -> Ends:
    """Running intersection after each value, on a coarse grid of candidates."""
    candidates, bets, n = np.arange(1, _PATH_GRID) / _PATH_GRID, _bets(unit, alpha), len(unit)

    def lows(values: np.ndarray) -> Float[np.ndarray, " n"]:
        first = _first_rejection(values, bets, candidates, alpha, population)
        path = np.zeros(n)
        np.maximum.at(path, first[first < n], candidates[first < n])
        path = np.maximum.accumulate(path)
        return path if population is None else np.maximum(path, np.cumsum(values) / population)

    return _never_growing(lows(unit), 1 - lows(1 - unit))


def _bets(unit: Float[np.ndarray, " n"], alpha: float) -> Float[np.ndarray, " n"]:
    """Predictable plug-in bets: the size of bet s depends on the values before s only (and is that of 1 - x, too)."""
    draws = np.arange(1, len(unit) + 1)
    means = (0.5 + np.cumsum(unit)) / (draws + 1)
    variances = (0.25 + np.cumsum((unit - means) ** 2)) / (draws + 1)
    earlier = np.concatenate([[0.25], variances[:-1]])
    return np.sqrt(2 * np.log(2 / alpha) / (earlier * draws * np.log1p(draws)))


def _first_rejection(
    unit: np.ndarray, bets: np.ndarray, candidates: np.ndarray, alpha: float, population: int | None
) -> Int[np.ndarray, " candidates"]:
    """Index of the value after which the upward gambler first holds 2/alpha against each candidate; n for never."""
    n, threshold = len(unit), math.log(2 / alpha)
    first = np.full(len(candidates), n)
    wealth = np.zeros(len(candidates))
    before = np.concatenate([[0.0], np.cumsum(unit)[:-1]])
    block = max(1, _BLOCK // len(candidates))
    for start in range(0, n, block):
        part = slice(start, start + block)
        mean: np.ndarray = candidates[None, :]
        if population is not None:
            left = population - np.arange(n)[part]
            # A candidate whose rest would lie outside [0, 1] is impossible already and falls to the logical bounds.
            mean = np.clip((population * mean - before[part, None]) / left[:, None], 0.0, 1.0)
        stake = np.minimum(bets[part, None], _SHY / np.maximum(mean, 1e-300))
        growth = np.log1p(stake * (unit[part, None] - mean))
        growth[0] += wealth
        path = np.cumsum(growth, axis=0)
        wealth = path[-1]
        reached = path >= threshold
        hit = reached.any(axis=0) & (first == n)
        first[hit] = start + np.argmax(reached[:, hit], axis=0)
    return first
