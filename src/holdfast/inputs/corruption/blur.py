"""Blur of the optics: out of focus, behind frosted glass, moving, zooming.

x (n, height, width, channels) in [0, 1]; `scale` is side / table side, by which lengths are multiplied.  On images
smaller than the table was made for, a published kernel shrinks by having each of its weights moved to its scaled, now
fractional, offset and shared among the nearest pixels.  (Rounding the radius instead would switch the family off, or
turn its severities round, on images of 8 or 28 pixels.)  At scale 1 this is the published kernel.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import fft, ndimage

from holdfast.inputs.corruption.resampling import Images, zoomed
from holdfast.inputs.corruption.streams import Streams
from holdfast.inputs.corruption.tables import Number

#: Up to this scale a kernel is stretched like it is shrunk; beyond, its formula is evaluated anew.
_STRETCH = 1.5


def defocus_blur(x: Images, size: tuple[Number, Number], scale: float, streams: Streams) -> Images:
    """Mean over a disk of (radius, width of the disk's smoothing)."""
    return _filtered(x, defocus_kernel(*size, scale))


def defocus_kernel(radius: Number, width: Number, scale: float) -> Float[np.ndarray, "side side"]:
    """A disk on whole pixels smoothed by a 3x3 (radius above 8: 5x5) Gaussian; weights sum to 1."""
    if scale < 1 or (scale <= _STRETCH and radius < 3):
        return _rescaled(_disk(radius, width), scale)
    return _disk(radius * scale, width * scale)


def _disk(radius: Number, width: Number) -> Float[np.ndarray, "side side"]:
    reach = max(8, int(radius)) + 2  # room for the smoothing
    offset = np.arange(-reach, reach + 1)
    disk = (offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2).astype(np.float64)
    near = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    line = np.exp(-(near**2) / (2 * width**2))
    line /= line.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, line, axis=axis, mode="constant")
    return disk / disk.sum()


def _rescaled(kernel: Float[np.ndarray, "side side"], scale: float) -> Float[np.ndarray, "other other"]:
    """Every weight moved to `scale` times its offset and shared linearly among the nearest pixels."""
    half = len(kernel) // 2
    place = np.arange(-half, half + 1) * scale
    reach = int(np.ceil(half * max(scale, 1.0))) + 1
    pixels = np.arange(-reach, reach + 1)
    share = np.clip(1 - np.abs(pixels[:, None] - place[None, :]), 0, None)
    moved: np.ndarray = share @ kernel @ share.T
    return moved


def _filtered(x: Images, kernel: Float[np.ndarray, "side side"]) -> Images:
    """Correlation with a kernel that is symmetric, mirrored at the borders; zero margins of the kernel cost nothing."""
    used = np.flatnonzero(kernel.sum(axis=1) > 0)
    kernel = kernel[used[0] : used[-1] + 1, used[0] : used[-1] + 1].astype(x.dtype)
    half = len(kernel) // 2
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)), mode="reflect")
    if len(kernel) > 9:
        from scipy.signal import oaconvolve

        return oaconvolve(padded, kernel[None, :, :, None], mode="valid", axes=(1, 2)).astype(x.dtype)
    out = np.zeros_like(x)
    for (i, j), weight in np.ndenumerate(kernel):
        if weight:
            out += weight * padded[:, i : i + height, j : j + width]
    return out


def glass_blur(x: Images, size: tuple[Number, Number, int], scale: float, streams: Streams) -> Images:
    """Blur, swap every pixel with a near one in reading order from the end, blur again.

    `size` is (width of the blur, reach of a swap in pixels, rounds).  One loop over pixels serves all images.
    """
    width, distance, rounds = size
    reach = max(1, round(distance * scale))
    x = np.floor(gaussian_blur(x, width, scale) * np.float32(255)) / np.float32(255)
    height, breadth = x.shape[1:3]
    image = np.arange(len(x))
    rows, columns = range(height - reach, reach, -1), range(breadth - reach, reach, -1)
    for _ in range(rounds):
        offsets = streams.integers(-reach, reach, len(rows), len(columns), 2)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                near = (image, row + offsets[:, i, j, 1], column + offsets[:, i, j, 0])
                here = x[:, row, column].copy()
                x[:, row, column] = x[near]
                x[near] = here
    return gaussian_blur(x, width, scale)


def gaussian_blur(x: Images, width: Number, scale: float) -> Images:
    """Gaussian of `width` pixels at the table's size, cut at four widths, edges repeated."""
    reach = int(4 * width + 0.5)
    if reach == 0:
        return x.copy()
    line = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * width**2))
    line /= line.sum()
    if scale < 1:
        place = np.arange(-reach, reach + 1) * scale
        pixels = np.arange(-reach, reach + 1)
        line = np.clip(1 - np.abs(pixels[:, None] - place[None, :]), 0, None) @ line
    elif scale > 1:
        return ndimage.gaussian_filter(x, (0, width * scale, width * scale, 0), mode="nearest", truncate=4.0)
    for axis in (1, 2):
        x = ndimage.correlate1d(x, line, axis=axis, mode="nearest")
    return x


def motion_blur(x: Images, size: tuple[Number, Number], scale: float, streams: Streams) -> Images:
    """Trails of (radius, width) along an angle drawn from U(-45, 45) degrees for every image."""
    return trailed(x, *size, scale, streams.uniform(low=-45.0, high=45.0))


def trailed(x: Images, radius: Number, width: Number, scale: float, degrees: Float[np.ndarray, " n"]) -> Images:
    """Weighted mean of copies moved along `degrees`: weights exp(-i^2 / 2 width^2) for i = 0 .. 2 radius, edges
    repeated.

    At the table's size and above copies move by whole pixels as published; below, by fractions.
    """
    if scale > 1:
        radius, width = radius * scale, width * scale
    steps = np.arange(2 * int(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * width**2))
    steps, weights = steps[weights > 1e-6], weights[weights > 1e-6] / weights[weights > 1e-6].sum()
    angle = np.deg2rad(degrees)[:, None]
    down, right = steps * np.sin(angle), steps * np.cos(angle)
    if scale < 1:
        return _convolved(x, *_trails(weights, -scale * down, -scale * right))
    return _convolved(x, *_trails(weights, -np.ceil(down - 0.5), -np.ceil(right - 0.5)))


def _trails(
    weights: Float[np.ndarray, " steps"], down: Float[np.ndarray, "n steps"], right: Float[np.ndarray, "n steps"]
) -> tuple[Float[np.ndarray, "n side side"], int]:
    """One kernel an image, every weight at its offset from the centre, shared among the four nearest pixels."""
    reach = int(np.ceil(max(np.abs(down).max(), np.abs(right).max())))
    kernels = np.zeros((len(down), 2 * reach + 2, 2 * reach + 2))
    image = np.arange(len(down))[:, None]
    top, left = np.floor(down).astype(np.int64), np.floor(right).astype(np.int64)
    low, near = down - top, right - left
    for i, vertical in ((0, 1 - low), (1, low)):
        for j, horizontal in ((0, 1 - near), (1, near)):
            np.add.at(kernels, (image, reach + top + i, reach + left + j), weights * vertical * horizontal)
    return kernels[:, :-1, :-1], reach  # offset `reach` + 1 has no weight


def _convolved(x: Images, kernels: Float[np.ndarray, "n side side"], reach: int) -> Images:
    """Every image convolved with its own kernel, edges repeated, by Fourier transform."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    shape = tuple(fft.next_fast_len(size + 2 * reach, real=True) for size in padded.shape[1:3])
    product = fft.rfft2(padded, shape, axes=(1, 2)) * fft.rfft2(kernels[..., None].astype(x.dtype), shape, axes=(1, 2))
    made = fft.irfft2(product, shape, axes=(1, 2))
    return made[:, 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


def zoom_blur(x: Images, steps: tuple[int, Number], scale: float, streams: Streams) -> Images:
    """Mean of x with its enlargements 1, 1 + step, ..., `steps` = (how many, step)."""
    count, step = steps
    total = x.copy()
    for i in range(count):
        total += zoomed(x, 1 + i * step, published=scale >= 1)
    return total / (count + 1)
