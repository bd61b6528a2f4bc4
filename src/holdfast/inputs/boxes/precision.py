"""Average precision of a detector as COCO defines it, and under resampling of the images.

Detections of a class from all images are ranked by score.  With TP and FP the hits and false positives among the first
i, and n objects to find, precision is TP / (TP + FP) and recall TP / n.  Precision is made non-increasing from the
right and read at the 101 recalls 0, .01, ..., 1 (0 where recall is never reached); its mean is the AP of a class at one
IoU threshold, and AP is the mean over classes that have objects and over thresholds .50:.05:.95.

Matching looks at one image at a time, so a resample of images needs no new matching: an image drawn w times counts w
times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import bootstrap
from holdfast.inputs.boxes.frames import Image
from holdfast.inputs.boxes.matching import COCO_AREAS, COCO_THRESHOLDS, BoxMatches, match

RECALLS = np.linspace(0.0, 1.0, 101)
#: Entries that one block of resamples may hold.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class APReport:
    """Average precision by area, threshold and class; NaN where a class has no object.

    `precision` holds the interpolated precision at the 101 recalls, `recall` the highest recall reached.
    """

    thresholds: tuple[float, ...]
    areas: tuple[str, ...]
    classes: tuple[int, ...]
    precision: Float[np.ndarray, "areas thresholds classes 101"]
    recall: Float[np.ndarray, "areas thresholds classes"]

    def at(self, area: str | None = None, threshold: float | None = None, label: int | None = None) -> float:
        """Mean over what is not named (area: the first).  NaN when no such object exists; InputError if never asked."""
        area = self.areas[0] if area is None else area
        if area not in self.areas or (label is not None and label not in self.classes):
            raise InputError(f"no AP of area {area!r}, class {label}; there are {self.areas} and {self.classes}")
        part = self.precision[self.areas.index(area)]
        if threshold is not None:
            near = np.flatnonzero(np.isclose(self.thresholds, threshold))
            if not len(near):
                raise InputError(f"AP was not computed at IoU {threshold}; there are {self.thresholds}")
            part = part[near[:1]]
        if label is not None:
            part = part[:, [self.classes.index(label)]]
        known = part[~np.isnan(part)]
        return float(known.mean()) if len(known) else float("nan")

    @property
    def ap(self) -> float:
        """Mean over thresholds and classes, objects of all sizes."""
        return self.at()

    @property
    def ap50(self) -> float:
        """AP at IoU .50."""
        return self.at(threshold=0.5)

    @property
    def ap75(self) -> float:
        """AP at IoU .75."""
        return self.at(threshold=0.75)

    @property
    def small(self) -> float:
        """AP of objects up to 32^2 square pixels."""
        return self.at("small")

    @property
    def medium(self) -> float:
        """AP of objects from 32^2 to 96^2 square pixels."""
        return self.at("medium")

    @property
    def large(self) -> float:
        """AP of objects of at least 96^2 square pixels."""
        return self.at("large")

    def table(self, names: Mapping[int, str] | None = None) -> Table:
        """One row a class and one for their mean: AP and AP at the first threshold."""
        rows = [
            ((names or {}).get(label, str(label)), self.at(label=label), self.at(None, self.thresholds[0], label))
            for label in self.classes
        ]
        rows.append(("mean", self.ap, self.at(threshold=self.thresholds[0])))
        return Table("Average precision", ("class", "AP", f"AP at IoU {self.thresholds[0]:.2f}"), tuple(rows))


def average_precision(
    detections: Sequence[Image],
    truth: Sequence[Image],
    *,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    areas: Mapping[str, tuple[float, float]] = COCO_AREAS,
    classes: Sequence[int] | None = None,
) -> APReport:
    """AP of detections against truth, each one mapping an image as torchvision's detectors give them.

    Raises InputError for what `match` refuses.
    """
    return report(match(detections, truth, thresholds=thresholds, areas=areas, classes=classes))


def report(matches: BoxMatches) -> APReport:
    """Average precision from matches already made."""
    areas, thresholds, classes = len(matches.areas), len(matches.thresholds), len(matches.classes)
    precision = np.full((areas, thresholds, classes, len(RECALLS)), np.nan)
    recall = np.full((areas, thresholds, classes), np.nan)
    for k, rows in _by_class(matches):
        for a in range(areas):
            total = int(matches.counted[a, k].sum())
            if total == 0:
                continue
            hits = matches.hit[a][:, rows].astype(np.int64)
            wrong = (~matches.hit[a] & ~matches.ignored[a])[:, rows].astype(np.int64)
            totals = np.full(thresholds, total)
            precision[a, :, k] = _interpolated(hits, wrong, totals)
            recall[a, :, k] = hits.sum(1) / total
    return APReport(matches.thresholds, matches.areas, matches.classes, precision, recall)


def resampled_ap(
    matches: BoxMatches,
    drawn: Int[np.ndarray, "resamples many"],
    thresholds: Sequence[float] | None = None,
    *,
    label: int | None = None,
) -> Float[np.ndarray, " resamples"]:
    """AP, over the first range of areas, of the images whose indices stand in each row of `drawn`; of one class or all.

    A class that has no object among the drawn images is left out of that row's mean; InputError when none has any.
    """
    if drawn.size and not (drawn.min() >= 0 and drawn.max() < matches.images):
        raise InputError(f"images are numbered 0 to {matches.images - 1}, got {drawn.min()} to {drawn.max()}")
    chosen = [i for i, t in enumerate(matches.thresholds) if thresholds is None or np.isclose(t, thresholds).any()]
    if not chosen:
        raise InputError(f"matches were not made at IoU {thresholds}; there are {matches.thresholds}")
    if label is not None and label not in matches.classes:
        raise InputError(f"class {label} was not matched; there are {matches.classes}")
    block = max(1, _BLOCK // max(len(matches.scores), matches.images))
    return np.concatenate([_weighted_ap(matches, part, chosen, label) for part in _blocks(drawn, block)])


def _blocks(drawn: np.ndarray, size: int) -> list[np.ndarray]:
    return [drawn[start : start + size] for start in range(0, max(len(drawn), 1), size)]


def _weighted_ap(
    matches: BoxMatches, drawn: Int[np.ndarray, "resamples many"], chosen: list[int], label: int | None
) -> Float[np.ndarray, " resamples"]:
    resamples = len(drawn)
    weights = np.zeros((resamples, matches.images), dtype=np.int64)
    np.add.at(weights, (np.arange(resamples)[:, None], drawn), 1)
    total = np.einsum("bi,ki->bk", weights, matches.counted[0])
    ap = np.full((resamples, len(matches.classes)), np.nan)
    for k, rows in _by_class(matches):
        some = np.flatnonzero(total[:, k] > 0)
        if not len(some) or (label is not None and matches.classes[k] != label):
            continue
        times = weights[some][:, matches.image[rows]]
        parts = [
            _interpolated(
                times * matches.hit[0, t, rows],
                times * (~matches.hit[0, t, rows] & ~matches.ignored[0, t, rows]),
                total[some, k],
            ).mean(1)
            for t in chosen
        ]
        ap[some, k] = np.mean(parts, axis=0)
    if np.isnan(ap).all(1).any():
        raise InputError("a resample has no object to find; draw more images")
    return np.asarray(np.nanmean(ap, axis=1))


def ap_estimate(
    matches: BoxMatches,
    *,
    generator: np.random.Generator,
    thresholds: Sequence[float] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
) -> Estimate:
    """AP with its bootstrap interval over images."""
    return bootstrap(
        lambda drawn: resampled_ap(matches, drawn, thresholds),
        np.arange(matches.images),
        generator=generator,
        level=level,
        resamples=resamples,
        vectorized=True,
    )


def percentile_interval(
    value: float, replicates: Float[np.ndarray, " resamples"], images: int, level: float = 0.95
) -> Estimate:
    """The estimate of a number from its values on resamples of the images."""
    low, high = np.quantile(replicates, ((1 - level) / 2, (1 + level) / 2))
    return Estimate(value, min(float(low), value), max(float(high), value), level, images, "percentile bootstrap")


def _by_class(matches: BoxMatches) -> Iterator[tuple[int, slice]]:
    ends = np.searchsorted(matches.label, [*matches.classes, np.inf]) if matches.classes else np.zeros(1, np.int64)
    for k in range(len(matches.classes)):
        yield k, slice(int(ends[k]), int(ends[k + 1]))


def _interpolated(
    hits: Int[np.ndarray, "rows n"], wrong: Int[np.ndarray, "rows n"], total: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "rows 101"]:
    """Precision at the 101 recalls for rows of ranked counts of hits and false positives; totals are positive."""
    rows, n = hits.shape
    if n == 0:
        return np.zeros((rows, len(RECALLS)))
    found = hits.cumsum(1)
    precision = found / (found + wrong.cumsum(1) + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    needed = np.ceil(RECALLS * total[:, None] - 1e-6).astype(np.int64)
    needed += needed / total[:, None] < RECALLS  # the smallest count whose recall reaches the mark, in floats
    span = int(total.max()) + 2  # rows laid end to end, so that one search serves all
    offset = np.arange(rows)[:, None] * span
    at = np.searchsorted((found + offset).ravel(), (needed + offset).ravel()).reshape(rows, -1)
    reached = needed <= found[:, -1:]
    flat = np.append(precision.ravel(), 0.0)
    return np.where(reached, flat[np.minimum(at, rows * n)], 0.0)
