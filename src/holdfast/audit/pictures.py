"""Examples as a person can look at them: images as small PNGs, rows of a table as named values.

Images are enlarged by a whole factor without smoothing, so that a pixel stays a pixel, and shrunk by area averaging
when they are larger than the page has room for.  Nothing here is drawn; it becomes the `Picture`s of a `Gallery`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.core.exhibit import Picture
from holdfast.threats.base import Valid

Fields = tuple[tuple[str, str], ...]

#: Longest side of a picture, in pixels of the PNG.
LONGEST = 112


def _array(values: np.ndarray | Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def encode_png(x: np.ndarray | Tensor, valid: Valid = (0.0, 1.0), scale_to: int = 96) -> str:
    """One image as a base64 PNG of at most `LONGEST` pixels a side.

    `x` is (height, width), or (channels, height, width); three channels are shown as RGB, any other number as its
    mean in grey. `valid` gives black and white in the units of `x` (None: the image's own extremes).  `scale_to` is
    the longest side, in pixels, that a small image is enlarged to.

    Raises InputError when `x` is not an image, is empty, or is not finite.
    """
    pixels = _array(x).astype(np.float64)
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise InputError(
            f"a picture needs shape (height, width) or (channels, height, width), got {tuple(_array(x).shape)}"
        )
    if not np.isfinite(pixels).all():
        raise InputError("a picture cannot hold NaN or infinite values; give the example as the model was fed it")
    pixels = _to_unit(pixels, valid)
    grey = len(pixels) != 3
    plane = np.round(255 * (pixels.mean(axis=0) if grey else pixels.transpose(1, 2, 0))).astype(np.uint8)
    return base64.b64encode(_png(plane, min(scale_to, LONGEST))).decode("ascii")


def _to_unit(pixels: np.ndarray, valid: Valid) -> np.ndarray:
    """`pixels` mapped to [0, 1]; bounds may be numbers or arrays that broadcast against one example."""
    low, high = (pixels.min(), pixels.max()) if valid is None else (_bound(end) for end in valid)
    span = np.asarray(high - low)
    unit: np.ndarray = np.clip((pixels - low) / np.where(span > 0, span, 1.0), 0.0, 1.0)
    return unit


def _bound(end: float | Tensor) -> np.ndarray:
    return np.asarray(end.detach().cpu() if isinstance(end, Tensor) else end, dtype=np.float64)


def _png(plane: np.ndarray, longest: int) -> bytes:
    from PIL import Image

    image = Image.fromarray(plane)
    side = max(image.size)
    if side > longest:
        size = tuple(max(1, round(length * longest / side)) for length in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.BOX)
    elif factor := (longest // side if longest // side > 1 else 0):
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    sink = io.BytesIO()
    image.save(sink, "PNG", optimize=True)
    return sink.getvalue()


def describe_row(
    features: np.ndarray | Tensor,
    names: Sequence[str] | None = None,
    reference: np.ndarray | None = None,
    limit: int = 6,
) -> Fields:
    """The `limit` most telling features of one example as (name, value) pairs.

    `features` is (features,).  With `reference` (examples, features) the features that lie farthest from their
    median, in units of the interquartile range, come first and the median stands beside the value; otherwise they
    keep their order.

    Raises InputError when `names` or `reference` do not fit `features`.
    """
    row = _array(features).reshape(-1)
    labels = _labels(row, names)
    if reference is None:
        return tuple((labels[i], _number(row[i])) for i in range(min(limit, len(row))))
    if reference.ndim != 2 or reference.shape[1] != len(row):
        raise InputError(
            f"the reference must have shape (examples, {len(row)}) to describe this row, got {reference.shape}"
        )
    lower, median, upper = np.nanpercentile(reference.astype(np.float64), [25, 50, 75], axis=0)
    spread = np.where(upper > lower, upper - lower, np.maximum(np.nanstd(reference, axis=0), 1e-12))
    farness = np.nan_to_num(np.abs(row - median) / spread, nan=np.inf)  # a missing value is the first thing to say
    order = np.argsort(-farness, kind="stable")[:limit]
    return tuple((labels[i], f"{_number(row[i])} (typical {_number(median[i])})") for i in order)


def describe_change(
    before: np.ndarray | Tensor, after: np.ndarray | Tensor, names: Sequence[str] | None = None, limit: int = 6
) -> Fields:
    """The `limit` features that changed most, relative to their size, as (name, "old → new") pairs.

    Raises InputError when the rows differ in length or `names` do not fit.
    """
    old, new = _array(before).reshape(-1), _array(after).reshape(-1)
    if len(old) != len(new):
        raise InputError(
            f"two rows of the same length are needed to describe a change, got {len(old)} and {len(new)} features"
        )
    labels = _labels(old, names)
    both_missing = np.isnan(old) & np.isnan(new)
    moved = np.nan_to_num(np.abs(new - old) / np.maximum(np.abs(old), 1e-12), nan=np.inf, posinf=np.inf)
    moved[both_missing] = 0.0
    order = [i for i in np.argsort(-moved, kind="stable") if moved[i] > 0][:limit]
    return tuple((labels[i], f"{_number(old[i])} → {_number(new[i])}") for i in order)


def picture(
    label: str,
    x: np.ndarray | Tensor,
    *,
    modality: str,
    valid: Valid = (0.0, 1.0),
    before: np.ndarray | Tensor | None = None,
    names: Sequence[str] | None = None,
    reference: np.ndarray | None = None,
    text: str = "",
) -> Picture:
    """One example as a `Picture`, whatever its modality; `before` is the unperturbed example when `x` was perturbed.

    Images become PNGs.  Rows become named values (what changed, when `before` is given).  Anything else is described
    by its shape.
    """
    if modality == "image" and x.ndim in (2, 3):
        png = encode_png(x, valid)
        return Picture(label, png, None if before is None else encode_png(before, valid), text=text)
    if x.ndim == 1:
        fields = describe_row(x, names, reference) if before is None else describe_change(before, x, names)
        return Picture(label, fields=fields, text=text)
    return Picture(label, fields=(("shape", "×".join(map(str, x.shape))),), text=text)


def _labels(row: np.ndarray, names: Sequence[str] | None) -> Sequence[str]:
    if names is None:
        return [f"feature {i}" for i in range(len(row))]
    if len(names) != len(row):
        raise InputError(
            f"{len(names)} feature names were given for a row of {len(row)} features; give one name a feature"
        )
    return names


def _number(value: float | np.floating) -> str:
    value = float(value)
    return "missing" if np.isnan(value) else f"{value:.4g}".replace("-", "−")
