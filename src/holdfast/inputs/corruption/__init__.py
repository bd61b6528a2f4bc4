"""Natural corruptions of images of any size: the fifteen families of ImageNet-C at five severities.

    corrupted = corrupt(x, "motion_blur", 3, generator=numpy.random.default_rng(0))

Families, severities and parameters are those of Hendrycks and Dietterich (2019); see `tables` for how lengths follow
the size of the image, and `weather` for why frost is synthetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from holdfast.core.errors import InputError
from holdfast.inputs.corruption import blur, digital, jpeg, noise, tone, weather
from holdfast.inputs.corruption.layout import SMALLEST, Layout, as_given, channels_last, check_images
from holdfast.inputs.corruption.streams import Streams
from holdfast.inputs.corruption.tables import PARAMETERS, SIDES, TableName, table_for

__all__ = ["FAMILIES", "LABELS", "SMALLEST", "Layout", "corrupt"]

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
    images = channels_last(x, layout)
    side = min(images.shape[1:3])
    table = table_for(side) if table is None else table
    function = _FUNCTIONS[name]
    if textures is not None and name == "frost":
        _check_textures(textures, images.shape[1:3])
        function = partial(weather.frost, textures=textures)
    parameters: Any = PARAMETERS[name][table][severity - 1]
    made = function(images, parameters, side / SIDES[table], Streams.of(generator, len(x)))
    return as_given(np.clip(made, 0, 1), x, layout)


def _check(x: np.ndarray, name: str, severity: int, generator: Any, layout: str) -> None:
    if name not in _FUNCTIONS:
        raise InputError(f"unknown corruption {name!r}; choose from {', '.join(FAMILIES)}")
    if severity not in (1, 2, 3, 4, 5):
        raise InputError(f"the severity of a corruption is 1 to 5, got {severity}")
    check_images(x, generator, layout, "corruptions")


def _check_textures(textures: Sequence[np.ndarray], size: tuple[int, ...]) -> None:
    if not textures:
        raise InputError("textures is empty; give at least one (height, width, 3) array, or None for synthetic frost")
    for texture in textures:
        if texture.ndim != 3 or texture.shape[2] != 3 or texture.shape[0] < size[0] or texture.shape[1] < size[1]:
            raise InputError(f"a texture needs shape (≥{size[0]}, ≥{size[1]}, 3), got {texture.shape}")
