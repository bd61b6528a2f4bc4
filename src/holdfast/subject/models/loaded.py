"""A model as its loader leaves it, and the wrappers that turn scores, probabilities and answers into logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.finding import Doubt
from holdfast.subject.subject import Access

Outputs = Literal["logits", "probabilities", "labels"]


@dataclass(frozen=True)
class LoadedModel:
    """A module and what is known about it.

    `outputs` says what the module returns, None when nobody has said.  `classes` are the labels the model answers with,
    in order of its outputs; `features` the columns it wants; `shape` that of one example, when it is fixed.  `levels`
    is the code book that tables fill when such a model takes columns of words: column -> what 0, 1, ... stand for.
    """

    module: nn.Module
    name: str
    access: Access = Access.GRADIENTS
    outputs: Outputs | None = None
    classes: tuple[object, ...] | None = None
    features: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    doubts: tuple[Doubt, ...] = ()
    levels: dict[str, list[str]] | None = None


class ArrayModel(nn.Module):
    """A function of NumPy arrays as a module without gradients; `digest` names its content for the fingerprint."""

    def __init__(self, function: Callable[[np.ndarray], Any], digest: str) -> None:
        super().__init__()
        self.function = function
        self.digest = digest

    def content_digest(self) -> str:
        return self.digest

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        given = np.asarray(self.function(x.detach().cpu().numpy()))
        if given.dtype.kind not in "fiub":
            raise TypeError(f"the model returned {given.dtype} values; numbers were wanted")
        kind = torch.float32 if given.dtype.kind == "f" else torch.int64
        return torch.from_numpy(np.ascontiguousarray(given)).to(device=x.device, dtype=kind)


class LogProbabilities(nn.Module):
    """Logarithms of a model's probabilities: logits with the same softmax.  Zeros become the smallest normal number."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        probabilities = self.model(x)
        return torch.log(probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny))


class OneHotLabels(nn.Module):
    """One-hot rows of a model's answers: class indices (batch,), or scores whose largest counts."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model = model
        self.classes = classes

    def extra_repr(self) -> str:
        return f"classes={self.classes}"

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        answers = self.model(x)
        index = answers.long() if answers.ndim == 1 else answers.argmax(1)
        if int(index.max()) >= self.classes or int(index.min()) < 0:
            raise InputError(
                f"the model answers with class {int(index.max())}, outside the {self.classes} classes 0 to "
                f"{self.classes - 1}"
            )
        return F.one_hot(index, self.classes).to(torch.float32)


class FixedBatch(nn.Module):
    """A network that takes exactly `size` examples at a time: longer batches are cut, the last is filled up."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model = model
        self.size = size

    def extra_repr(self) -> str:
        return f"size={self.size}"

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        missing = -len(x) % self.size
        filled = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x
        return torch.cat([self.model(part) for part in filled.split(self.size)])[: len(x)]


class OnlyLogits(nn.Module):
    """A model that returns an object with `logits` (as Hugging Face models do)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        logits: Tensor = self.model(x).logits
        return logits


class Normalise(nn.Module):
    """(x - mean) / spread, one value a channel, so that a model may be fed plain pixels."""

    mean: Tensor
    spread: Tensor

    def __init__(self, mean: Sequence[float], spread: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("spread", torch.tensor(spread, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return (x - self.mean) / self.spread


def as_logits(loaded: LoadedModel, outputs: Outputs | None, classes: int | None) -> LoadedModel:
    """The model with logits for outputs, whatever it returns.  `outputs` is the user's word and beats the loader's."""
    declared = outputs or loaded.outputs
    if declared == "probabilities":
        return _with(loaded, LogProbabilities(loaded.module), declared, loaded.access)
    if declared == "labels":
        if classes is None:
            raise InputError("a model that returns labels needs to be told the classes: class names, or their number")
        return _with(loaded, OneHotLabels(loaded.module, classes), declared, Access.LABELS)
    return _with(loaded, loaded.module, declared, loaded.access)


def _with(loaded: LoadedModel, module: nn.Module, outputs: Outputs | None, access: Access) -> LoadedModel:
    return replace(loaded, module=module, access=access, outputs=outputs)
