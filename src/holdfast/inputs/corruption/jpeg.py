"""JPEG compression without a file: only its lossy parts change pixels, so only those are computed.

YCbCr (BT.601, full range); chroma at half resolution (4:2:0); per 8x8 block D B D^T with the orthonormal DCT-II matrix
D, rounding to multiples of the standard quantisation tables (ITU T.81, annex K) scaled by the IJG rule

    s = 5000 / quality below 50, else 200 - 2 quality;   q = clip(floor((table * s + 50) / 100), 1, 255)

and back, chroma enlarged by the triangle filter that decoders use.  Entropy coding is lossless and is left out.
Codecs round their transforms differently, so this is not bit for bit any one of them: a coefficient that falls on the
other side of a rounding step moves its whole block.  tests/inputs/corruption/test_corrupt.py holds it to Pillow's: at
least 97 % of grey and 92 % of colour values within 2/255, on images of independent random channels.
x (n, height, width, channels) in [0, 1]; three channels are colour, any other number is coded channel by channel.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.fft import dctn, idctn

from holdfast.inputs.corruption.resampling import Images
from holdfast.inputs.corruption.streams import Streams

LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMA = np.full((8, 8), 99)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])
_TO_RGB = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136286, -0.714136286], [1.0, 1.772, 0.0]])

_HALF = 0.5 + 1e-6  # halves round up, as in the integer arithmetic of coders, whatever the last bit of a float says

Planes = Float[np.ndarray, "n height width"]


def jpeg_compression(x: Images, quality: int, scale: float, streams: Streams) -> Images:
    """x as a JPEG file of `quality` would show it."""
    levels = np.round(x.astype(np.float64) * 255)
    if x.shape[-1] != 3:
        coded = [_coded(levels[..., c], quantiser(LUMA, quality), 8) for c in range(x.shape[-1])]
        return (np.stack(coded, axis=-1) / 255).astype(x.dtype)
    ycc = np.round(levels @ _TO_YCC.T + [0, 128, 128])
    luma = _coded(ycc[..., 0], quantiser(LUMA, quality), 16)
    height, width = luma.shape[1:]
    chroma = []
    for c in (1, 2):
        half = _halved(_padded(ycc[..., c], 16))
        half = _coded(half, quantiser(CHROMA, quality), 8)[:, : -(-height // 2), : -(-width // 2)]
        chroma.append(_doubled(half)[:, :height, :width] - 128)
    rgb = np.stack([luma, *chroma], axis=-1) @ _TO_RGB.T
    return (np.clip(np.round(rgb), 0, 255) / 255).astype(x.dtype)


def quantiser(table: np.ndarray, quality: int) -> np.ndarray:
    """The table at `quality` 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((table * scale + 50) // 100, 1, 255)


def _padded(plane: Planes, multiple: int) -> Float[np.ndarray, "n taller wider"]:
    """The last row and column repeated up to a multiple of `multiple`."""
    down, across = (-size % multiple for size in plane.shape[1:])
    return np.pad(plane, ((0, 0), (0, down), (0, across)), mode="edge")


def _coded(plane: Planes, table: np.ndarray, multiple: int) -> Planes:
    """A plane of levels 0..255 through transform, rounding and back, at its own size."""
    n, height, width = plane.shape
    padded = _padded(plane, multiple) - 128
    blocks = padded.reshape(n, padded.shape[1] // 8, 8, padded.shape[2] // 8, 8)
    weights = np.floor(8 * dctn(blocks, axes=(2, 4), norm="ortho") + _HALF) / 8  # encoders keep eighths
    steps = table[:, None, :]
    counts = np.copysign(np.floor(np.abs(weights) / steps + 0.5), weights)  # halves away from zero
    back = idctn(counts * steps, axes=(2, 4), norm="ortho")
    levels = np.clip(np.floor(back.reshape(padded.shape) + 128 + _HALF), 0, 255)
    return levels[:, :height, :width]


def _halved(plane: Planes) -> Float[np.ndarray, "n lower narrower"]:
    """Means of 2x2 pixels, halves rounded up in every other column as encoders do to stay unbiased."""
    n, height, width = plane.shape
    total = plane.reshape(n, height // 2, 2, width // 2, 2).sum(axis=(2, 4))
    return np.floor((total + 1 + np.arange(width // 2) % 2) / 4)


def _doubled(plane: Planes) -> Float[np.ndarray, "n taller wider"]:
    """Twice the size by the triangle filter (3/4 the nearer, 1/4 the farther pixel, along both axes)."""
    padded = np.pad(plane, ((0, 0), (1, 1), (1, 1)), mode="edge")
    for axis in (1, 2):
        middle, before, after = (np.take(padded, range(s, padded.shape[axis] - 2 + s), axis) for s in (1, 0, 2))
        pair = np.stack([3 * middle + before, 3 * middle + after], axis=axis + 1)
        shape = list(middle.shape)
        shape[axis] *= 2
        padded = pair.reshape(shape)
    return np.floor((padded + 8 - np.arange(padded.shape[2]) % 2) / 16)
