"""Which detections find an object: the greedy rule of COCO, for all images, thresholds and ranges of size at once.

Within an image and class, detections are taken in order of score.  Each takes the object, not yet taken, that it
overlaps most, if their IoU reaches the threshold.  An object outside the range of sizes is not counted: it is taken
only where nothing else can be, and the detection that takes it counts neither as a hit nor as a false positive.  A
crowd region is such an object that can be taken again and again, with the share of the *detection* inside it in place
of the IoU.  An unmatched detection outside the range does not count either.  The best 100 detections per image and
class are looked at.  (Lin et al., Microsoft COCO, 2014, and its evaluation code's rules for ties: the later object, the
earlier image.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Int

from holdfast.core.errors import InputError
from holdfast.inputs.boxes.frames import Flat, Image, box_areas, flatten, intersections

#: Ten IoU thresholds .50, .55, ..., .95 (as floats, numpy.linspace(.5, .95, 10)).
COCO_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
#: Ranges of area in square pixels, both ends included.
COCO_AREAS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
)
#: Entries that one block of padded pairs may hold.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class BoxMatches:
    """What every detection found.  Detections stand by class, then by falling score; axes are areas x thresholds.

    `image` and `position` say where in the input a detection came from, `taken` which object of that image's list it
    matched (-1: none).  `counted[area, class, image]` is the number of objects that ought to be found.
    """

    thresholds: tuple[float, ...]
    areas: tuple[str, ...]
    classes: tuple[int, ...]
    images: int
    image: Int[np.ndarray, " n"]
    position: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    hit: Bool[np.ndarray, "areas thresholds n"]
    ignored: Bool[np.ndarray, "areas thresholds n"]
    taken: Int[np.ndarray, "areas thresholds n"]
    counted: Int[np.ndarray, "areas classes images"]


def match(
    detections: Sequence[Image],
    truth: Sequence[Image],
    *,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    areas: Mapping[str, tuple[float, float]] = COCO_AREAS,
    classes: Sequence[int] | None = None,
    most: int = 100,
) -> BoxMatches:
    """Match detections to objects, image by image and class by class (see the module).

    Parameters
    ----------
    detections, truth : one mapping an image in the form of torchvision's detectors (see `frames`).
    thresholds : IoU that a match needs, in (0, 1].
    areas : named ranges of area; the first is the one that resampling uses.
    classes : ids that may occur; by default those of the truth, and detections of others find nothing to match.
    most : detections per image and class, best first; the rest are dropped.

    Raises InputError when the number of images differs, and for what `frames.flatten` refuses.
    """
    if len(detections) != len(truth):
        raise InputError(f"detections are given for {len(detections)} images and truth for {len(truth)}")
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise InputError(f"IoU thresholds must lie in (0, 1], got {list(thresholds)}")
    if not areas or most < 1:
        raise InputError(f"at least one range of areas and one detection are needed, got {dict(areas)}, most={most}")
    found, wanted = flatten(detections, "detections", classes), flatten(truth, "truth", classes)
    known = np.unique(wanted.labels) if classes is None else np.asarray(sorted(set(classes)), dtype=np.int64)
    order = _ranked(found, known, most)
    ranges = np.array(list(areas.values()), dtype=np.float64)
    outside = (wanted.areas < ranges[:, :1]) | (wanted.areas > ranges[:, 1:])
    uncounted = outside | wanted.crowd
    taken, silent = _greedy(found, wanted, order, uncounted, np.minimum(np.array(thresholds), 1 - 1e-10))
    sizes = box_areas(found.boxes)[order]
    strange = (sizes < ranges[:, :1]) | (sizes > ranges[:, 1:])
    ignored = silent | ((taken < 0) & strange[:, None])
    counted = np.zeros((len(ranges), len(known), found.images), dtype=np.int64)
    for area, hidden in enumerate(uncounted):
        np.add.at(counted[area], (np.searchsorted(known, wanted.labels[~hidden]), wanted.image[~hidden]), 1)
    return BoxMatches(
        tuple(float(threshold) for threshold in thresholds),
        tuple(areas),
        tuple(known.tolist()),
        found.images,
        found.image[order],
        found.position[order],
        found.labels[order],
        found.scores[order],
        (taken >= 0) & ~silent,
        ignored,
        np.where(taken >= 0, wanted.position[taken] if len(wanted.position) else -1, -1),
        counted,
    )


def _ranked(found: Flat, known: np.ndarray, most: int) -> Int[np.ndarray, " kept"]:
    """Detections of known classes by class and falling score (ties: in the order given), `most` per image and class."""
    order = np.lexsort((np.arange(len(found.image)), -found.scores, found.image, found.labels))
    order = order[np.isin(found.labels[order], known)]
    rank = _rank_within(found.labels[order], found.image[order])
    order = order[rank < most]
    return order[np.lexsort((order, -found.scores[order], found.labels[order]))]


def _rank_within(*keys: np.ndarray) -> Int[np.ndarray, " n"]:
    """0, 1, 2, ... within each run of equal keys."""
    n = len(keys[0])
    starts = np.ones(n, dtype=np.bool_)
    starts[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    first = np.flatnonzero(starts)
    return np.arange(n) - np.repeat(first, np.diff(np.append(first, n)))


def _greedy(
    found: Flat,
    wanted: Flat,
    order: Int[np.ndarray, " kept"],
    uncounted: Bool[np.ndarray, "areas objects"],
    thresholds: Float[np.ndarray, " thresholds"],
) -> tuple[Int[np.ndarray, "areas thresholds kept"], Bool[np.ndarray, "areas thresholds kept"]]:
    """Index of the object that each kept detection takes (-1: none), and whether that object is uncounted.

    Groups (image, class) are padded to equal numbers and go through together, one rank of score at a time.
    """
    shape = (len(uncounted), len(thresholds), len(order))
    taken, silent = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    by_group = order[np.lexsort((order, -found.scores[order], found.labels[order], found.image[order]))]
    place = np.empty(len(found.image), dtype=np.int64)
    place[order] = np.arange(len(order))
    groups = _groups(found, wanted, by_group)
    start = 0
    while start < len(groups):
        objects = max(len(group[1]) for group in groups[start : start + 1])
        stop = min(len(groups), start + max(1, _BLOCK // (len(uncounted) * len(thresholds) * objects)))
        _greedy_block(found, wanted, groups[start:stop], uncounted, thresholds, place, taken, silent)
        start = stop
    return taken, silent


def _groups(found: Flat, wanted: Flat, by_group: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(detections, objects) of every image and class that has both, those with most objects first."""
    label_of = np.unique(np.concatenate([found.labels, wanted.labels]))
    many = max(len(label_of), 1)
    found_key = found.image[by_group] * many + np.searchsorted(label_of, found.labels[by_group])
    wanted_key = wanted.image * many + np.searchsorted(label_of, wanted.labels)
    by_object = np.argsort(wanted_key, kind="stable")
    keys = np.intersect1d(found_key, wanted_key)
    left, right = (np.searchsorted(found_key, keys, side) for side in ("left", "right"))
    first, last = (np.searchsorted(wanted_key[by_object], keys, side) for side in ("left", "right"))
    groups = [(by_group[a:b], by_object[c:d]) for a, b, c, d in zip(left, right, first, last)]
    return sorted(groups, key=lambda group: -len(group[1]))


def _greedy_block(
    found: Flat,
    wanted: Flat,
    groups: list[tuple[np.ndarray, np.ndarray]],
    uncounted: np.ndarray,
    thresholds: np.ndarray,
    place: np.ndarray,
    taken: np.ndarray,
    silent: np.ndarray,
) -> None:
    groups = sorted(groups, key=lambda group: -len(group[0]))
    depth = np.array([len(group[0]) for group in groups])
    objects = _padded([group[1] for group in groups])
    detections = _padded([group[0] for group in groups])
    real = objects >= 0
    hidden = uncounted[:, None, objects] | ~real  # (areas, 1, groups, objects)
    crowd = wanted.crowd[objects]
    free = np.broadcast_to(real, (len(uncounted), len(thresholds), *real.shape)).copy()
    for rank in range(depth[0]):
        active = int((depth > rank).sum())
        detection = detections[:active, rank]
        overlap = _overlap(found.boxes[detection], wanted.boxes[objects[:active]], crowd[:active])
        fits = free[:, :, :active] & (overlap >= thresholds[:, None, None])
        best, can = _last_largest(fits & ~hidden[:, :, :active], overlap)
        second, may = _last_largest(fits & hidden[:, :, :active], overlap)
        chosen = np.where(can, best, second)
        taken[:, :, place[detection]] = np.where(can | may, objects[np.arange(active), chosen], -1)
        silent[:, :, place[detection]] = ~can & may
        takes = (np.arange(objects.shape[1]) == chosen[..., None]) & (can | may)[..., None] & ~crowd[:active]
        free[:, :, :active] &= ~takes


def _padded(rows: list[np.ndarray]) -> Int[np.ndarray, "rows longest"]:
    padded = np.full((len(rows), max(len(row) for row in rows)), -1, dtype=np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _overlap(box: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> Float[np.ndarray, "groups objects"]:
    shared = intersections(box[:, None], objects)
    own = box_areas(box)[:, None]
    return shared / np.where(crowd, own, own + box_areas(objects) - shared)


def _last_largest(allowed: np.ndarray, overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of the largest allowed overlap, the last of equals, and whether any is allowed."""
    value = np.where(allowed, overlap, -1.0)
    best = value.shape[-1] - 1 - value[..., ::-1].argmax(-1)
    return best, np.asarray(allowed.any(-1))
