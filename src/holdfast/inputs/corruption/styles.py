"""Six ways a scene is rendered other than by a camera in fair weather, as stand-ins for the domains of COCO-O.

    drawn = stylise(images, "sketch", generator=numpy.random.default_rng(0))

    sketch      pencil: extended differences of Gaussians at two scales, on grained paper (Winnemöller et al., 2012)
    cartoon     flat colours: bilateral filter, quantised brightness, stronger colour, dark outlines
    painting    brush strokes: anisotropic Kuwahara filter along the local structure (Kyprianidis et al., 2010)
    weather     fog, snow or rain, drawn for every image
    handmade    folded paper: flat triangles between points that crowd along edges, shaded as facets, with fibre
    tattoo      blue-black line art with washed shading on skin

The photographs and drawings of COCO-O (Mao et al., 2023) are not these; results compare within holdfast.  Objects keep
their places, so boxes and labels of the original hold.  Lengths are meant for 64 pixels a side and follow the size of
the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Shaped
from scipy import ndimage

from holdfast.core.errors import InputError
from holdfast.inputs.corruption.blur import trailed
from holdfast.inputs.corruption.facets import folded
from holdfast.inputs.corruption.kuwahara import anisotropic_kuwahara
from holdfast.inputs.corruption.layout import Layout, as_given, channels_last, check_images
from holdfast.inputs.corruption.resampling import Images
from holdfast.inputs.corruption.streams import Streams
from holdfast.inputs.corruption.weather import fog, grey, plasma, snow

_SIDE = 64
#: Severities of fog and snow in the table for 64 pixels that serve `weather`.
_FOG, _SNOW = (1.0, 2.2), (0.15, 0.3, 1.6, 0.55, 10, 4, 0.75)

Plane = Float[np.ndarray, "n height width 1"]


def stylise(
    x: Shaped[np.ndarray, "n ..."],
    style: str,
    *,
    generator: np.random.Generator | Sequence[np.random.Generator],
    layout: Layout = "channels_last",
) -> Shaped[np.ndarray, "n ..."]:
    """x in one of `STYLES`, with the same shape and type; grey images stay grey.

    Parameters
    ----------
    x : uint8, or float in [0, 1]; (n, height, width) or (n, height, width, channels), with `layout="channels_first"`
        (n, channels, height, width).  Height and width at least 8; channels 1 or 3.
    generator : one generator, or one an image; an image's result depends on its own stream alone.

    Raises InputError for any argument that does not fit.
    """
    if style not in _FUNCTIONS:
        raise InputError(f"unknown style {style!r}; choose from {', '.join(STYLES)}")
    check_images(x, generator, layout, "styles")
    if len(x) == 0:
        return x.copy()
    images = channels_last(x, layout)
    if images.shape[-1] not in (1, 3):
        raise InputError(f"styles take grey or colour images, got {images.shape[-1]} channels; is the layout right?")
    colour = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
    made = _FUNCTIONS[style](colour, min(images.shape[1:3]) / _SIDE, Streams.of(generator, len(x)))
    made = np.clip(made, 0, 1)
    return as_given(grey(made) if images.shape[-1] == 1 else made, x, layout)


def sketch(x: Images, scale: float, streams: Streams) -> Images:
    """Coarse and fine pencil lines and a light tone, on paper whose grain catches the graphite."""
    light = _stretched(grey(x))
    lines = outlines(light, 0.5 * scale, 0.16) * outlines(light, 0.9 * scale, 0.12)
    hatch = 1 - 0.25 * (1 - _smooth(light, 1.5 * scale))
    grain = 1 + 0.35 * (1 - lines) * (streams.uniform(*x.shape[1:3])[..., None] - 0.5)
    tone = np.clip(lines * hatch * grain, 0, 1)
    return (0.12 + 0.84 * tone) * np.array([1.0, 0.99, 0.96], dtype=x.dtype)


def cartoon(x: Images, scale: float, streams: Streams, levels: int = 5) -> Images:
    """Surfaces smoothed and cut to `levels` of brightness, colours made stronger, outlines drawn dark."""
    flat = bilateral(bilateral(x, 2.0 * scale, 0.12), 2.0 * scale, 0.12)
    light = grey(flat)
    steps = light * (levels - 1)
    cut = (np.floor(steps) + 0.5 + 0.5 * np.tanh(8 * (steps - np.floor(steps) - 0.5))) / (levels - 1)
    colour = cut + 1.7 * (flat - light)
    ink = outlines(_stretched(light), 0.8 * scale, 0.06)
    return colour * (0.12 + 0.88 * ink)


def painting(x: Images, scale: float, streams: Streams) -> Images:
    """Strokes that follow the structure, richer colour, and the relief of paint on canvas."""
    strokes = anisotropic_kuwahara(x, 3.6 * scale)
    light = grey(strokes)
    rich = light + 1.25 * (strokes - light)
    relief = light - np.roll(light, (1, 1), axis=(1, 2))
    rows, columns = (np.arange(size)[:, None] for size in x.shape[1:3])
    period = max(2.0, 2.5 * scale)
    weave = np.sin(2 * np.pi * rows / period)[:, None] * np.sin(2 * np.pi * columns / period)[None]
    return rich + 0.6 * relief + 0.02 * weave.astype(x.dtype)


def weather(x: Images, scale: float, streams: Streams) -> Images:
    """Fog, snow or rain, one of the three for every image."""
    which = streams.integers(0, 3)
    made = np.empty_like(x)
    for kind, function in enumerate((_fogged, _snowed, rain)):
        rows = np.flatnonzero(which == kind)
        if len(rows):
            made[rows] = function(x[rows], scale, Streams([streams.generators[row] for row in rows.tolist()]))
    return made


def _fogged(x: Images, scale: float, streams: Streams) -> Images:
    return fog(x, _FOG, scale, streams)


def _snowed(x: Images, scale: float, streams: Streams) -> Images:
    return np.clip(snow(x, _SNOW, scale, streams), 0, 1)


def rain(x: Images, scale: float, streams: Streams) -> Images:
    """A darker, paler scene behind bright streaks of one slant (-15 to 15 degrees off the vertical)."""
    height, width = x.shape[1:3]
    drops = (streams.uniform(height, width) < 0.02 / max(scale, 0.5)).astype(x.dtype)[..., None]
    slant = streams.uniform(low=75.0, high=105.0)
    streaks = np.clip(trailed(drops, 5, 6, scale, slant) * 6, 0, 1)
    light = grey(x)
    dull = 0.7 * (light + 0.6 * (x - light)) + 0.08
    return dull * (1 - 0.55 * streaks) + 0.55 * streaks * np.array([0.86, 0.9, 0.96], dtype=x.dtype)


def handmade(x: Images, scale: float, streams: Streams) -> Images:
    """Facets of coloured paper (`facets.folded`) with fibres."""
    height, width = x.shape[1:3]
    paper = folded(x, max(1.0, 0.9 * scale), streams)
    fibre = ndimage.gaussian_filter(streams.normal(height, width), (0, 0.4 * scale, 1.6 * scale))
    fibre /= fibre.std(axis=(1, 2), keepdims=True)
    return np.clip(paper, 0, 1) * 0.9 + 0.06 + 0.025 * fibre[..., None].astype(x.dtype)


def tattoo(x: Images, scale: float, streams: Streams) -> Images:
    """Lines and a faded wash of ink, multiplied onto skin of a tone drawn for every image."""
    light = _stretched(grey(x))
    lines = outlines(light, 1.0 * scale, 0.05)
    wash = 1 - 0.45 * np.clip(0.75 - _smooth(light, 1.0 * scale), 0, 1)
    faded = _smooth((lines * wash).astype(x.dtype), 0.35 * scale)
    ink = np.array([0.16, 0.2, 0.28], dtype=x.dtype)
    covered = 0.92 * (1 - faded)
    return skin(x.shape, scale, streams).astype(x.dtype) * (1 - covered + covered * ink)


def skin(shape: tuple[int, ...], scale: float, streams: Streams) -> Images:
    """Skin from pale to dark with soft shading, blotches and pores; (n, height, width, 3) of `shape`."""
    height, width = shape[1:3]
    pale, dark = np.array([0.96, 0.79, 0.69]), np.array([0.55, 0.36, 0.26])
    tone = streams.uniform()[:, None, None, None]
    side = 1 << (max(height, width) - 1).bit_length()
    shade = plasma(side, 2.2, streams)[:, :height, :width, None] - 0.5
    pores = ndimage.gaussian_filter(streams.normal(height, width), (0, 0.5 * scale, 0.5 * scale))
    pores = (pores / pores.std(axis=(1, 2), keepdims=True))[..., None]
    base = pale * (1 - tone) + dark * tone
    return base * (1 + 0.22 * shade + 0.03 * pores)


def outlines(light: Plane, width: float, darkest: float, sharpness: float = 14.0) -> Plane:
    """Extended difference of Gaussians: 1 on paper, falling to 0 on the dark side of edges.

    With G_s the image smoothed by s, D = G_width - .98 G_1.6width, and the result is 1 where D >= 0 and
    1 + tanh(sharpness D / darkest / 10) elsewhere; `darkest` is the depth of D that counts as a full line.
    """
    difference = _smooth(light, width) - np.float32(0.98) * _smooth(light, 1.6 * width) - np.float32(0.005)
    return np.where(difference >= 0, 1, 1 + np.tanh(sharpness * difference / darkest / 10)).astype(light.dtype)


def bilateral(x: Images, width: float, tolerance: float) -> Images:
    """Mean over near pixels of near colour: weights exp(-distance^2 / 2 width^2 - |difference|^2 / 2 tolerance^2)."""
    reach = max(1, round(1.5 * width))
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, breadth = x.shape[1:3]
    total, weights = np.zeros_like(x), np.zeros_like(x[..., :1])
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            other = padded[:, down : down + height, right : right + breadth]
            near = ((down - reach) ** 2 + (right - reach) ** 2) / (2 * width**2)
            unlike = ((other - x) ** 2).sum(-1, keepdims=True) / np.float32(2 * tolerance**2)
            weight = np.exp(-np.float32(near) - unlike)
            total += weight * other
            weights += weight
    return total / weights


def _smooth(x: Images, width: float) -> Images:
    return ndimage.gaussian_filter(x, (0, width, width, 0), mode="nearest")


def _stretched(light: Plane) -> Plane:
    """Brightness spread between the 1st and 99th percentile of each image."""
    low, high = np.percentile(light, (1, 99), axis=(1, 2, 3), keepdims=True).astype(light.dtype)
    return np.clip((light - low) / np.maximum(high - low, np.float32(0.05)), 0, 1)


_FUNCTIONS: dict[str, Callable[[Images, float, Streams], np.ndarray]] = {
    "sketch": sketch,
    "cartoon": cartoon,
    "painting": painting,
    "weather": weather,
    "handmade": handmade,
    "tattoo": tattoo,
}
STYLES = tuple(_FUNCTIONS)
