"""What is audited: a model, its data, and what the model lets us see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.finding import Doubt
from holdfast.subject.data import Data, Modality
from holdfast.threats.base import Valid


class Access(IntEnum):
    """What a model gives: `LABELS` < `SCORES` < `GRADIENTS`; a probe needs at least the level it names."""

    LABELS = 1
    SCORES = 2
    GRADIENTS = 3


@dataclass(frozen=True)
class Subject:
    """A model under audit.

    `model` is always an `nn.Module` in evaluation mode that maps a float32 batch (batch, *shape) to logits (batch,
    classes); models without gradients (scikit-learn, ONNX Runtime, callables) are wrapped in one, and `access` says
    what they allow.
    With `Access.SCORES` logits may be log-probabilities; with `Access.LABELS` they are one-hot.
    `valid` is the range inputs may take, in the units the model is fed.
    `doubts` is what a loader had to do that its user should know of (gradients lost, layers put in evaluation mode).
    """

    model: nn.Module
    test: Data
    train: Data | None = None
    other: Data | None = None
    class_names: tuple[str, ...] = ()
    valid: Valid = None
    access: Access = Access.GRADIENTS
    modality: Modality = "other"
    name: str = "model"
    doubts: tuple[Doubt, ...] = ()

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters live (CPU when it has none)."""
        parameter = next(self.model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def tensor(self, inputs: np.ndarray) -> Tensor:
        """`inputs` as float32 on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)).to(self.device)

    @torch.no_grad()
    def logits(self, x: Float[Tensor, "batch ..."], batch: int = 512) -> Float[Tensor, "batch classes"]:
        """Logits without gradients, at most `batch` examples at a time."""
        return torch.cat([self.model(part) for part in x.split(batch)])

    def with_model(self, model: nn.Module, name: str | None = None) -> Subject:
        """The same data with another model (what a remedy returns)."""
        return replace(self, model=model, name=name or self.name)
