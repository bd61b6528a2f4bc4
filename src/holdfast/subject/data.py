"""Labelled examples, read only when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from holdfast.core.errors import InputError

Modality = Literal["image", "tabular", "other"]


@runtime_checkable
class Inputs(Protocol):
    """Examples that can be taken by position.  `take` gives float32 in the units the model is fed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(examples, *shape of one example)."""
        ...

    def take(self, positions: Int[np.ndarray, " batch"]) -> Float[np.ndarray, "batch ..."]: ...


@dataclass(frozen=True)
class ArrayInputs:
    """Inputs held in one array (or memory map); `take` gives `scale * value + offset`, so pixels may stay bytes."""

    array: np.ndarray
    scale: float = 1.0
    offset: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def take(self, positions: Int[np.ndarray, " batch"]) -> Float[np.ndarray, "batch ..."]:
        taken = np.asarray(self.array[positions], dtype=np.float32)
        taken = taken if self.scale == 1.0 else taken * np.float32(self.scale)
        return taken if self.offset == 0.0 else taken + np.float32(self.offset)


@dataclass(frozen=True)
class Data:
    """Examples with their labels.

    `inputs.shape[1:]` is the shape of one example: (channels, height, width) for images, (features,) for rows.
    `labels` are class indices, int64.  `groups` optionally names the subgroup of every example (for `disparity`).
    `source` is what the user typed, for messages and the manifest.
    """

    inputs: Inputs
    labels: Int[np.ndarray, " examples"]
    source: str = "array"
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    groups: np.ndarray | None = None
    fields: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        examples = self.inputs.shape[0]
        if examples == 0:
            raise InputError(f"{self.source}: holds no examples; an audit needs at least one")
        if self.labels.ndim != 1 or len(self.labels) != examples:
            raise InputError(f"{self.source}: {examples} inputs but labels of shape {self.labels.shape}")

    def __len__(self) -> int:
        return int(self.inputs.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.inputs.shape[1:])

    def take(self, positions: Int[np.ndarray, " batch"]) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (float32) and labels at `positions`."""
        return self.inputs.take(positions), self.labels[positions]
