"""One short name for a model and its data: it changes when either does, and a run refuses to resume under another.

BLAKE2b over, for the model, every parameter and buffer (name, type, shape, bytes), the layers' own descriptions, the
source of the classes the user wrote, and the digest that a wrapped model carries (its file's or estimator's bytes); for
the data, every input as it is stored, every label, the groups and the class names.  Bytes are read in chunks: about a
second a gigabyte.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from holdfast.subject.data import ArrayInputs, Data, Inputs
from holdfast.subject.subject import Subject

CHUNK = 1 << 22
ROWS = 1024


@runtime_checkable
class Digested(Protocol):
    """A wrapped model or lazy inputs that know their own content."""

    def content_digest(self) -> str:
        """Hexadecimal digest of what is wrapped."""
        ...


def fingerprint(subject: Subject) -> str:
    """32 hexadecimal digits that name the subject's model, data, classes, valid range and access."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _model_parts(subject.model):
        digest.update(part)
    for role, data in (("test", subject.test), ("train", subject.train), ("other", subject.other)):
        digest.update(_mark(role))
        if data is not None:
            for part in _data_parts(data):
                digest.update(part)
    valid = (
        None if subject.valid is None else [np.asarray(torch.as_tensor(end).cpu()).tolist() for end in subject.valid]
    )
    digest.update(_mark("facts", subject.class_names, valid, subject.access.name, subject.modality))
    return digest.hexdigest()


def data_fingerprint(data: Data) -> str:
    """32 hexadecimal digits that name a data set alone, so that runs of different models on it can be compared."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _data_parts(data):
        digest.update(part)
    return digest.hexdigest()


def file_digest(path: str | Path) -> str:
    """Hexadecimal digest of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _model_parts(model: nn.Module) -> Iterator[bytes]:
    written = {}
    for name, module in model.named_modules():
        yield _mark("layer", name, type(module).__qualname__, module.extra_repr())
        if isinstance(module, Digested):
            yield _mark("content", module.content_digest())
        if isinstance(module, torch.fx.GraphModule):
            yield _mark("code", module.code)
        elif not type(module).__module__.startswith(("torch.", "holdfast.")):
            written[type(module)] = name
    for kind in written:
        yield _mark("source", _source(kind))
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor):
            yield _mark("tensor", name, str(tensor.dtype), tuple(tensor.shape))
            yield from _tensor_parts(tensor)


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt or made at run time: there is no source to read
        return kind.__qualname__


def _tensor_parts(tensor: torch.Tensor) -> Iterator[bytes]:
    array = tensor.detach().cpu().contiguous().reshape(-1)
    if array.is_complex() or array.is_quantized:
        raise NotImplementedError(f"no fingerprint for tensors of type {tensor.dtype}")
    yield from _array_parts(array.view(torch.uint8).numpy())


def _data_parts(data: Data) -> Iterator[bytes]:
    yield from _input_parts(data.inputs)
    yield _mark("labels", len(data.labels))
    yield from _array_parts(np.ascontiguousarray(data.labels, dtype="<i8"))
    yield _mark("names", data.class_names, data.feature_names)
    if data.groups is not None:
        yield _mark("groups", [str(group) for group in data.groups])


def _input_parts(inputs: Inputs) -> Iterator[bytes]:
    if isinstance(inputs, Digested):
        yield _mark("content", inputs.content_digest())
    elif isinstance(inputs, ArrayInputs):
        yield _mark("array", inputs.array.dtype.str, inputs.shape, inputs.scale, inputs.offset)
        rows = max(1, CHUNK * len(inputs.array) // max(inputs.array.nbytes, 1))
        for start in range(0, len(inputs.array), rows):
            yield np.ascontiguousarray(inputs.array[start : start + rows]).tobytes()
    else:
        yield _mark("inputs", inputs.shape)
        for start in range(0, inputs.shape[0], ROWS):
            taken = inputs.take(np.arange(start, min(start + ROWS, inputs.shape[0])))
            yield np.ascontiguousarray(taken, dtype="<f4").tobytes()


def _array_parts(array: np.ndarray) -> Iterator[bytes]:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, len(flat), CHUNK):
        yield flat[start : start + CHUNK].tobytes()


def _mark(*facts: object) -> bytes:
    """Facts with their bounds, so that no two different lists run together."""
    return repr(facts).encode() + b"\0"
