"""The contract of a probe: one question about one kind of perturbation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from holdfast.core.estimate import Estimate
from holdfast.core.finding import Section
from holdfast.subject.subject import Access, Subject
from holdfast.threats.base import Threat

#: What `examine` returns: named columns, one row an example; a column may have further (fixed) dimensions.
Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Needs:
    """What a subject must offer before a probe can run; the audit skips it with a sentence otherwise."""

    access: Access = Access.LABELS
    train: bool = False
    modality: frozenset[str] = frozenset({"image", "tabular", "other"})


@dataclass(frozen=True)
class Batch:
    """One shard of examples in the audit's random order, with the clean predictions all probes share."""

    index: np.ndarray  # (batch,) positions in the test data
    x: Tensor  # (batch, *shape) on the model's device, in input units
    y: Tensor  # (batch,) int64 on the model's device
    logits: Tensor  # (batch, classes) clean logits, on the model's device
    generator: torch.Generator  # CPU stream that depends on seed, probe and shard only

    def __len__(self) -> int:
        return len(self.index)

    @property
    def correct(self) -> Tensor:
        """(batch,) bool: the clean prediction is right."""
        return self.logits.argmax(1) == self.y


@dataclass(frozen=True)
class Evidence:
    """All rows a probe has so far, in the audit's random order (column name -> array of n rows).

    `clean` holds the shared columns of the same examples: `index`, `label`, `prediction`, `logits`.
    """

    columns: Mapping[str, np.ndarray]
    clean: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.clean["index"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]


@dataclass(frozen=True)
class Settings:
    """What the user chose; every probe reads what concerns it."""

    threat: Threat | None = None
    seed: int = 0
    level: float = 0.95
    precision: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Probe(Protocol):
    """One question about one kind of perturbation.

    `prepare` may look at everything (train detectors, build indices) and must be a deterministic function of its
    arguments.  `examine` is pure and per example: it may be run in any process, in any order, again.  `headline` is
    asked after every shard while the audit runs; `conclude` turns all evidence into what a person reads, once, at the
    end.
    """

    name: str
    question: str
    perturbs: str
    needs: Needs
    shard_size: int

    def prepare(self, subject: Subject, settings: Settings) -> Any: ...

    def examine(self, subject: Subject, state: Any, batch: Batch) -> Rows: ...

    def headline(self, state: Any, evidence: Evidence, settings: Settings) -> Estimate | None:
        """The one number of the live table, valid at every look; None when the probe has no running number."""
        ...

    def conclude(self, subject: Subject, state: Any, evidence: Evidence, settings: Settings) -> Section: ...
