"""Boxes from files: COCO JSON (annotations and results) and YOLO text, in the form of torchvision's detectors.

Some published annotations give a corner where the format means the centre, so that every box lies half its width and
height up and left of its object; `center_shift=True` adds that half back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.core.errors import InputError
from holdfast.inputs.boxes.frames import checked_boxes


@dataclass(frozen=True)
class CocoSet:
    """Images of a COCO file in the order of the file: ids, file names, truth for `match`, and names of the classes."""

    ids: tuple[int, ...]
    files: tuple[str, ...]
    truth: tuple[Mapping[str, np.ndarray], ...]
    names: Mapping[int, str]


def read_coco(path: str | Path, *, center_shift: bool = False) -> CocoSet:
    """Truth from a COCO annotation file: boxes, class ids, areas and crowd marks of every image, empty images too.

    Raises InputError when the file is no COCO JSON, an annotation names an unknown image or category, or a box has no
    positive width and height.
    """
    content = _json(path)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise InputError(f"{path} is no COCO annotation file: it needs 'images', 'annotations' and 'categories'")
    names = {int(category["id"]): str(category.get("name", category["id"])) for category in content["categories"]}
    ids = tuple(int(image["id"]) for image in content["images"])
    rows: dict[int, list[Mapping[str, Any]]] = {image: [] for image in ids}
    for annotation in content["annotations"]:
        _placed(annotation, rows, names, str(path))
        rows[int(annotation["image_id"])].append(annotation)
    truth = tuple(
        {
            "boxes": _corners(rows[image], center_shift, str(path)),
            "labels": np.array([int(row["category_id"]) for row in rows[image]], dtype=np.int64),
            "iscrowd": np.array([bool(row.get("iscrowd", 0)) for row in rows[image]], dtype=np.bool_),
            "area": np.array([float(row.get("area", row["bbox"][2] * row["bbox"][3])) for row in rows[image]]),
        }
        for image in ids
    )
    return CocoSet(ids, tuple(str(image.get("file_name", "")) for image in content["images"]), truth, names)


def read_coco_results(path: str | Path, coco: CocoSet) -> tuple[Mapping[str, np.ndarray], ...]:
    """Detections from a COCO results file (a list of image_id, category_id, bbox, score), in the order of `coco`.

    Raises InputError when an entry lacks a score, or names an image or category that `coco` does not have.
    """
    content = _json(path)
    if not isinstance(content, list):
        raise InputError(f"{path} is no COCO results file: it must hold a list of detections")
    rows: dict[int, list[Mapping[str, Any]]] = {image: [] for image in coco.ids}
    for entry in content:
        if "score" not in entry:
            raise InputError(f"{path}: a detection has no score ({sorted(entry)}); is this an annotation file?")
        _placed(entry, rows, coco.names, str(path))
        rows[int(entry["image_id"])].append(entry)
    return tuple(
        {
            "boxes": _corners(rows[image], False, str(path)),
            "labels": np.array([int(row["category_id"]) for row in rows[image]], dtype=np.int64),
            "scores": np.array([float(row["score"]) for row in rows[image]]),
        }
        for image in coco.ids
    )


def read_yolo(
    files: Sequence[str | Path],
    sizes: Sequence[tuple[int, int]],
    names: Sequence[str],
    *,
    center_shift: bool = False,
) -> tuple[Mapping[str, np.ndarray], ...]:
    """Boxes from YOLO text, a file an image: lines `class x y width height [score]`, lengths as shares of the image.

    Parameters
    ----------
    files : one path an image; a file that is not there stands for an image without objects, as YOLO has it.
    sizes : (height, width) in pixels of every image.
    names : the classes, in the order of their ids.
    center_shift : see the module.

    A sixth column, where every line has one, becomes `scores`.  Raises InputError for lines that are no boxes, class
    ids outside `names`, and when the numbers of files and sizes differ.
    """
    if len(files) != len(sizes):
        raise InputError(f"{len(files)} files need as many sizes, got {len(sizes)}")
    return tuple(_yolo(Path(file), size, names, center_shift) for file, size in zip(files, sizes, strict=True))


def _yolo(file: Path, size: tuple[int, int], names: Sequence[str], center_shift: bool) -> dict[str, np.ndarray]:
    lines = [line.split() for line in file.read_text().splitlines() if line.strip()] if file.exists() else []
    if not lines:
        return {"boxes": np.empty((0, 4)), "labels": np.empty(0, np.int64)}
    if {len(line) for line in lines} not in ({5}, {6}):
        raise InputError(f"{file}: every line must be `class x y width height`, all with a score or none")
    try:
        table = np.array([[float(cell) for cell in line] for line in lines], dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{file} holds something other than numbers ({error})") from error
    labels = table[:, 0].astype(np.int64)
    if (labels != table[:, 0]).any() or labels.min() < 0 or labels.max() >= len(names):
        raise InputError(
            f"{file} has classes {sorted(set(table[:, 0].tolist()))}, but the list has {len(names)}: "
            f"{', '.join(names)}; is it the list that the file was written with?"
        )
    height, width = size
    centre, extent = table[:, 1:3] * (width, height), table[:, 3:5] * (width, height)
    centre = centre + extent / 2 if center_shift else centre
    boxes = checked_boxes(np.concatenate([centre - extent / 2, centre + extent / 2], axis=1), str(file))
    found = {"boxes": boxes, "labels": labels}
    return {**found, "scores": table[:, 5]} if table.shape[1] == 6 else found


def _json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error


def _placed(row: Mapping[str, Any], images: Mapping[int, object], names: Mapping[int, str], path: str) -> None:
    if row["image_id"] not in images:
        raise InputError(f"{path}: a box belongs to image {row['image_id']}, which is not among the {len(images)}")
    if row["category_id"] not in names:
        raise InputError(f"{path}: a box has category {row['category_id']}; the categories are {dict(names)}")


def _corners(rows: Sequence[Mapping[str, Any]], center_shift: bool, path: str) -> np.ndarray:
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    corner = boxes[:, :2] + boxes[:, 2:] / 2 if center_shift else boxes[:, :2]
    return checked_boxes(np.concatenate([corner, corner + boxes[:, 2:]], axis=1), path)
