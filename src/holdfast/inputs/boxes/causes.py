"""False positives by what caused them, at a score that finds a fixed share of the objects.

Detectors compared at one score differ in recall as well, and a timid one looks free of false positives.  So every class
gets the highest score threshold at which its recall reaches the one asked for; detections at or above it that match no
object are false positives, and one is put down to a cause (fire, glare, water, ...) when at least half of its box lies
in that cause's mask.  Pixels inside true boxes are no part of a cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Cell, Table
from holdfast.core.intervals import bootstrap
from holdfast.inputs.boxes.frames import Image, box_areas, flatten
from holdfast.inputs.boxes.matching import BoxMatches, match


@dataclass(frozen=True)
class FalsePositives:
    """Counts of false positives `by_cause[cause]`, (classes, images), of all together, and the scores they passed.

    A false positive may have several causes or none.
    """

    classes: tuple[int, ...]
    recall: float
    thresholds: Mapping[int, float]
    by_cause: Mapping[str, Int[np.ndarray, "classes images"]]
    together: Int[np.ndarray, "classes images"]

    def counts(self, cause: str | None = None, label: int | None = None) -> Float[np.ndarray, " images"]:
        """False positives in every image, of one cause or all, of one class or all."""
        if cause is not None and cause not in self.by_cause:
            raise InputError(f"no cause is called {cause!r}; there are {', '.join(self.by_cause)}")
        table = self.together if cause is None else self.by_cause[cause]
        if label is None:
            return table.sum(0).astype(np.float64)
        if label not in self.classes:
            raise InputError(f"class {label} was not looked at; there are {self.classes}")
        return table[self.classes.index(label)].astype(np.float64)

    def per_image(
        self, cause: str | None = None, label: int | None = None, *, generator: np.random.Generator
    ) -> Estimate:
        """Mean number in an image with its bootstrap interval."""
        return bootstrap(_mean, self.counts(cause, label), generator=generator, vectorized=True)

    def table(self, *, generator: np.random.Generator, names: Mapping[int, str] | None = None) -> Table:
        """One row a class: score threshold, false positives an image, and those of every cause."""
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (
                (names or {}).get(label, str(label)),
                self.thresholds[label],
                self.per_image(label=label, generator=generator),
                *(self.per_image(cause, label, generator=generator) for cause in self.by_cause),
            )
            for label in self.classes
        )
        return Table(
            f"False positives an image at recall {self.recall:g}",
            ("class", "score", "all", *self.by_cause),
            rows,
        )


def false_positives_by_cause(
    detections: Sequence[Image],
    truth: Sequence[Image],
    causes: Mapping[str, Bool[np.ndarray, "images height width"]],
    *,
    recall: float = 0.6,
    threshold: float = 0.5,
    overlap: float = 0.5,
    classes: Sequence[int] | None = None,
) -> FalsePositives:
    """Count the false positives of every cause at the score where `recall` of a class's objects are found.

    Parameters
    ----------
    detections, truth : one mapping an image in the form of torchvision's detectors; boxes in pixels of the masks.
    causes : named masks, true where the cause is seen (`thermal.hot_regions` makes one for fire).
    threshold : IoU with an object of its class that makes a detection a hit.
    overlap : share of a detection's box that must lie in the mask.

    Raises InputError when masks and images differ in number, or a class never reaches the recall.
    """
    matches = match(detections, truth, thresholds=(threshold,), areas={"all": (0.0, 1e10)}, classes=classes)
    wanted = flatten(truth, "truth", classes)
    found = flatten(detections, "detections", classes)
    first = np.searchsorted(found.image, np.arange(found.images))
    boxes = found.boxes[first[matches.image] + matches.position]
    scores = {k: _score_at(matches, i, recall) for i, k in enumerate(matches.classes) if matches.counted[0, i].any()}
    passed = matches.scores >= np.array([scores.get(int(label), np.inf) for label in matches.label])
    wrong = passed & ~matches.hit[0, 0] & ~matches.ignored[0, 0]
    labels = tuple(scores)
    by_cause = {}
    for name, mask in causes.items():
        if len(mask) != found.images:
            raise InputError(f"the masks of {name!r} are {len(mask)} for {found.images} images")
        free = mask & ~_inside(wanted.boxes, wanted.image, mask.shape)
        caused = wrong & (coverage(free, boxes, matches.image) >= overlap)
        by_cause[name] = _counted(matches, caused, labels)
    return FalsePositives(labels, recall, scores, by_cause, _counted(matches, wrong, labels))


def reduction(
    before: FalsePositives,
    after: FalsePositives,
    cause: str | None = None,
    label: int | None = None,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> Estimate:
    """1 - after / before, the share of false positives that is gone, with a bootstrap interval over the same images.

    Raises InputError when both were not measured at one recall on as many images, or there was nothing before.
    """
    if before.recall != after.recall:
        raise InputError(f"false positives compare at equal recall only, got {before.recall} and {after.recall}")
    first, second = before.counts(cause, label), after.counts(cause, label)
    if first.sum() == 0:
        raise InputError("there were no false positives of this cause to begin with")
    return bootstrap(
        lambda a, b: 1 - b.sum(-1) / np.maximum(a.sum(-1), 1),
        first,
        second,
        generator=generator,
        level=level,
        resamples=resamples,
        vectorized=True,
    )


def coverage(
    masks: Bool[np.ndarray, "images height width"],
    boxes: Float[np.ndarray, "n 4"],
    image: Int[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Share of each box's area that its image's mask covers, exact for boxes between pixels; outside counts as free."""
    sums = np.pad(masks.cumsum(1).cumsum(2).astype(np.float64), ((0, 0), (1, 0), (1, 0)))

    def upto(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Masked area left of x and above y: the summed table is bilinear within a pixel."""
        height, width = masks.shape[1:]
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        column, row = np.minimum(x.astype(np.int64), width - 1), np.minimum(y.astype(np.int64), height - 1)
        across, down = x - column, y - row
        upper = sums[image, row, column] * (1 - across) + sums[image, row, column + 1] * across
        lower = sums[image, row + 1, column] * (1 - across) + sums[image, row + 1, column + 1] * across
        return np.asarray(upper * (1 - down) + lower * down)

    left, top, right, bottom = boxes.T
    return (upto(right, bottom) - upto(left, bottom) - upto(right, top) + upto(left, top)) / box_areas(boxes)


def _score_at(matches: BoxMatches, k: int, recall: float) -> float:
    """Highest score at which the recall of a class is reached."""
    if not 0 < recall <= 1:
        raise InputError(f"recall must lie in (0, 1], got {recall}")
    label = matches.classes[k]
    rows = matches.label == label
    reached = matches.hit[0, 0, rows].cumsum() / matches.counted[0, k].sum()
    if not len(reached) or reached[-1] < recall:
        highest = reached[-1] if len(reached) else 0.0
        raise InputError(
            f"class {label} reaches a recall of {highest:.3f} at most, below {recall}; ask for less, or keep "
            "detections of lower scores"
        )
    return float(matches.scores[rows][int((reached >= recall).argmax())])


def _inside(boxes: np.ndarray, image: np.ndarray, shape: tuple[int, ...]) -> Bool[np.ndarray, "images height width"]:
    """Pixels that a true box touches."""
    covered = np.zeros(shape, dtype=np.bool_)
    edges = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).clip(0).astype(np.int64)
    for i, (left, top, right, bottom) in zip(image, edges, strict=True):
        covered[i, top:bottom, left:right] = True
    return covered


def _counted(
    matches: BoxMatches, chosen: Bool[np.ndarray, " n"], labels: tuple[int, ...]
) -> Int[np.ndarray, "classes images"]:
    table = np.zeros((len(labels), matches.images), dtype=np.int64)
    for row, label in enumerate(labels):
        np.add.at(table[row], matches.image[chosen & (matches.label == label)], 1)
    return table


def _mean(counts: Float[np.ndarray, "resamples images"]) -> Float[np.ndarray, " resamples"]:
    return np.asarray(counts.mean(-1))
