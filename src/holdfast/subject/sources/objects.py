"""Data from objects in memory: pairs and mappings of arrays, data frames, `datasets` and map-style data sets.

A data set is read once, in order, into arrays: evidence must not depend on when an example is asked for, so random
augmentation belongs in training.  Pictures become channels-first bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.core.errors import InputError, MissingDependency
from holdfast.subject.sources.arrays import INPUT_KEYS, LABEL_KEYS, array_examples
from holdfast.subject.sources.examples import Examples, Reading
from holdfast.subject.sources.tables import frame_examples


def object_examples(source: Any, reading: Reading) -> Examples:
    """Examples from whatever was passed.  Raises InputError for what is none of the forms above."""
    kind = type(source).__name__
    if isinstance(source, (tuple, list)) and len(source) == 2:
        return array_examples(source[0], source[1], "arrays", reading)
    if isinstance(source, Mapping):
        return _mapping(source, reading)
    if hasattr(source, "features") and hasattr(source, "column_names"):
        return dataset_examples(source, reading, kind)
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        return frame_examples(source, reading)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not hasattr(source, "dtype"):
        return _map_style(source, reading, kind)
    if hasattr(source, "shape") and not reading.labelled:
        return array_examples(source, None, "array", reading)
    raise InputError(
        f"data of type {kind} are not understood; (inputs, labels), a data frame, a data set or a path was wanted"
    )


def _mapping(source: Mapping[str, Any], reading: Reading) -> Examples:
    inputs = next((source[key] for key in INPUT_KEYS if key in source), None)
    keys = (reading.labels,) if reading.labels else LABEL_KEYS
    labels = next((source[key] for key in keys if key in source), None)
    if inputs is None or (labels is None and reading.labelled):
        raise InputError(f"a mapping with x and y was wanted; this one has {', '.join(map(str, source)) or 'nothing'}")
    groups = None if reading.groups is None else np.asarray(source[reading.groups]).astype(str)
    return array_examples(inputs, labels, "arrays", reading, groups=groups)


def _map_style(source: Any, reading: Reading, kind: str) -> Examples:
    """A `torch.utils.data.Dataset` of (input, label): torchvision's, or the user's own."""
    if len(source) == 0:
        raise InputError(f"the data set {kind} holds no examples")
    first = source[0]
    if not isinstance(first, (tuple, list)) or len(first) < 2:
        raise InputError(f"the data set {kind} gives a {type(first).__name__} an example; (input, label) was wanted")
    items = [source[k] for k in range(len(source))]
    names = getattr(source, "classes", None)
    return array_examples(
        _stacked([item[0] for item in items], kind),
        np.asarray([int(item[1]) for item in items]),
        kind,
        reading,
        None if names is None else tuple(str(name) for name in names),
    )


def dataset_examples(source: Any, reading: Reading, name: str) -> Examples:
    """A `datasets.Dataset`: its image column (or every numeric column) and its class-label column."""
    labels = reading.labels or _label_column(source, name)
    if labels not in source.column_names:
        raise InputError(f"{name}: there is no column {labels!r}; its columns are {', '.join(source.column_names)}")
    feature = source.features[labels]
    names = tuple(feature.names) if hasattr(feature, "names") else None
    pictures = [key for key, value in source.features.items() if type(value).__name__ in ("Image", "Array3D")]
    if not pictures:
        return frame_examples(source.to_pandas(), Reading(**{**vars(reading), "labels": labels}), name)
    groups = None if reading.groups is None else np.asarray(source[reading.groups]).astype(str)
    inputs = _stacked(list(source[pictures[0]]), name)
    return array_examples(inputs, np.asarray(source[labels]), name, reading, names, groups)


def _label_column(source: Any, name: str) -> str:
    found = [key for key, value in source.features.items() if type(value).__name__ == "ClassLabel"]
    found = found or [key for key in LABEL_KEYS if key in source.column_names]
    if len(found) != 1:
        raise InputError(
            f"{name}: which column holds the labels?  Name it (--labels); its columns are "
            f"{', '.join(source.column_names)}"
        )
    return str(found[0])


def saved_dataset(path: Path, split: str | None, reading: Reading) -> Examples:
    """A folder written by `datasets.Dataset.save_to_disk`; `split` names one of a dictionary of them."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency.of("datasets", "hub", "reading a folder of datasets") from error
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: datasets cannot read it ({str(error).splitlines()[0]})") from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise InputError(
                f"{path}: holds the splits {', '.join(found)}; name one: {path.name}:{next(iter(found), 'test')}"
            )
        found = found[split]
    return dataset_examples(found, reading, str(path))


def _stacked(items: list[Any], name: str) -> np.ndarray:
    """One array of all inputs: PIL images and arrays as they are, tensors as NumPy."""
    arrays = [np.asarray(item) for item in items]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        first, second = sorted(shapes, key=str)[:2]
        raise InputError(f"{name}: examples differ in shape ({first} and {second}); one shape was wanted: resize them")
    stacked = np.stack(arrays)
    return stacked.astype(np.uint8) * 255 if stacked.dtype == bool and stacked.ndim >= 3 else stacked
