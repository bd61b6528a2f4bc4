"""Reading images between their pixels: bilinear gathers and centre zooms, vectorised over images."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

Border = Literal["edge", "reflect-101", "reflect"]
Images = Float[np.ndarray, "n height width channels"]


def fold(index: np.ndarray, size: int, border: Border) -> np.ndarray:
    """Integer positions brought into [0, size): clamped, or mirrored about the last pixel ("reflect-101": c b|a b c)
    or its outer edge ("reflect": c b a|a b c d).
    """
    if border == "edge":
        return np.clip(index, 0, size - 1)
    if border == "reflect":
        folded = np.mod(index, 2 * size)
        return np.where(folded < size, folded, 2 * size - 1 - folded)
    period = 2 * (size - 1)
    folded = np.mod(index, period)
    return np.where(folded < size, folded, period - folded)


def bilinear(
    x: Images,
    rows: Float[np.ndarray, "n height width"],
    columns: Float[np.ndarray, "n height width"],
    border: Border,
) -> Images:
    """x read at fractional positions (in pixels, 0 is the centre of the first)."""
    top, left = np.floor(rows), np.floor(columns)
    down = (rows - top).astype(x.dtype)[..., None]
    across = (columns - left).astype(x.dtype)[..., None]
    height, width = x.shape[1:3]
    first, second = (fold(top.astype(np.int64) + i, height, border) for i in (0, 1))
    one, two = (fold(left.astype(np.int64) + i, width, border) for i in (0, 1))
    image = np.arange(len(x))[:, None, None]
    upper = x[image, first, one] * (1 - across) + x[image, first, two] * across
    lower = x[image, second, one] * (1 - across) + x[image, second, two] * across
    return upper * (1 - down) + lower * down


def zoom_matrix(size: int, factor: float | int, published: bool) -> Float[np.ndarray, "size size"]:
    """(size, size) matrix that enlarges a line about its centre by `factor`, linearly interpolated.

    The published rule cuts ceil(size / factor) pixels, stretches them onto round(cut * factor) with the end pixels
    kept in place, and cuts again, so factors near 1 do nothing on few pixels; otherwise the enlargement is exact.
    """
    if published:
        cut = int(np.ceil(size / float(factor)))
        start = (size - cut) // 2
        enlarged = round(cut * factor)
        stretch = (cut - 1) / (enlarged - 1) if enlarged > 1 else 0.0
        position = start + (np.arange(size) + (enlarged - size) // 2) * stretch
    else:
        centre = (size - 1) / 2
        position = centre + (np.arange(size) - centre) / factor
    lower = np.clip(np.floor(position).astype(np.int64), 0, size - 1)
    upper = np.minimum(lower + 1, size - 1)
    share = position - lower
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size), lower), 1 - share)
    np.add.at(matrix, (np.arange(size), upper), share)
    return matrix


def zoomed(x: Images, factor: float | int, published: bool) -> Images:
    """x enlarged about its centre by `factor` at least 1, cut to its own size."""
    rows = zoom_matrix(x.shape[1], factor, published).astype(x.dtype)
    columns = zoom_matrix(x.shape[2], factor, published).astype(x.dtype)
    return np.einsum("ih,nhwc,jw->nijc", rows, x, columns, optimize=True)
