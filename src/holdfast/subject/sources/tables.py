"""Data from tables: CSV, TSV and Parquet files with a label column, and data frames.

A file is named `path.csv:label`, or `path.csv` with the column named apart (`--labels`).  Every other column is a
feature
and must be numeric; a text column may serve as the group column.  An estimator that was fitted on a data frame is given
its columns by name, words too: they are coded as numbers here and turned back in front of the estimator.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.core.errors import InputError
from holdfast.subject.data import ArrayInputs
from holdfast.subject.sources.examples import Examples, Reading, check_finite, label_array


def file_examples(path: Path, label: str | None, reading: Reading) -> Examples:
    """The table in `path`, its label column named `label` (or by `reading.labels`)."""
    return table_examples(_read(path), label or reading.labels, str(path), reading)


def frame_examples(frame: Any, reading: Reading, source: str = "data frame") -> Examples:
    """A pandas (or other) data frame: anything with `columns` and item access by column name."""
    return table_examples(
        {str(name): np.asarray(frame[name]) for name in frame.columns}, reading.labels, source, reading
    )


def _read(path: Path) -> Mapping[str, np.ndarray]:
    import pyarrow as pa

    try:
        if path.name.endswith(".parquet"):
            from pyarrow import parquet

            table = parquet.read_table(path)
        else:
            from pyarrow import csv

            tabs = csv.ParseOptions(delimiter="\t" if ".tsv" in path.name else ",")
            table = csv.read_csv(path, parse_options=tabs)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]})") from error
    if table.num_rows == 0:
        raise InputError(f"{path}: has a heading but no rows; an audit needs at least one example")
    return {name: _column(column) for name, column in zip(table.column_names, table.columns, strict=True)}


def _column(column: Any) -> np.ndarray:
    """Numbers as they are (gaps as NaN), anything else as strings with None for gaps."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_boolean(kind):
        return np.asarray(column.cast(pa.int8()).to_numpy(zero_copy_only=False))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    return np.array([None if value is None else str(value) for value in column.to_pylist()], dtype=object)


def table_examples(columns: Mapping[str, np.ndarray], label: str | None, source: str, reading: Reading) -> Examples:
    """Features, labels and groups of a table.  Raises InputError naming the columns that are missing or not numeric."""
    labels = _labels(columns, label, source) if reading.labelled or label in columns else None
    groups = None
    if reading.groups is not None:
        groups = _present(columns, reading.groups, source, "group").astype(str)
    names = _features(columns, label, source, reading)
    features = np.empty((len(next(iter(columns.values()))), len(names)), dtype=np.float64)
    for k, name in enumerate(names):
        words = columns[name].dtype.kind not in "iufb"
        features[:, k] = _codes(columns[name], name, source, reading) if words else columns[name]
    check_finite(features, source, names)
    inputs = ArrayInputs(features.astype(np.float32))
    kept = labels if reading.labelled else None
    return Examples(inputs, kept, source, "tabular", None, names, groups, reading.input_range)


def _codes(column: np.ndarray, name: str, source: str, reading: Reading) -> np.ndarray:
    """Words as places in the code book, which grows by the words it has not seen, in sorted order."""
    assert reading.levels is not None
    if any(value is None for value in column):
        raise InputError(f"{source}: column {name!r} has gaps; fill them in or leave these rows out")
    values, inverse = np.unique(column.astype(str), return_inverse=True)
    book = reading.levels.setdefault(name, [])
    book.extend(value for value in values.tolist() if value not in book)
    return np.array([book.index(value) for value in values.tolist()])[inverse]


def _present(columns: Mapping[str, np.ndarray], name: str, source: str, role: str) -> np.ndarray:
    if name not in columns:
        raise InputError(f"{source}: there is no {role} column {name!r}; its columns are {_listed(tuple(columns))}")
    return columns[name]


def _labels(columns: Mapping[str, np.ndarray], label: str | None, source: str) -> np.ndarray:
    if label is None:
        raise InputError(
            f"{source}: which column holds the labels?  Name it: {Path(source).name}:COLUMN, or --labels COLUMN"
        )
    values = _present(columns, label, source, "label")
    if values.dtype.kind == "f":
        if np.isnan(values).any():
            raise InputError(f"{source}: {int(np.isnan(values).sum())} labels in column {label!r} are missing")
        if (values == np.round(values)).all():
            values = values.astype(np.int64)
    return label_array(values, f"{source}, column {label!r}")


def _features(columns: Mapping[str, np.ndarray], label: str | None, source: str, reading: Reading) -> tuple[str, ...]:
    if reading.features is not None and not set(reading.features) <= set(columns):
        missing = [name for name in reading.features if name not in columns]
        raise InputError(f"{source}: the model wants the column {_listed(missing)}, which the table lacks")
    names = reading.features or tuple(name for name in columns if name != label)
    text = [name for name in names if columns[name].dtype.kind not in "iufb"]
    if reading.features is None:
        names = tuple(name for name in names if name != reading.groups or name not in text)
        text = [name for name in text if name != reading.groups]
    if text and reading.levels is None:
        raise InputError(
            f"{source}: the features {_listed(text)} are not numbers; encode them (ordinal or one-hot) as the "
            "model was "
            "trained, or leave them out"
        )
    if not names:
        raise InputError(f"{source}: has no feature columns besides {label!r}")
    return names


def _listed(names: Any) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
