"""Natural corruptions of images of any size: the fifteen families of ImageNet-C at five severities.

    corrupted = corrupt(x, "motion_blur", 3, generator=numpy.random.default_rng(0))

Families, severities and parameters are those of Hendrycks and Dietterich (2019); see `tables` for how lengths follow
the size of the image, and `weather` for why frost is synthetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from holdfast.core.errors import InputError
from holdfast.inputs.corruption import blur, digital, jpeg, noise, tone, weather
from holdfast.inputs.corruption.errors import CorruptionErrors, corruption_errors
from holdfast.inputs.corruption.layout import SMALLEST, Layout, as_given, channels_last, check_images
from holdfast.inputs.corruption.streams import Streams
from holdfast.inputs.corruption.tables import PARAMETERS, SIDES, TEXTURE_SCALES, TableName, table_for
from holdfast.inputs.corruption.weather import load_textures

__all__ = [
    "FAMILIES",
    "LABELS",
    "SMALLEST",
    "CorruptionErrors",
    "Layout",
    "corrupt",
    "corruption_errors",
    "load_textures",
]

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
    textures: Sequence[Shaped[np.ndarray, "..."]] | str | Path | None = None,
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
    textures : photographs of frost, (height, width, 3), uint8 or float in [0, 1], or a folder of them (`load_textures`
        reads it once for many calls), to use in place of the synthetic texture.  Like all lengths they are scaled: to
        0.2, 0.3 or 1 of their size in the tables "32", "64" and "224", times side / table side.

    Raises InputError for any argument that does not fit.
    """
    _check(x, name, severity, generator, table, layout)
    if len(x) == 0:
        return x.copy()
    images = channels_last(x, layout)
    side = min(images.shape[1:3])
    table = table_for(side) if table is None else table
    function = _FUNCTIONS[name]
    if textures is not None and name == "frost":
        photographs = load_textures(textures) if isinstance(textures, (str, Path)) else textures
        share = TEXTURE_SCALES[table] * side / SIDES[table]
        size = (images.shape[1], images.shape[2])
        function = partial(weather.frost, textures=weather.scaled_textures(photographs, share, size))
    parameters: Any = PARAMETERS[name][table][severity - 1]
    made = function(images, parameters, side / SIDES[table], Streams.of(generator, len(x)))
    return as_given(np.clip(made, 0, 1), x, layout)


def _check(x: Any, name: Any, severity: Any, generator: Any, table: Any, layout: Any) -> None:
    if not isinstance(x, np.ndarray):
        raise InputError(f"corruptions take a numpy array, got {type(x).__name__}; pass x.cpu().numpy() of a tensor")
    if name not in FAMILIES:
        raise InputError(f"unknown corruption {name!r}; choose from {', '.join(FAMILIES)}")
    if not isinstance(severity, (int, np.integer)) or not 1 <= severity <= 5:
        raise InputError(f"the severity of a corruption is a whole number from 1 to 5, got {severity!r}")
    if table is not None and table not in tuple(SIDES):
        raise InputError(f"the tables are called {', '.join(map(repr, SIDES))}, got {table!r}; None takes the nearest")
    given = [generator] if isinstance(generator, np.random.Generator) else generator
    if not isinstance(given, Sequence) or not all(isinstance(each, np.random.Generator) for each in given):
        raise InputError(f"generator is a numpy.random.Generator, or one an image, got {generator!r}; use default_rng")
    check_images(x, generator, layout, "corruptions")
