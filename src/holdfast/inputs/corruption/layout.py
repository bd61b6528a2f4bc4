"""The door of everything that changes images: shapes, layouts and types in which they come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from holdfast.core.errors import InputError

Layout = Literal["channels_last", "channels_first"]
SMALLEST = 8


def check_images(
    x: np.ndarray, generator: np.random.Generator | Sequence[np.random.Generator], layout: str, what: str
) -> None:
    """Raise InputError unless x is uint8, or float in [0, 1], of a known layout, and no smaller than 8x8 pixels.

    `what` names the caller in messages, in the plural.
    """
    if layout not in ("channels_last", "channels_first"):
        raise InputError(f"layout must be 'channels_last' or 'channels_first', got {layout!r}")
    if x.ndim not in (3, 4):
        raise InputError(f"{what} take (n, height, width) or (n, height, width, channels), got shape {x.shape}")
    size = x.shape[2:] if x.ndim == 4 and layout == "channels_first" else x.shape[1:3]
    if min(size) < SMALLEST:
        hint = "; is it channels_first?" if layout == "channels_last" else ""
        raise InputError(f"{what} take images of at least 8x8 pixels, got {size[0]}x{size[1]}{hint}")
    if not isinstance(generator, np.random.Generator) and len(generator) != len(x):
        raise InputError(f"{len(generator)} generators were given for {len(x)} images; give one, or one an image")
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating):
            raise InputError(f"{what} take uint8, or floats in [0, 1], got {x.dtype}")
        if len(x) and not (np.isfinite(x).all() and x.min() >= -1e-5 and x.max() <= 1 + 1e-5):
            raise InputError(f"floats must be finite and lie in [0, 1], got {x.min():g} to {x.max():g}; rescale first")


def channels_last(x: np.ndarray, layout: Layout) -> np.ndarray:
    """float32 in [0, 1] of shape (n, height, width, channels)."""
    pixels = x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else np.clip(x, 0, 1).astype(np.float32)
    if x.ndim == 3:
        return pixels[..., None]
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if layout == "channels_first" else pixels


def as_given(made: np.ndarray, x: np.ndarray, layout: Layout) -> np.ndarray:
    """`made` (n, height, width, channels) in [0, 1] in the shape and type of x."""
    if x.dtype == np.uint8:
        made = np.round(made * 255)
    if x.ndim == 4 and layout == "channels_first":
        made = made.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(made.reshape(x.shape).astype(x.dtype))
