"""Exposure: brightness and contrast.  x (n, height, width, channels) in [0, 1]."""

from __future__ import annotations

import numpy as np

from holdfast.inputs.corruption.resampling import Images
from holdfast.inputs.corruption.streams import Streams
from holdfast.inputs.corruption.tables import Number


def brightness(x: Images, added: Number, scale: float, streams: Streams) -> Images:
    """`added` to the value of HSV, cut at 1: hue and saturation stay, so every pixel is scaled by (v + added) / v.

    A black pixel, which has no hue, becomes grey.
    """
    value = x.max(axis=-1, keepdims=True)
    lifted = np.minimum(value + np.float32(added), np.float32(1))
    return np.where(value > 0, x * (lifted / np.where(value > 0, value, 1)), lifted)


def contrast(x: Images, kept: Number, scale: float, streams: Streams) -> Images:
    """Every channel pulled towards its mean over the image: (x - mean) * kept + mean."""
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * np.float32(kept) + mean
