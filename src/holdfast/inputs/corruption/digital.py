"""What software does to images: elastic warps and large pixels.  x (n, height, width, channels) in [0, 1]."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from holdfast.inputs.corruption.resampling import Images, bilinear
from holdfast.inputs.corruption.streams import Streams
from holdfast.inputs.corruption.tables import SIDES, Number

#: Fractions of the largest table were multiplied by 244 in the published code, not by its 224.
_PUBLISHED_SIDE = 244 / SIDES["224"]


def elastic_transform(x: Images, size: tuple[Number, Number, Number], scale: float, streams: Streams) -> Images:
    """A random affine map on three points near the centre, then a smooth random displacement of every pixel.

    `size` is (strength, smoothness, affine part) in fractions of the shorter side.
    """
    height, width = x.shape[1:3]
    side = min(height, width) * (_PUBLISHED_SIDE if min(height, width) > 128 else 1.0)
    strength, smoothness, affine = (part * side for part in size)
    warped = _affine(x, affine, streams)
    if strength == 0:
        return warped
    fields = [_smooth_field(streams, height, width, smoothness) * strength for _ in range(2)]
    rows = np.arange(height)[None, :, None] + fields[0]
    columns = np.arange(width)[None, None, :] + fields[1]
    return bilinear(warped, rows, columns, "reflect")


def _affine(x: Images, reach: float, streams: Streams) -> Images:
    """The affine map that moves three corners of a centred square by U(-reach, reach) each."""
    height, width = x.shape[1:3]
    centre, third = np.array([height // 2, width // 2]), min(height, width) // 3
    corners = centre + third * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moved = corners + streams.uniform(3, 2, low=-reach, high=reach)
    # where each output pixel comes from: [moved, 1] @ back = corners
    back = np.linalg.solve(np.concatenate([moved, np.ones((len(x), 3, 1))], axis=2), corners)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    grid = np.stack([rows, columns, np.ones_like(rows)], axis=-1)
    source = np.einsum("hwk,nkd->nhwd", grid, back)
    return bilinear(x, source[..., 0], source[..., 1], "reflect-101")


def _smooth_field(streams: Streams, height: int, width: int, smoothness: float) -> Float[np.ndarray, "n height width"]:
    field = streams.uniform(height, width, low=-1.0, high=1.0)
    return ndimage.gaussian_filter(field, (0, smoothness, smoothness), mode="reflect", truncate=3.0)


def pixelate(x: Images, share: Number, scale: float, streams: Streams) -> Images:
    """Shrunk to `share` of the pixels a side by box means, then enlarged by repeating pixels."""
    small = [max(1, int(size * share)) for size in x.shape[1:3]]
    down, across = (
        (box_matrix(few, size) @ box_matrix(size, few)).T.astype(x.dtype) for few, size in zip(small, x.shape[1:3])
    )
    raise_rows, raise_columns = down.T, across.T
    return np.einsum("ih,nhwc,jw->nijc", raise_rows, x, raise_columns, optimize=True)


def box_matrix(entering: int, leaving: int) -> Float[np.ndarray, "leaving entering"]:
    """Box resampling of a line: each new pixel is the mean of the old ones whose centres it covers (its nearest when
    enlarging).
    """
    ratio = entering / leaving
    centre = (np.arange(leaving) + 0.5)[:, None] * ratio
    support = max(ratio, 1.0) / 2
    pixel = np.arange(entering)[None, :]
    # a centre often lies exactly on an edge, so the order of operations decides; this one is Pillow's
    window = (pixel >= np.floor(centre - support + 0.5)) & (pixel < np.floor(centre + support + 0.5))
    offset = (pixel - centre + 0.5) * (1 / max(ratio, 1.0))
    covered = window & (offset > -0.5) & (offset <= 0.5)
    return covered / covered.sum(axis=1, keepdims=True)
