"""Data from arrays in memory and from `.npz` archives (read without pickles).

An archive is named `path.npz` when its arrays have usual names, or `path.npz:inputs,labels`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from holdfast.core.errors import InputError
from holdfast.subject.data import ArrayInputs, Modality
from holdfast.subject.sources.examples import Examples, Reading, image_examples, label_array, numeric_array

INPUT_KEYS = ("x", "images", "inputs", "data", "features", "x_test", "X_test", "X")
LABEL_KEYS = ("y", "labels", "label", "targets", "target", "y_test", "Y")


def array_examples(
    inputs: object,
    labels: object | None,
    source: str,
    reading: Reading,
    names: tuple[str, ...] | None = None,
    groups: np.ndarray | None = None,
) -> Examples:
    """Arrays or tensors: pictures when an example has three dimensions, or two and holds bytes; a row is tabular."""
    array = numeric_array(_as_numpy(inputs), source)
    known = None if labels is None or not reading.labelled else label_array(_as_numpy(labels), source)
    if known is not None and len(known) != len(array):
        raise InputError(f"{source}: {len(array)} inputs but {len(known)} labels; one label an example was wanted")
    if array.ndim == 4 or (array.ndim == 3 and (array.dtype == np.uint8 or reading.layout is not None)):
        found = image_examples(array, known, source, reading, names)
    else:
        modality: Modality = "tabular" if array.ndim == 2 else "other"
        kept = array.astype(np.float32) if array.dtype == bool else array
        found = Examples(ArrayInputs(kept), known, source, modality, names, valid=reading.input_range)
    return found if groups is None else Examples(**{**vars(found), "groups": groups})


def _as_numpy(values: object) -> object:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def npz_examples(path: Path, keys: str | None, reading: Reading) -> Examples:
    """An `.npz` archive; `keys` is "inputs,labels" or None to find them by their usual names."""
    arrays = _archive(path)
    inputs, labels = _keys(path, keys, reading, tuple(arrays))
    groups = None
    if reading.groups is not None:
        if reading.groups not in arrays:
            raise InputError(f"{path}: there is no array {reading.groups!r} of groups; it holds {', '.join(arrays)}")
        groups = arrays[reading.groups].astype(str)
        if groups.shape != (len(arrays[inputs]),):
            raise InputError(f"{path}: groups have shape {groups.shape}; one an example was wanted")
    names = tuple(str(name) for name in arrays["class_names"]) if "class_names" in arrays else None
    return array_examples(arrays[inputs], None if labels is None else arrays[labels], str(path), reading, names, groups)


def _archive(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: one bare array; an .npz with inputs and labels was wanted")
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: not a whole .npz archive ({error}); it may be truncated, fetch it again") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        why = "it holds pickled objects, which can run code" if "pickle" in str(error) else str(error)
        raise InputError(f"{path}: {why}; save plain arrays of numbers or strings") from error


def _keys(path: Path, keys: str | None, reading: Reading, held: tuple[str, ...]) -> tuple[str, str | None]:
    named = [key.strip() for key in keys.split(",")] if keys else []
    if len(named) > 2:
        raise InputError(f"{path}: name its arrays as {path.name}:inputs,labels; got {keys!r}")
    wanted = reading.labels or (named[1] if len(named) == 2 else None)
    for name in (*named[:1], *([wanted] if wanted and reading.labelled else [])):
        if name not in held:
            raise InputError(f"{path}: there is no array {name!r}; it holds {', '.join(held)}")
    inputs = named[0] if named else next((name for name in INPUT_KEYS if name in held), None)
    labels = wanted if wanted in held else next((name for name in LABEL_KEYS if name in held), None)
    if inputs is None or (labels is None and reading.labelled):
        raise InputError(
            f"{path}: cannot tell its inputs and labels among {', '.join(held) or 'no arrays'}; "
            f"name them: {path.name}:inputs,labels"
        )
    return inputs, labels
