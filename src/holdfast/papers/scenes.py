"""Scenes for checks: Fashion-MNIST objects, tinted, on CIFAR-10 photographs, with masks, boxes and kinds.

The ten classes are grouped into five kinds that differ in outline, so that a small network can tell them apart in
scenes of 48 or 64 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch.nn import functional as F

from holdfast.papers import datasets

KINDS = ("top", "trousers", "dress", "shoe", "bag")
_KIND_OF = np.array([0, 1, 0, 2, 0, 3, 0, 3, 4, 3])


@dataclass(frozen=True)
class CutOuts:
    """Objects of 28x28 pixels: brightness, mask (true inside), bounding box of the mask, kind."""

    pixels: Float[np.ndarray, "n 28 28"]
    masks: Bool[np.ndarray, "n 28 28"]
    boxes: Int[np.ndarray, "n 4"]
    kinds: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Scenes:
    """Images (n, 3, side, side) with what stands in them, in the form that detectors of torchvision are trained on."""

    images: Float[np.ndarray, "n 3 side side"]
    truth: list[dict[str, np.ndarray]]


def cut_outs(split: datasets.Split, start: int, stop: int) -> CutOuts:
    """Objects number `start` to `stop`: pixels brighter than .05 with holes filled; the few under 40 pixels are left
    out.
    """
    x, y = datasets.fashion_mnist(split, stop)
    pixels, labels = x[start:, 0], y[start:]
    flat = np.zeros((3, 3, 3), dtype=np.bool_)
    flat[1] = ndimage.generate_binary_structure(2, 1)
    masks = ndimage.binary_fill_holes(pixels > 0.05, structure=flat)
    kept = masks.sum((1, 2)) >= 40
    return CutOuts(pixels[kept], masks[kept], bounding_boxes(masks[kept]), _KIND_OF[labels[kept]])


def photographs(split: datasets.Split, side: int) -> Float[np.ndarray, "n 3 side side"]:
    """CIFAR-10 enlarged to `side` pixels (bicubic)."""
    x = torch.from_numpy(datasets.cifar10(split)[0])
    return F.interpolate(x, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1).numpy()


def bounding_boxes(masks: Bool[np.ndarray, "n height width"]) -> Int[np.ndarray, "n 4"]:
    """(left, top, right, bottom) of every mask, right and bottom exclusive; masks must not be empty."""
    down, across = np.asarray(masks.any(2)), np.asarray(masks.any(1))
    height, width = masks.shape[1:]
    return np.stack(
        [
            across.argmax(1),
            down.argmax(1),
            width - across[:, ::-1].argmax(1),
            height - down[:, ::-1].argmax(1),
        ],
        axis=1,
    )


def placed(
    objects: CutOuts, chosen: Int[np.ndarray, " n"], boxes: Float[np.ndarray, "n 4"], side: int
) -> tuple[Float[np.ndarray, "n side side"], Bool[np.ndarray, "n side side"]]:
    """Brightness and mask of chosen objects on an empty canvas, their bounding boxes stretched onto `boxes`."""
    source, target = objects.boxes[chosen].astype(np.float64), boxes.astype(np.float64)
    scale = (source[:, 2:] - source[:, :2]) / (target[:, 2:] - target[:, :2])
    centre = np.arange(side) + 0.5
    x = (centre - target[:, :1]) * scale[:, :1] + source[:, :1]
    y = (centre - target[:, 1:2]) * scale[:, 1:] + source[:, 1:2]
    grid = np.stack(np.broadcast_arrays(x[:, None, :], y[:, :, None]), axis=-1) / 14 - 1  # 28 pixels span -1 to 1
    both = np.stack([objects.pixels[chosen], objects.masks[chosen].astype(np.float32)], axis=1)
    made = F.grid_sample(
        torch.from_numpy(both), torch.from_numpy(grid.astype(np.float32)), align_corners=False, padding_mode="zeros"
    ).numpy()
    return made[:, 0], made[:, 1] > 0.5


def tints(n: int, generator: np.random.Generator) -> Float[np.ndarray, "n 3 1 1"]:
    """Colours of cloth: factors of the three channels from .45 to 1."""
    return generator.uniform(0.45, 1.0, (n, 3, 1, 1)).astype(np.float32)


def object_scenes(
    objects: CutOuts,
    grounds: Float[np.ndarray, "n 3 side side"],
    share: Float[np.ndarray, " n"],
    generator: np.random.Generator,
) -> tuple[Float[np.ndarray, "n 3 side side"], Bool[np.ndarray, "n side side"]]:
    """The n-th object at a random place of the n-th photograph, covering that share if the frame allows; and masks."""
    n, side = len(grounds), grounds.shape[-1]
    extent = (objects.boxes[:, 2:] - objects.boxes[:, :2]).astype(np.float64)
    scale = np.sqrt(share * side * side / objects.masks.sum((1, 2)))
    extent *= np.minimum(scale, (side - 1) / extent.max(1))[:, None]
    corner = generator.uniform(0, 1, (n, 2)) * (side - extent)
    pixels, masks = placed(objects, np.arange(n), np.concatenate([corner, corner + extent], axis=1), side)
    colour = np.clip(pixels[:, None] * 0.9 + 0.1, 0, 1) * tints(n, generator)
    return np.where(masks[:, None], colour, grounds).astype(np.float32), masks


def detection_scenes(
    n: int,
    objects: CutOuts,
    photos: Float[np.ndarray, "_ 3 side side"],
    generator: np.random.Generator,
    most: int = 4,
) -> Scenes:
    """n scenes of 1 to `most` objects, a quarter to a half of the side long, that hardly overlap (IoU below .05)."""
    side = photos.shape[-1]
    images = photos[generator.integers(len(photos), size=n)].copy()
    number = generator.integers(1, most + 1, n)
    boxes: list[np.ndarray] = []
    kinds: list[np.ndarray] = []
    present: list[np.ndarray] = []
    for slot in range(most):
        chosen = generator.integers(len(objects.kinds), size=n)
        box, free = _free_places(objects.boxes[chosen], boxes, present, side, generator)
        pixels, masks = placed(objects, chosen, box, side)
        shown = (number > slot) & free & masks.any((1, 2))
        colour = np.clip(pixels[:, None] * 0.9 + 0.1, 0, 1) * tints(n, generator)
        images = np.where((masks & shown[:, None, None])[:, None], colour, images)
        boxes.append(np.where(shown[:, None], bounding_boxes(masks | ~shown[:, None, None]), 0).astype(np.float64))
        kinds.append(objects.kinds[chosen])
        present.append(shown)
    there = np.stack(present, axis=1)
    box_of, kind_of = np.stack(boxes, axis=1), np.stack(kinds, axis=1)
    truth = [{"boxes": box_of[i][there[i]], "labels": kind_of[i][there[i]]} for i in range(n)]
    return Scenes(images.astype(np.float32), truth)


def _free_places(
    shape: Int[np.ndarray, "n 4"],
    taken: list[np.ndarray],
    present: list[np.ndarray],
    side: int,
    generator: np.random.Generator,
    tries: int = 12,
) -> tuple[Float[np.ndarray, "n 4"], Bool[np.ndarray, " n"]]:
    """Boxes of the objects' own proportions at the first of a few random places that is free, and whether one was."""
    n = len(shape)
    extent = (shape[:, 2:] - shape[:, :2]).astype(np.float64)
    extent *= (generator.uniform(side / 4, side / 2, n) / extent.max(1))[:, None]
    extent = np.maximum(extent, 4)
    corner = generator.uniform(0, 1, (tries, n, 2)) * (side - extent)
    place = np.concatenate([corner, corner + extent], axis=-1)
    clear = np.ones((tries, n), dtype=np.bool_)
    for box, there in zip(taken, present, strict=True):
        width = np.minimum(place[..., 2], box[:, 2]) - np.maximum(place[..., 0], box[:, 0])
        height = np.minimum(place[..., 3], box[:, 3]) - np.maximum(place[..., 1], box[:, 1])
        shared = np.clip(width, 0, None) * np.clip(height, 0, None)
        clear &= ~there | (shared < 0.05 * extent.prod(1))
    first = clear.argmax(0)
    return place[first, np.arange(n)], np.asarray(clear.any(0))
