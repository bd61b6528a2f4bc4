"""How well a score tells typical examples from others, every number with its interval.

`typical` and `other` are the scores of examples that do and do not belong; higher must mean more typical.  Ties
count one half (mid-ranks).

AUROC is P(typical > other) + ½ P(typical = other); its interval is DeLong's on the logit scale (DeLong et al.,
1988; fast form of Sun and Xu, 2014), with Student's t at min(n, m) - 1 degrees of freedom, as few scores tell little
about their variance.  With one score in a set, or a variance of zero (perfect separation), it would claim certainty;
there the interval is the exact binomial one of min(n, m) disjoint pairs (at AUROC 1: A^min(n, m) >= α/2).

Everything else resamples both sets.  A bootstrap cannot show what the sample does not hold (it says [0, 0] where no
other passed), so its interval is nowhere shorter than an exact binomial one for the count that matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import rankdata
from scipy.stats import t as student
from sklearn.metrics import average_precision_score

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson, fractional_clopper_pearson
from holdfast.core.seeds import numpy_generator

Metric = Callable[[np.ndarray, np.ndarray], float]


def auroc(typical: ArrayLike, other: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Area under the ROC curve with DeLong's interval.  Raises InputError on NaN or an empty set."""
    a, b = _checked(typical, "typical"), _checked(other, "other")
    of_typical, of_other = _placements(a, b)
    value = float(np.clip(of_typical.mean(), 0, 1))
    n, fewest = len(a) + len(b), min(len(a), len(b))
    spread = _spread(of_typical, of_other, level)
    if not spread > 0 or not 0 < value < 1:
        low, high = fractional_clopper_pearson(value * fewest, fewest, level)
        return Estimate(value, min(low, value), max(high, value), level, n, "disjoint pairs")
    spread /= value * (1 - value)
    low, high = expit(logit(value) - spread), expit(logit(value) + spread)
    return Estimate(value, float(low), float(high), level, n, "delong, t")


def auroc_difference(
    typical: tuple[ArrayLike, ArrayLike], other: tuple[ArrayLike, ArrayLike], *, level: float = 0.95
) -> Estimate:
    """AUROC of the first score minus that of the second on the same examples, by DeLong's paired covariance.

    `typical` and `other` are pairs: the first score's and the second score's values of the same examples, in one order.
    """
    a = [_checked(part, "typical") for part in typical]
    b = [_checked(part, "other") for part in other]
    if len(a[0]) != len(a[1]) or len(b[0]) != len(b[1]):
        raise InputError("a paired difference needs both scores on the same examples; their lengths differ")
    (typical_0, other_0), (typical_1, other_1) = _placements(a[0], b[0]), _placements(a[1], b[1])
    gaps = [typical_0 - typical_1, other_0 - other_1]
    value = float(gaps[0].mean())
    spread = _spread(gaps[0], gaps[1], level) or _certain_slack(level, min(len(gap) for gap in gaps))
    n = len(a[0]) + len(b[0])
    return Estimate(value, max(-1.0, value - spread), min(1.0, value + spread), level, n, "delong, paired, t")


def fpr_at_tpr(
    typical: ArrayLike,
    other: ArrayLike,
    *,
    tpr: float = 0.95,
    level: float = 0.95,
    resamples: int = 500,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """Share of others that pass the strictest threshold which at least `tpr` of the typical examples pass.

    The true threshold lies between the J-th and the next of the sorted typical scores, J ~ Bin(n, 1 - tpr) whatever the
    distribution.  The interval draws J `resamples` times, and for each the share of others above from the beta
    distributions of the exact binomial interval: those above the J-th score for the upper end, above the next for the
    lower.  Below J = 1 there is no score, and nothing bounds the share: with fewer than log(α/2) / log(tpr) typical
    examples (72 for 0.95 and 95 %) the upper end is 1.
    """
    if not 0 < tpr <= 1:
        raise InputError(f"the true-positive rate must lie in (0, 1], got {tpr}")
    a, b = np.sort(_checked(typical, "typical")), np.sort(_checked(other, "other"))
    generator = numpy_generator(0, "detection bootstrap") if generator is None else generator
    value, m = false_positive_rate(a, b, tpr), len(b)
    # Others above each of: nothing, the sorted typical scores, everything.
    above = np.concatenate([[m], m - np.searchsorted(b, a), [0]])
    rank = generator.binomial(len(a), 1 - tpr, resamples)
    most, least = above[rank], above[rank + 1]
    upper = np.where(most < m, generator.beta(most + 1, np.maximum(m - most, 1)), 1.0)
    lower = np.where(least > 0, generator.beta(np.maximum(least, 1), m - least + 1), 0.0)
    low, high = float(np.quantile(lower, (1 - level) / 2)), float(np.quantile(upper, (1 + level) / 2))
    return Estimate(value, min(low, value), max(high, value), level, len(a) + m, "order statistics, exact binomial")


def aupr(
    typical: ArrayLike,
    other: ArrayLike,
    *,
    positive: str = "typical",
    level: float = 0.95,
    resamples: int = 500,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """Average precision with the typical ("AUPR-in") or the `other` examples ("AUPR-out") as the positive class.

    It is a mean over the positive examples of numbers in [0, 1]; the interval is the wider of the bootstrap's and the
    exact binomial one of so many trials at either end (Boyd, Eng and Page, 2013, use the normal form of it).
    """
    if positive not in ("typical", "other"):
        raise InputError(f"the positive class must be 'typical' or 'other', got {positive!r}")
    sign = 1.0 if positive == "typical" else -1.0

    def metric(a: np.ndarray, b: np.ndarray) -> float:
        truth = np.concatenate([np.full(len(a), sign > 0), np.full(len(b), sign < 0)])
        return float(average_precision_score(truth, sign * np.concatenate([a, b])))

    a, b = _checked(typical, "typical"), _checked(other, "other")
    positives = len(a) if positive == "typical" else len(b)
    exact = fractional_clopper_pearson(min(1.0, metric(a, b)) * positives, positives, level)
    return _widened(_bootstrapped_pairs(metric, a, b, level, resamples, generator), *exact)


def detection_accuracy(
    typical: ArrayLike,
    other: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 500,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """Largest mean of true-positive and true-negative rate over all thresholds (chosen on these very scores).

    The interval is the wider of the bootstrap's and, at the chosen threshold, that of the mean of two proportions whose
    exact binomial intervals are combined as in Newcombe's, at either end.
    """
    a, b = _checked(typical, "typical"), _checked(other, "other")
    threshold = _best_threshold(a, b)
    passed, rejected = (
        clopper_pearson(int((a >= threshold).sum()), len(a), level),
        clopper_pearson(int((b < threshold).sum()), len(b), level),
    )
    value = (passed.value + rejected.value) / 2
    low = value - math.hypot(passed.value - passed.low, rejected.value - rejected.low) / 2
    high = value + math.hypot(passed.high - passed.value, rejected.high - rejected.value) / 2
    estimate = _bootstrapped_pairs(best_balanced_accuracy, a, b, level, resamples, generator)
    return _widened(estimate, max(0.5, low), min(1.0, high))


def paired_difference(
    metric: Metric,
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    *,
    level: float = 0.95,
    resamples: int = 500,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """metric(*first) - metric(*second), where each pair is (typical, other) of one score on the same examples.

    Both sets are resampled by example, so what the two scores share cancels.  `metric` is a function of two arrays such
    as `false_positive_rate`.
    """
    a = [_checked(pair[0], "typical") for pair in (first, second)]
    b = [_checked(pair[1], "other") for pair in (first, second)]
    if len(a[0]) != len(a[1]) or len(b[0]) != len(b[1]):
        raise InputError("a paired difference needs both scores on the same examples; their lengths differ")
    typical, other = np.stack(a, 1), np.stack(b, 1)
    return _bootstrapped_pairs(
        lambda p, q: metric(p[:, 0], q[:, 0]) - metric(p[:, 1], q[:, 1]), typical, other, level, resamples, generator
    )


def false_positive_rate(typical: np.ndarray, other: np.ndarray, tpr: float = 0.95) -> float:
    """The value `fpr_at_tpr` estimates, without an interval."""
    needed = int(np.ceil(tpr * len(typical) - 1e-9))
    threshold = np.partition(typical, len(typical) - needed)[len(typical) - needed]
    return float(np.mean(other >= threshold))


def best_balanced_accuracy(typical: np.ndarray, other: np.ndarray) -> float:
    """The value `detection_accuracy` estimates, without an interval."""
    return float(np.max(_balanced_accuracies(typical, other, _thresholds(typical, other))))


def _thresholds(typical: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.unique(np.concatenate([typical, other, [np.inf]]))


def _balanced_accuracies(typical: np.ndarray, other: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    passed = 1 - np.searchsorted(np.sort(typical), thresholds) / len(typical)
    rejected = np.searchsorted(np.sort(other), thresholds) / len(other)
    return (passed + rejected) / 2


def _best_threshold(typical: np.ndarray, other: np.ndarray) -> float:
    thresholds = _thresholds(typical, other)
    return float(thresholds[_balanced_accuracies(typical, other, thresholds).argmax()])


def _placements(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each typical score the share of others below it, for each other the share of typical scores above it."""
    together = rankdata(np.concatenate([a, b]))
    below = (together[: len(a)] - rankdata(a)) / len(b)
    above = 1 - (together[len(a) :] - rankdata(b)) / len(a)
    return below, above


def _certain_slack(level: float, pairs: int) -> float:
    # `pairs` disjoint pairs that all agree leave the probability of agreeing no lower than (α/2)^(1/pairs).
    return float(1 - ((1 - level) / 2) ** (1 / pairs))


def _spread(of_typical: np.ndarray, of_other: np.ndarray, level: float) -> float:
    """Half the width of the t interval for the sum of two independent means; 0 where their variance cannot be told."""
    fewest = min(len(of_typical), len(of_other))
    if fewest == 1:
        return 0.0
    variance = float(of_typical.var(ddof=1) / len(of_typical) + of_other.var(ddof=1) / len(of_other))
    return float(student.ppf((1 + level) / 2, fewest - 1)) * math.sqrt(variance) if variance > 1e-18 else 0.0


def _widened(estimate: Estimate, low: float, high: float) -> Estimate:
    low, high = min(low, estimate.low), max(high, estimate.high)
    return Estimate(estimate.value, low, high, estimate.level, estimate.n, "bootstrap or exact binomial, the wider")


def _bootstrapped_pairs(
    metric: Metric,
    a: np.ndarray,
    b: np.ndarray,
    level: float,
    resamples: int,
    generator: np.random.Generator | None,
) -> Estimate:
    generator = numpy_generator(0, "detection bootstrap") if generator is None else generator
    draws = [
        metric(a[generator.integers(len(a), size=len(a))], b[generator.integers(len(b), size=len(b))])
        for _ in range(resamples)
    ]
    value = metric(a, b)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(min(low, value)), float(max(high, value)), level, len(a) + len(b), "bootstrap")


def _checked(scores: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise InputError(f"the {name} scores must be a non-empty list of numbers, got shape {values.shape}")
    if np.isnan(values).any():
        raise InputError(
            f"the {name} scores hold {int(np.isnan(values).sum())} NaN; a detector must score every example"
        )
    return values
