"""Anisotropic Kuwahara filter with polynomial sectors (Kyprianidis, Semmo, Kang and Döllner, 2010).

The structure tensor, smoothed, gives every pixel a direction and an anisotropy A.  Around the pixel lies an ellipse,
longer along the direction by (1 + A) and shorter across it, cut into eight soft sectors.  With m_i and s_i the mean and
standard deviation of sector i, the result is sum m_i w_i / sum w_i, w_i = 1 / (1 + (255 s_i)^(q/2)): the most even
sectors win, so texture turns into strokes along the structure while edges stay.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from holdfast.inputs.corruption.resampling import Images

Plane = Float[np.ndarray, "n height width"]
_SECTORS = 8


def anisotropic_kuwahara(x: Images, radius: float, sharpness: float = 8.0, smoothing: float = 2.0) -> Images:
    """x painted with strokes of about `radius` pixels; `sharpness` is q, `smoothing` the width of the tensor's blur."""
    return np.concatenate([_painted(x[i : i + 1], radius, sharpness, smoothing) for i in range(len(x))])


def _painted(x: Images, radius: float, sharpness: float, smoothing: float) -> Images:
    """One image at a time: then all sectors fit in a processor's cache."""
    along, across, angle = _ellipse(x, radius, smoothing)
    cosine, sine = np.cos(angle), np.sin(angle)
    reach = int(np.ceil(radius * 2))
    height, width, channels = x.shape[1:]
    # the pixel, its squared length and one: what has to be summed over every sector
    terms = np.concatenate([x, (x * x).sum(-1, keepdims=True), np.ones_like(x[..., :1])], axis=-1).transpose(3, 0, 1, 2)
    padded = np.pad(terms, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="symmetric")
    sums = np.zeros((channels + 2, _SECTORS, *x.shape[:3]), dtype=np.float32)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            u = (cosine * right + sine * down) / along
            v = (-sine * right + cosine * down) / across
            if float((u * u + v * v).min()) > 1:
                continue
            share = _sectors(u, v)
            other = padded[:, :, reach + down : reach + down + height, reach + right : reach + right + width]
            for total, term in zip(sums, other, strict=True):
                total += share * term
    means = sums[:channels] / sums[-1]
    spread = np.sqrt(np.clip(sums[-2] / sums[-1] - (means * means).sum(0), 0, None))
    even = 1 / (1 + (np.float32(255) * spread) ** np.float32(sharpness / 2))
    return np.asarray((means * even).sum(1) / even.sum(0), dtype=x.dtype).transpose(1, 2, 3, 0)


def _ellipse(x: Images, radius: float, smoothing: float) -> tuple[Plane, Plane, Plane]:
    """Half axes along and across the structure, and its direction, at every pixel."""
    down, right = (ndimage.sobel(x, axis=axis, mode="nearest") for axis in (1, 2))
    products = [(right * right).sum(-1), (right * down).sum(-1), (down * down).sum(-1)]
    e, f, g = (ndimage.gaussian_filter(part, (0, smoothing, smoothing), mode="nearest") for part in products)
    root = np.sqrt((e - g) ** 2 + 4 * f * f)
    anisotropy = root / np.maximum(e + g, np.float32(1e-6))
    angle = 0.5 * np.arctan2(2 * f, e - g) + np.float32(np.pi / 2)  # across the gradient
    return radius * (1 + anisotropy), radius / (1 + anisotropy), angle


def _sectors(u: Plane, v: Plane) -> Float[np.ndarray, "sectors n height width"]:
    """Weight of a pixel at (u, v) in the unit disk in each sector, times a Gaussian; 0 outside the disk.

    A sector's weight is max(0, z + .33 - 3.77 c^2)^2, z along its axis and c across it, normalised over sectors.
    """
    distance = u * u + v * v
    root = np.float32(np.sqrt(0.5))
    share = np.empty((_SECTORS, *u.shape), dtype=np.float32)
    for start, (a, b) in enumerate(((u, v), (root * (u + v), root * (v - u)))):
        bends_a, bends_b = np.float32(0.33) - np.float32(3.77) * a * a, np.float32(0.33) - np.float32(3.77) * b * b
        for turn, part in enumerate((a + bends_b, b + bends_a, bends_b - a, bends_a - b)):
            share[start + 2 * turn] = np.maximum(part, 0) ** 2
    fall = np.where(distance <= 1, np.exp(-np.float32(3.125) * distance), 0)
    return share * (fall / np.maximum(share.sum(0), np.float32(1e-6)))
