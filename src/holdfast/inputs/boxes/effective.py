"""Effective robustness of a detector: the accuracy under shift that its accuracy without shift does not explain.

Over many detectors, AP under shift follows AP without it: on COCO-O, AP_shifted = 0.45 AP (Mao et al., 2023).  What a
detector has beyond that line is its effective robustness

    ER = mean over domains of AP_domain - beta * AP.

The slope 0.45 belongs to COCO and COCO-O.  For other data fit it to detectors of your own that make no claim to
robustness: through the origin (least squares), or linear between the logits of both accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.inputs.boxes.matching import BoxMatches
from holdfast.inputs.boxes.precision import percentile_interval, resampled_ap

#: Slope of AP on COCO-O against AP on COCO, both from 0 to 1; for no other data.
COCO_O_SLOPE = 0.45


@dataclass(frozen=True)
class BaselineLine:
    """AP under shift expected from AP without it: slope * AP, or through logits intercept + slope * logit(AP)."""

    slope: Estimate
    intercept: float = 0.0
    form: Literal["origin", "logit"] = "origin"

    def expected(self, ap: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """AP under shift of an ordinary detector that has this AP without."""
        if self.form == "origin":
            return self.slope.value * ap
        return np.asarray(special.expit(self.intercept + self.slope.value * special.logit(ap)))


def fit_baseline(
    ap: Sequence[float] | Float[np.ndarray, " detectors"],
    shifted: Sequence[float] | Float[np.ndarray, " detectors"],
    form: Literal["origin", "logit"] = "origin",
    level: float = 0.95,
) -> BaselineLine:
    """The line of ordinary detectors by least squares, its slope with Student's interval.

    Raises InputError with fewer than 3 detectors, accuracies outside [0, 1] (open for "logit"), or all equal.
    """
    x, y = np.asarray(ap, dtype=np.float64), np.asarray(shifted, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 3:
        raise InputError(
            f"a baseline needs the two accuracies of at least 3 detectors, got shapes {x.shape} and {y.shape}"
        )
    if form not in ("origin", "logit"):
        raise InputError(f"form must be 'origin' or 'logit', got {form!r}")
    both = np.concatenate([x, y])
    inside = (both > 0) & (both < 1) if form == "logit" else (both >= 0) & (both <= 1)
    if not inside.all():
        raise InputError(f"accuracies must lie between 0 and 1, got {both.min():g} to {both.max():g}; divide percents")
    intercept, freedom = 0.0, len(x) - 1
    if form == "logit":
        x, y = special.logit(x), special.logit(y)
        centre = (float(x.mean()), float(y.mean()))
        x, y, freedom = x - centre[0], y - centre[1], len(x) - 2
    square = float(x @ x)
    if square <= 1e-12:
        raise InputError("all baseline detectors have the same accuracy (or none), so they draw no line")
    slope = float(x @ y) / square
    if form == "logit":
        intercept = centre[1] - slope * centre[0]
    deviation = math.sqrt(float(((y - slope * x) ** 2).sum()) / freedom / square)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * deviation
    return BaselineLine(Estimate(slope, slope - half, slope + half, level, len(x), "student t"), intercept, form)


def effective_robustness(
    ap: float | BoxMatches,
    shifted: Sequence[float] | Sequence[BoxMatches],
    baseline: float | BaselineLine,
    *,
    generator: np.random.Generator | None = None,
    paired: bool = False,
    level: float = 0.95,
    resamples: int = 1000,
) -> Estimate:
    """Mean AP over shifted domains minus what `baseline` expects of a detector with this AP.

    Parameters
    ----------
    ap, shifted : the detector without shift and on each domain; matches, whose interval is that of a bootstrap over
        images, or mere numbers from a table, which have none.
    baseline : a slope (`COCO_O_SLOPE` for COCO-O alone) or a fitted line.  Its own error is not in the interval.
    paired : every domain shows the same images in the same order, so they are drawn together.

    Raises InputError without domains, for a mixture of matches and numbers, or matches without a generator.
    """
    line = baseline if isinstance(baseline, BaselineLine) else BaselineLine(Estimate.exact(baseline))
    domains = list(shifted)
    if not domains:
        raise InputError("effective robustness needs at least one shifted domain")
    matches = [domain for domain in (ap, *domains) if isinstance(domain, BoxMatches)]
    if not matches:
        numbers = np.array([ap, *domains], dtype=np.float64)
        return Estimate.exact(float(numbers[1:].mean() - line.expected(numbers[:1])[0]), len(domains))
    if len(matches) != 1 + len(domains) or generator is None:
        raise InputError("give matches, and a generator for the bootstrap, for all domains, or numbers for all")
    if paired and len({part.images for part in matches}) > 1:
        raise InputError(f"paired domains must have the same images, got {[part.images for part in matches]}")
    drawn = _drawn(matches, generator, resamples, paired)
    replicates = np.stack([resampled_ap(part, rows) for part, rows in zip(matches, drawn, strict=True)])
    point = np.stack([resampled_ap(part, np.arange(part.images)[None]) for part in matches])
    value, around = (scores[1:].mean(0) - line.expected(scores[0]) for scores in (point, replicates))
    return percentile_interval(float(value[0]), around, min(part.images for part in matches), level)


def _drawn(
    matches: Sequence[BoxMatches], generator: np.random.Generator, resamples: int, paired: bool
) -> list[np.ndarray]:
    if paired:
        return [generator.integers(0, matches[0].images, (resamples, matches[0].images))] * len(matches)
    return [generator.integers(0, part.images, (resamples, part.images)) for part in matches]
