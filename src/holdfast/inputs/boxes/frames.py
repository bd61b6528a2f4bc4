"""Boxes of many images as flat arrays, checked once; and how much boxes overlap.

A box is (left, top, right, bottom) in pixels, as detectors of torchvision give it.  Detections and truth come as one
mapping an image:

    detections  {"boxes": (n, 4), "labels": (n,), "scores": (n,)}
    truth       {"boxes": (m, 4), "labels": (m,)} and, where there are any, "iscrowd": (m,), "area": (m,)

of torch tensors on any device, NumPy arrays or lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.core.errors import InputError

Image = Mapping[str, Any]
Boxes = Float[np.ndarray, "_ 4"]


@dataclass(frozen=True)
class Flat:
    """Boxes of all images in one row of arrays; `image` says whose, `position` where in that image's list."""

    images: int
    image: Int[np.ndarray, " n"]
    position: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    areas: Float[np.ndarray, " n"]


def iou(
    a: Float[np.ndarray, "n 4"] | Float[Tensor, "n 4"], b: Float[np.ndarray, "m 4"] | Float[Tensor, "m 4"]
) -> Float[np.ndarray, "n m"]:
    """Area that two boxes share over the area that they cover together, for all pairs.

    Raises InputError for a box that is not finite or whose right or bottom does not exceed its left or top.
    """
    first, second = checked_boxes(_array(a, np.float64), "a"), checked_boxes(_array(b, np.float64), "b")
    shared = intersections(first[:, None], second[None])
    return shared / (box_areas(first)[:, None] + box_areas(second)[None] - shared)


def intersections(a: Float[np.ndarray, "*shape 4"], b: Float[np.ndarray, "*other 4"]) -> Float[np.ndarray, "..."]:
    """Area shared by boxes, broadcast over leading axes."""
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    return np.clip(width, 0, None) * np.clip(height, 0, None)


def box_areas(boxes: Float[np.ndarray, "*shape 4"]) -> Float[np.ndarray, "..."]:
    """Width times height."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def checked_boxes(boxes: np.ndarray, name: str) -> Boxes:
    """(n, 4) float64 with left < right and top < bottom, else InputError."""
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"{name} must have shape (n, 4), got {boxes.shape}")
    bad = ~(np.isfinite(boxes).all(1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"{name}[{row}] = {[round(v, 4) for v in boxes[row].tolist()]} is no box: (left, top, right, bottom) needs "
            "left < right and top < bottom; boxes given as (x, y, width, height) must be converted first"
        )
    return boxes


def flatten(images: Sequence[Image], kind: str, classes: Sequence[int] | None) -> Flat:
    """The images' boxes in one array each; `kind` is "detections", which have scores, or "truth".

    Raises InputError for missing keys, lengths that differ, bad boxes, scores that are not finite, and labels outside
    `classes` where these are given.
    """
    parts = [_one(image, f"{kind}[{i}]", kind == "detections") for i, image in enumerate(images)]
    counts = [len(part[0]) for part in parts]
    boxes, labels, scores, crowd, areas = (
        np.concatenate([empty, *(part[i] for part in parts)])
        for i, empty in enumerate(
            (np.empty((0, 4)), np.empty(0, np.int64), np.empty(0), np.empty(0, np.bool_), np.empty(0))
        )
    )
    image = np.repeat(np.arange(len(counts)), counts)
    if classes is not None and not np.isin(labels, classes).all():
        strange = sorted({int(label) for label in labels} - set(classes))
        raise InputError(
            f"{kind} hold the class ids {strange[:5]}, which are not among the {len(classes)} in `classes` "
            f"({', '.join(map(str, list(classes)[:10]))}{', …' if len(classes) > 10 else ''}); is there an offset for "
            "the background class?"
        )
    position = np.concatenate([np.empty(0, np.int64), *(np.arange(count) for count in counts)])
    return Flat(len(counts), image, position, boxes, labels, scores, crowd, areas)


def _one(image: Image, name: str, scored: bool) -> tuple[np.ndarray, ...]:
    wanted = ("boxes", "labels", "scores") if scored else ("boxes", "labels")
    missing = [key for key in wanted if key not in image]
    if missing:
        raise InputError(
            f"{name} has no {' and no '.join(map(repr, missing))}; it needs {', '.join(wanted)}, got {sorted(image)}"
        )
    boxes = checked_boxes(_array(image["boxes"], np.float64), f"{name}['boxes']")
    n = len(boxes)
    labels = _column(image, "labels", n, name, np.int64)
    scores = _column(image, "scores", n, name, np.float64) if scored else np.ones(n)
    if not np.isfinite(scores).all():
        raise InputError(f"{name}['scores'] hold NaN or infinity; drop those detections first")
    crowd = _column(image, "iscrowd", n, name, np.bool_) if "iscrowd" in image and not scored else np.zeros(n, np.bool_)
    areas = _column(image, "area", n, name, np.float64) if "area" in image and not scored else box_areas(boxes)
    return boxes, labels, scores, crowd, areas


def _column(image: Image, key: str, n: int, name: str, dtype: type) -> np.ndarray:
    column = _array(image[key], dtype)
    if column.shape != (n,):
        raise InputError(f"{name}['{key}'] must have one entry for each of {n} boxes, got shape {column.shape}")
    return column


def _array(values: Any, dtype: type) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values).astype(dtype, copy=False)
