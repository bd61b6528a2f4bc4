"""One number from several seeds or splits, with an interval that says what varied."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from holdfast.core.estimate import Estimate


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean with Student's interval: how much the result depends on the seed.  One seed has no interval."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate.exact(mean, 1)
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Estimate(mean, mean - half, mean + half, n=len(values), method="student t")


def over_examples(parts: Sequence[Estimate]) -> Estimate:
    """Mean of what each seed found; its interval is about examples, with the seeds as they are."""
    value = float(np.mean([part.value for part in parts]))
    down, up = (
        float(np.sqrt(sum((getattr(part, end) - part.value) ** 2 for part in parts)) / len(parts))
        for end in ("low", "high")
    )
    return Estimate(value, value - down, value + up, n=sum(part.n for part in parts), method="paired, pooled")
