"""Noise of a sensor: Gaussian (thermal), shot (photon counting) and impulse (dead pixels).

x (n, height, width, channels) in [0, 1]; results are not clipped.
"""

from __future__ import annotations

import numpy as np

from holdfast.inputs.corruption.resampling import Images
from holdfast.inputs.corruption.streams import Streams
from holdfast.inputs.corruption.tables import Number


def gaussian_noise(x: Images, deviation: Number, scale: float, streams: Streams) -> Images:
    """x + deviation * N(0, 1), independently in every value."""
    return x + np.float32(deviation) * streams.normal(*x.shape[1:])


def shot_noise(x: Images, photons: Number, scale: float, streams: Streams) -> Images:
    """Poisson(x * photons) / photons."""
    return streams.poisson(x * photons) / np.float32(photons)


def impulse_noise(x: Images, share: Number, scale: float, streams: Streams) -> Images:
    """A `share` of the values is replaced, half of them by 1 and half by 0."""
    drawn = streams.uniform(*x.shape[1:])
    return np.where(drawn < share / 2, np.float32(0), np.where(drawn < share, np.float32(1), x))
