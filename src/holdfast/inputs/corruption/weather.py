"""Weather between lens and scene: snow, fog, and frost on the glass.

x (n, height, width, channels) in [0, 1].  The frost of ImageNet-C is made from photographs that are not ours to ship;
here its texture is synthetic (or the user's own), so its numbers compare within holdfast, not with published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from holdfast.core.errors import InputError
from holdfast.inputs.corruption.blur import trailed
from holdfast.inputs.corruption.resampling import Images, zoomed
from holdfast.inputs.corruption.streams import Streams
from holdfast.inputs.corruption.tables import Number

Texture = Float[np.ndarray, "_ _ 3"]


def grey(x: Images) -> Float[np.ndarray, "n height width 1"]:
    """Luma of colour images (BT.601 weights), the mean of any other number of channels."""
    if x.shape[-1] == 3:
        return (x @ np.array([0.299, 0.587, 0.114], dtype=x.dtype))[..., None]
    return x.mean(axis=-1, keepdims=True)


def snow(
    x: Images, size: tuple[Number, Number, Number, Number, Number, Number, Number], scale: float, streams: Streams
) -> Images:
    """Flakes cut from enlarged noise, streaked along U(-135, -45) degrees, over a paler image; the flakes are added
    together with their half turn.
    """
    mean, deviation, enlargement, threshold, radius, width, kept = size
    height, breadth = x.shape[1:3]
    layer = mean + deviation * streams.normal(height, breadth)[..., None]
    layer = zoomed(layer.astype(x.dtype), enlargement, published=scale >= 1)
    layer = np.clip(np.where(layer < threshold, 0, layer), 0, 1)
    layer = trailed(layer, radius, width, scale, streams.uniform(low=-135.0, high=-45.0))
    pale = np.maximum(x, grey(x) * np.float32(1.5) + np.float32(0.5))
    return np.float32(kept) * x + np.float32(1 - kept) * pale + layer + layer[:, ::-1, ::-1]


def fog(x: Images, size: tuple[Number, Number], scale: float, streams: Streams) -> Images:
    """(x + weight * plasma) * max / (max + weight), max the brightest value of each image."""
    weight, decay = size
    height, width = x.shape[1:3]
    haze = plasma(1 << (max(height, width) - 1).bit_length(), decay, streams)[:, :height, :width, None]
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    return (x + np.float32(weight) * haze.astype(x.dtype)) * brightest / (brightest + np.float32(weight))


def plasma(side: int, decay: Number, streams: Streams) -> Float[np.ndarray, "n side side"]:
    """Diamond-square heights on a torus, from 0 to 1; `side` is a power of two.

    Every level fills the middles of squares, then of the diamonds between them, with the mean of their four neighbours
    plus U(-a, a); a starts at 100^2 and is divided by decay^2 from level to level (the published code multiplies its
    amplitude in twice).
    """
    heights = np.zeros((len(streams.generators), side, side))
    step, amplitude = side, 100.0**2
    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        middles = _four(corners, np.roll(corners, -1, 1), np.roll(corners, -1, 2), np.roll(corners, (-1, -1), (1, 2)))
        heights[:, half::step, half::step] = middles + _jitter(streams, amplitude, side // step)
        middles = heights[:, half::step, half::step]
        beside = _four(middles, np.roll(middles, 1, 1), corners, np.roll(corners, -1, 2))
        below = _four(middles, np.roll(middles, 1, 2), corners, np.roll(corners, -1, 1))
        heights[:, ::step, half::step] = beside + _jitter(streams, amplitude, side // step)
        heights[:, half::step, ::step] = below + _jitter(streams, amplitude, side // step)
        step, amplitude = half, amplitude / decay**2
    heights -= heights.min(axis=(1, 2), keepdims=True)
    return heights / heights.max(axis=(1, 2), keepdims=True)


def _four(*parts: np.ndarray) -> np.ndarray:
    return sum(parts[1:], parts[0]) / 4


def _jitter(streams: Streams, amplitude: float, cells: int) -> np.ndarray:
    return streams.uniform(cells, cells, low=-amplitude, high=amplitude)


def frost(
    x: Images, size: tuple[Number, Number], scale: float, streams: Streams, textures: Sequence[Texture] | None = None
) -> Images:
    """kept * x + added * texture; a random window of a random one of `textures`, or a synthetic one."""
    kept, added = size
    height, width, channels = x.shape[1:]
    if textures is None:
        texture = crystals(height, width, streams)
    else:
        texture = np.stack([_window(generator, textures, height, width) for generator in streams.generators])
    if channels != 3:
        texture = grey(texture)
    return np.float32(kept) * x + np.float32(added) * texture.astype(x.dtype)


def load_textures(folder: str | Path) -> list[Float[np.ndarray, "_ _ 3"]]:
    """The images directly in a folder, in the order of their names, as (height, width, 3) in [0, 1].

    Raises InputError when there is no such folder, no file in it that Pillow can read, or one that it knows but cannot.
    """
    from PIL import Image

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one with photographs of frost")
    known = Image.registered_extensions()
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in known and path.is_file())
    if not paths:
        raise InputError(f"{folder} holds no images; give a folder with photographs of frost")
    textures = []
    for path in paths:
        try:
            with Image.open(path) as image:
                textures.append(np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255))
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{path}: cannot be decoded as an image ({error})") from error
    return textures


def scaled_textures(
    textures: Sequence[Shaped[np.ndarray, "..."]], share: float, size: tuple[int, int]
) -> list[Float[np.ndarray, "_ _ 3"]]:
    """Textures (height, width, 3), uint8 or float in [0, 1], at `share` of their size, read bilinearly.

    Raises InputError for none, another form or range, or one that is then smaller than `size`.
    """
    if not len(textures):
        raise InputError("textures is empty; give at least one (height, width, 3) array, or None for synthetic frost")
    needed = tuple(int(np.ceil(side / share)) for side in size)
    made = []
    for texture in textures:
        if not isinstance(texture, np.ndarray) or texture.ndim != 3 or texture.shape[2] != 3:
            raise InputError(f"a texture needs shape (height, width, 3), got {np.shape(texture)}")
        if texture.dtype == np.uint8:
            texture = texture.astype(np.float32) / np.float32(255)
        if not np.issubdtype(texture.dtype, np.floating) or not (texture.min() >= 0 and texture.max() <= 1):
            raise InputError(
                f"a texture is uint8, or float in [0, 1], got {texture.dtype} from {texture.min():g} to "
                f"{texture.max():g}; divide by its largest possible value"
            )
        height, width = (round(side * share) for side in texture.shape[:2])
        if height < size[0] or width < size[1]:
            raise InputError(
                f"a texture needs shape (≥{needed[0]}, ≥{needed[1]}, 3) for images of {size[0]}x{size[1]}, which take "
                f"it at {share:.3g} of its size; got {texture.shape}"
            )
        made.append(_resized(_resized(texture, 0, height, share), 1, width, share))
    return made


def _resized(texture: np.ndarray, axis: int, side: int, share: float) -> np.ndarray:
    """`texture` at `side` positions 1 / share apart along an axis, linearly interpolated, ends repeated."""
    position = np.clip((np.arange(side) + 0.5) / share - 0.5, 0, texture.shape[axis] - 1)
    first = np.floor(position).astype(np.int64)
    second = np.minimum(first + 1, texture.shape[axis] - 1)
    weight = (position - first).astype(texture.dtype).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return texture.take(first, axis) * (1 - weight) + texture.take(second, axis) * weight


def _window(generator: np.random.Generator, textures: Sequence[Texture], height: int, width: int) -> Texture:
    texture = textures[int(generator.integers(len(textures)))]
    top = generator.integers(texture.shape[0] - height + 1)
    left = generator.integers(texture.shape[1] - width + 1)
    return texture[top : top + height, left : left + width]


def crystals(height: int, width: int, streams: Streams, seeds: int = 14) -> Float[np.ndarray, "n height width 3"]:
    """Synthetic frost, bluish white: needles along the walls between crystals, roughened by ridged noise.

    Crystals are the Voronoi cells of `seeds` random points with a random stretch; a needle is bright where the
    distances to the two nearest points are nearly equal.  Ridges are 1 - |smooth noise| over octaves of plasma.
    """
    side = 1 << (max(height, width, 8) - 1).bit_length()
    ridges = 1 - np.abs(2 * plasma(side, 1.35, streams)[:, :height, :width] - 1)
    fine = 1 - np.abs(2 * plasma(side, 1.1, streams)[:, :height, :width] - 1)
    points = streams.uniform(seeds, 2).astype(np.float32)
    stretch = streams.uniform(low=0.5, high=2.0)[:, None, None].astype(np.float32)
    rows = ((np.arange(height, dtype=np.float32) + 0.5) / height)[None, :, None] * stretch
    columns = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, None, :] / stretch
    nearest = np.full((len(points), height, width), np.inf, dtype=np.float32)
    second = nearest
    for point in points.transpose(1, 2, 0)[..., None, None]:
        distance = np.sqrt((rows - point[0] * stretch) ** 2 + (columns - point[1] / stretch) ** 2)
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    wall = np.exp(-12 * (second - nearest))
    brightness = np.clip(0.25 * ridges**2 + 0.55 * wall * (0.4 + 0.6 * fine) + 0.2 * fine, 0, 1)
    return brightness[..., None] * np.array([0.86, 0.94, 1.0])
