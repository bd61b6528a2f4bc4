"""ONNX networks through ONNX Runtime: for those that cannot become torch modules, and to check those that did."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.core.errors import InputError, MissingDependency
from holdfast.core.seeds import numpy_generator
from holdfast.subject.fingerprint import file_digest
from holdfast.subject.models.loaded import FixedBatch, LoadedModel
from holdfast.subject.subject import Access

TOLERANCE = 1e-3


class Session(nn.Module):
    """An ONNX Runtime session as a module without gradients; may be pickled (it is rebuilt from the file's bytes)."""

    def __init__(self, content: bytes, digest: str) -> None:
        super().__init__()
        self.content, self.digest = content, digest
        self._session = _open(content)

    def content_digest(self) -> str:
        return self.digest

    @property
    def input(self) -> Any:
        return self._session.get_inputs()[0]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        kinds = {"tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
        given = x.cpu().numpy().astype(kinds.get(self.input.type, np.float32))
        output = np.asarray(self._session.run([self._session.get_outputs()[0].name], {self.input.name: given})[0])
        kind = torch.float32 if output.dtype.kind == "f" else torch.int64
        return torch.from_numpy(output).to(device=x.device, dtype=kind)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._session = _open(self.content)


def _open(content: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency.of("onnxruntime", "onnx", "running this ONNX network") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class but Exception
        raise InputError(f"ONNX Runtime refuses the network: {str(error).splitlines()[0][:200]}") from error


def session_model(path: Path, name: str) -> LoadedModel:
    """The network in `path` through ONNX Runtime, giving scores; one input is wanted."""
    session = Session(_content(path), file_digest(path))
    if len(session._session.get_inputs()) != 1:
        raise InputError(f"{path}: the network has {len(session._session.get_inputs())} inputs; one was wanted")
    batch, *shape = session.input.shape
    module = FixedBatch(session, batch) if isinstance(batch, int) and batch > 0 else session
    fixed = tuple(shape) if all(isinstance(size, int) for size in shape) else None
    return LoadedModel(module, name, Access.SCORES, shape=fixed)


def disagreement(module: nn.Module, path: Path) -> str | None:
    """Why the converted network is not what ONNX Runtime computes, on four random inputs; None when they agree, or when
    ONNX Runtime is not installed to ask."""
    try:
        runtime = session_model(path, path.name).module
    except MissingDependency:
        return None
    shape: Any = module.input_shape
    x = torch.from_numpy(numpy_generator(0, "onnx session").random((4, *shape), dtype=np.float32))
    with torch.no_grad():
        ours, theirs = module(x), runtime(x)
    gap = float((ours - theirs).abs().max())
    if ours.shape == theirs.shape and gap <= TOLERANCE * max(1.0, float(theirs.abs().max())):
        return None
    return f"its outputs differ from ONNX Runtime's by {gap:.3g}"


def _content(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw
