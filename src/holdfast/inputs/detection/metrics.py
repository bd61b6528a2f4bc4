"""How well a score tells typical examples from others, every number with its interval.

`typical` and `other` are the scores of examples that do and do not belong; higher must mean more typical.  Ties
count one half (mid-ranks).

AUROC is P(typical > other) + ½ P(typical = other); its interval is DeLong's on the logit scale (DeLong et al.,
1988; fast form of Sun and Xu, 2014).  Where DeLong's variance is zero (perfect separation) it would claim
certainty; there the interval comes from min(n, m) disjoint pairs, all of which agreed: A^min(n, m) >= α/2.
Everything else is bootstrapped, resampling both sets.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from sklearn.metrics import average_precision_score

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.seeds import numpy_generator

Metric = Callable[[np.ndarray, np.ndarray], float]


def auroc(typical: ArrayLike, other: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Area under the ROC curve with DeLong's interval.  Raises InputError on NaN or an empty set."""
    a, b = _checked(typical, "typical"), _checked(other, "other")
    of_typical, of_other = _placements(a, b)
    value = float(of_typical.mean())
    variance = _variance(of_typical) / len(a) + _variance(of_other) / len(b)
    if not variance > 1e-18 or not 0 < value < 1:
        slack = _certain_slack(level, min(len(a), len(b)))
        return Estimate(
            value, max(0.0, value - slack), min(1.0, value + slack), level, len(a) + len(b), "disjoint pairs"
        )
    spread = norm.ppf((1 + level) / 2) * np.sqrt(variance) / (value * (1 - value))
    low, high = expit(logit(value) - spread), expit(logit(value) + spread)
    return Estimate(value, float(low), float(high), level, len(a) + len(b), "delong")


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
    variance = sum(_variance(gap) / len(gap) for gap in gaps)
    spread = norm.ppf((1 + level) / 2) * np.sqrt(variance)
    if not variance > 1e-18:
        spread = _certain_slack(level, min(len(gap) for gap in gaps))
    n = len(a[0]) + len(b[0])
    return Estimate(value, max(-1.0, value - spread), min(1.0, value + spread), level, n, "delong, paired")


def fpr_at_tpr(
    typical: ArrayLike,
    other: ArrayLike,
    *,
    tpr: float = 0.95,
    level: float = 0.95,
    resamples: int = 500,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """Share of others that pass the strictest threshold which at least `tpr` of the typical examples pass."""
    if not 0 < tpr <= 1:
        raise InputError(f"the true-positive rate must lie in (0, 1], got {tpr}")
    return _bootstrapped(lambda a, b: false_positive_rate(a, b, tpr), typical, other, level, resamples, generator)


def aupr(
    typical: ArrayLike,
    other: ArrayLike,
    *,
    positive: str = "typical",
    level: float = 0.95,
    resamples: int = 500,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """Average precision with the typical ("AUPR-in") or the `other` examples ("AUPR-out") as the positive class."""
    if positive not in ("typical", "other"):
        raise InputError(f"the positive class must be 'typical' or 'other', got {positive!r}")
    sign = 1.0 if positive == "typical" else -1.0

    def metric(a: np.ndarray, b: np.ndarray) -> float:
        truth = np.concatenate([np.full(len(a), sign > 0), np.full(len(b), sign < 0)])
        return float(average_precision_score(truth, sign * np.concatenate([a, b])))

    return _bootstrapped(metric, typical, other, level, resamples, generator)


def detection_accuracy(
    typical: ArrayLike,
    other: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 500,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """Largest mean of true-positive and true-negative rate over all thresholds (chosen on these very scores)."""
    return _bootstrapped(best_balanced_accuracy, typical, other, level, resamples, generator)


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
    thresholds = np.unique(np.concatenate([typical, other, [np.inf]]))
    passed = 1 - np.searchsorted(np.sort(typical), thresholds) / len(typical)
    rejected = np.searchsorted(np.sort(other), thresholds) / len(other)
    return float(np.max(passed + rejected) / 2)


def _placements(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each typical score the share of others below it, for each other the share of typical scores above it."""
    together = rankdata(np.concatenate([a, b]))
    below = (together[: len(a)] - rankdata(a)) / len(b)
    above = 1 - (together[len(a) :] - rankdata(b)) / len(a)
    return below, above


def _certain_slack(level: float, pairs: int) -> float:
    # `pairs` disjoint pairs that all agree leave the probability of agreeing no lower than (α/2)^(1/pairs).
    return float(1 - ((1 - level) / 2) ** (1 / pairs))


def _variance(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _bootstrapped(
    metric: Metric,
    typical: ArrayLike,
    other: ArrayLike,
    level: float,
    resamples: int,
    generator: np.random.Generator | None,
) -> Estimate:
    return _bootstrapped_pairs(
        metric, _checked(typical, "typical"), _checked(other, "other"), level, resamples, generator
    )


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
