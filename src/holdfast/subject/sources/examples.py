"""Examples as a source holds them, and what every source shares: pixels to channels first, labels to indices."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from holdfast.core.errors import InputError
from holdfast.subject.data import ArrayInputs, Data, Inputs, Modality

Layout = Literal["chw", "hwc"]
Range = tuple[float, float]
CHANNELS = (1, 3, 4)
SCAN_BYTES = 1 << 25


@dataclass(frozen=True)
class Reading:
    """What the user said about how to read a source; None where nothing was said.

    `labels` names the column or array of labels, `groups` that of subgroups; `layout` is the order of image axes;
    `input_range` the units in which bytes are fed; `features` the columns the model wants, in its order; `levels` the
    code book for columns of words (see `LoadedModel`), None when the model takes numbers only.
    """

    labels: str | None = None
    groups: str | None = None
    layout: Layout | None = None
    input_range: Range | None = None
    features: tuple[str, ...] | None = None
    labelled: bool = True
    levels: dict[str, list[str]] | None = None


@dataclass(frozen=True)
class Examples:
    """Inputs with their labels as they were written: class indices, or names in any type that compares.

    `names` are class names in order of index, when the source itself declares one.  `valid` is the range that inputs of
    this kind may take; None when it cannot be told.
    """

    inputs: Inputs
    labels: np.ndarray | None
    source: str
    modality: Modality
    names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    groups: np.ndarray | None = None
    valid: Range | None = None


def image_examples(
    array: np.ndarray, labels: np.ndarray | None, source: str, reading: Reading, names: tuple[str, ...] | None = None
) -> Examples:
    """Pictures (n, h, w), (n, c, h, w) or (n, h, w, c), bytes brought to `input_range` (default [0, 1])."""
    array = array[:, None] if array.ndim == 3 else channels_first(array, source, reading.layout)
    if array.dtype.kind == "f":
        inputs, valid = ArrayInputs(array), reading.input_range or float_range(array)
    else:
        _check_bytes(array, source)
        valid = reading.input_range or (0.0, 1.0)
        inputs = ArrayInputs(array, scale=(valid[1] - valid[0]) / 255, offset=valid[0])
    return Examples(inputs, labels, source, "image", names, valid=valid)


def channels_first(array: np.ndarray, source: str, layout: Layout | None) -> np.ndarray:
    """(n, c, h, w) as a view; which axis holds the channels is told by `layout`, or by which has 1, 3 or 4 values."""
    if layout is None:
        first, last = array.shape[1] in CHANNELS, array.shape[-1] in CHANNELS
        if first and last:
            raise InputError(
                f"{source}: images of shape {array.shape[1:]} may have their channels first or last; "
                "say which: --layout chw or --layout hwc"
            )
        layout = "hwc" if last else "chw"
    return np.moveaxis(array, -1, 1) if layout == "hwc" else array


def _check_bytes(array: np.ndarray, source: str) -> None:
    if array.dtype == np.uint8:
        return
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 255:
        raise InputError(
            f"{source}: images of type {array.dtype} run from {low} to {high}; bytes (0 to 255) or floats were wanted"
        )


def float_range(array: np.ndarray) -> Range | None:
    """[0, 1] or [0, 255] when every value of float images lies there; None when they look standardised."""
    low, high = extremes(array)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    whole = low >= 0 and high <= 255 and bool((array[:64] == np.round(array[:64])).all())
    return (0.0, 255.0) if whole else None


def extremes(array: np.ndarray) -> Range:
    parts = [(part.min(), part.max()) for part in chunks(array)]
    return float(min(low for low, _ in parts)), float(max(high for _, high in parts))


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Runs of examples of bounded size, so that a memory map is never read whole."""
    rows = max(1, SCAN_BYTES * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def numeric_array(values: object, source: str) -> np.ndarray:
    """`values` as a non-empty array of finite numbers.  Raises InputError saying what was found."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ragged lists: NumPy warns or raises, by version
        try:
            array = np.asarray(values)
        except (ValueError, Warning) as error:
            raise InputError(f"{source}: inputs are not one rectangular array ({error})") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{source}: inputs have type {array.dtype}; numbers were wanted")
    if array.ndim < 2:
        raise InputError(f"{source}: inputs have shape {array.shape}; (examples, *shape of one) was wanted")
    if 0 in array.shape:
        raise InputError(f"{source}: holds no examples (its inputs have shape {array.shape})")
    check_finite(array, source)
    return array


def check_finite(array: np.ndarray, source: str, names: Sequence[str] | None = None) -> None:
    """Raises InputError that counts NaN and infinite inputs and says where the first are."""
    if array.dtype.kind != "f":
        return
    start = 0
    for part in chunks(array):
        bad = ~np.isfinite(part)
        if bad.any():
            rows = np.flatnonzero(bad.reshape(len(bad), -1).any(1))
            columns = ""
            if names is not None:
                columns = ", in column " + ", ".join(names[k] for k in np.flatnonzero(bad.any(0))[:5])
            raise InputError(
                f"{source}: inputs hold NaN or infinite values (first in example {start + rows[0]}{columns}); "
                "remove or fill in these examples"
            )
        start += len(part)


def label_array(values: object, source: str) -> np.ndarray:
    """Labels as one column of integers or strings.  Raises InputError for floats, gaps and one-hot rows."""
    labels = np.asarray(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(
            f"{source}: labels have shape {labels.shape}; one class index an example was wanted (for one-hot rows: "
            "argmax(1))"
        )
    if labels.dtype == bool:
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "O":
        if any(value is None or value != value for value in labels):
            raise InputError(f"{source}: some labels are missing; remove these examples or label them")
        labels = np.array([str(value) for value in labels])
    if labels.dtype.kind == "f":
        raise InputError(
            f"{source}: labels are {labels.dtype}; class indices (integers) or class names were wanted: "
            "astype(int) if they "
            "are whole"
        )
    if labels.dtype.kind == "S":
        labels = labels.astype(str)
    if labels.dtype.kind not in "iuU":
        raise InputError(
            f"{source}: labels have type {labels.dtype}; class indices (integers) or class names were wanted"
        )
    return labels


def numbered(examples: Examples, classes: Sequence[object] | None) -> Data:
    """`Data` with class indices: positions in `classes` when given (names, or an estimator's own values).

    Raises InputError on a label that is not in `classes` or is negative.
    """
    labels = examples.labels
    if labels is None:
        index = np.full(examples.inputs.shape[0], -1, dtype=np.int64)
    elif classes is not None and not (labels.dtype.kind in "iu" and isinstance(classes[0], str)):
        index = _positions(labels, classes, examples.source)
    else:
        index = labels.astype(np.int64)
        if (index < 0).any():
            at = int(np.argmax(index < 0))
            raise InputError(f"{examples.source}: label {index[at]} of example {at} is negative; classes count from 0")
    names = tuple(map(str, classes)) if classes is not None else examples.names
    return Data(examples.inputs, index, examples.source, names, examples.feature_names, examples.groups)


def _positions(labels: np.ndarray, classes: Sequence[object], source: str) -> np.ndarray:
    place = {_written(name): k for k, name in enumerate(classes)}
    values, inverse = np.unique(labels, return_inverse=True)
    unknown = [str(value) for value in values if _written(value) not in place]
    if unknown:
        raise InputError(
            f"{source}: the label {unknown[0]!r} is not one of the model's classes ({', '.join(list(place)[:12])}"
            f"{', ...' if len(place) > 12 else ''})"
        )
    return np.array([place[_written(value)] for value in values], dtype=np.int64)[inverse]


def _written(value: object) -> str:
    """A class as text: 1, 1.0 and True are the same class."""
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
