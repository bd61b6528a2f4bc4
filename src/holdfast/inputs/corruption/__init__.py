"""Natural corruptions of images of any size: the fifteen families of ImageNet-C at five severities.

    corrupted = corrupt(x, "motion_blur", 3, generator=numpy.random.default_rng(0))

Families, severities and parameters are those of Hendrycks and Dietterich (2019); see `tables` for how lengths follow
the size of the image, and `weather` for why frost is synthetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from holdfast.core.errors import InputError
from holdfast.inputs.corruption import blur, digital, jpeg, noise, tone, weather
from holdfast.inputs.corruption.streams import Streams
from holdfast.inputs.corruption.tables import PARAMETERS, SIDES, TableName, table_for

__all__ = ["FAMILIES", "LABELS", "SMALLEST", "corrupt"]

_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": tone.brightness,
    "contrast": tone.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": jpeg.jpeg_compression,
}
FAMILIES = tuple(_FUNCTIONS)
#: How tables name a family.
LABELS = {name: "frost (synthetic)" if name == "frost" else name.replace("_", " ") for name in FAMILIES}
SMALLEST = 8

Layout = Literal["channels_last", "channels_first"]


def corrupt(
    x: Shaped[np.ndarray, "n ..."],
    name: str,
    severity: int,
    *,
    generator: np.random.Generator | Sequence[np.random.Generator],
    table: TableName | None = None,
    layout: Layout = "channels_last",
    textures: Sequence[Float[np.ndarray, "_ _ _"]] | None = None,
) -> Shaped[np.ndarray, "n ..."]:
    """x under one corruption, with the same shape and type.

    Parameters
    ----------
    x : uint8, or float in [0, 1]; (n, height, width) or (n, height, width, channels), with `layout="channels_first"`
        (n, channels, height, width).  Height and width at least 8.
    name : one of `FAMILIES`.
    severity : 1 to 5.
    generator : one generator, or one an image; an image's result depends on its own stream alone, whatever the batch.
    table : parameters made for images of this side; by default the table nearest in size.
    textures : photographs of frost, (height, width, 3) in [0, 1], to use in place of the synthetic texture.

    Raises InputError for any argument that does not fit.
    """
    _check(x, name, severity, generator, layout)
    if len(x) == 0:
        return x.copy()
    images = _channels_last(x, layout)
    side = min(images.shape[1:3])
    table = table_for(side) if table is None else table
    function = _FUNCTIONS[name]
    if textures is not None and name == "frost":
        _check_textures(textures, images.shape[1:3])
        function = partial(weather.frost, textures=textures)
    parameters: Any = PARAMETERS[name][table][severity - 1]
    made = function(images, parameters, side / SIDES[table], Streams.of(generator, len(x)))
    return _as_given(np.clip(made, 0, 1), x, layout)


def _channels_last(x: np.ndarray, layout: Layout) -> np.ndarray:
    pixels = x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else np.clip(x, 0, 1).astype(np.float32)
    if x.ndim == 3:
        return pixels[..., None]
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if layout == "channels_first" else pixels


def _as_given(made: np.ndarray, x: np.ndarray, layout: Layout) -> np.ndarray:
    if x.dtype == np.uint8:
        made = np.round(made * 255)
    if x.ndim == 4 and layout == "channels_first":
        made = made.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(made.reshape(x.shape).astype(x.dtype))


def _check(x: np.ndarray, name: str, severity: int, generator: Any, layout: str) -> None:
    if name not in _FUNCTIONS:
        raise InputError(f"unknown corruption {name!r}; choose from {', '.join(FAMILIES)}")
    if severity not in (1, 2, 3, 4, 5):
        raise InputError(f"the severity of a corruption is 1 to 5, got {severity}")
    if layout not in ("channels_last", "channels_first"):
        raise InputError(f"layout must be 'channels_last' or 'channels_first', got {layout!r}")
    if x.ndim not in (3, 4):
        raise InputError(f"corruptions take (n, height, width) or (n, height, width, channels), got shape {x.shape}")
    size = x.shape[2:] if x.ndim == 4 and layout == "channels_first" else x.shape[1:3]
    if min(size) < SMALLEST:
        hint = "; is it channels_first?" if layout == "channels_last" else ""
        raise InputError(f"corruptions take images of at least 8x8 pixels, got {size[0]}x{size[1]}{hint}")
    if not isinstance(generator, np.random.Generator) and len(generator) != len(x):
        raise InputError(f"{len(generator)} generators were given for {len(x)} images; give one, or one an image")
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating):
            raise InputError(f"corruptions take uint8, or floats in [0, 1], got {x.dtype}")
        if len(x) and not (np.isfinite(x).all() and x.min() >= -1e-5 and x.max() <= 1 + 1e-5):
            raise InputError(f"floats must be finite and lie in [0, 1], got {x.min():g} to {x.max():g}; rescale first")


def _check_textures(textures: Sequence[np.ndarray], size: tuple[int, ...]) -> None:
    if not textures:
        raise InputError("textures is empty; give at least one (height, width, 3) array, or None for synthetic frost")
    for texture in textures:
        if texture.ndim != 3 or texture.shape[2] != 3 or texture.shape[0] < size[0] or texture.shape[1] < size[1]:
            raise InputError(f"a texture needs shape (≥{size[0]}, ≥{size[1]}, 3), got {texture.shape}")
