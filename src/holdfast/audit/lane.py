"""One probe's way through the examples: which shards are done, what they say so far, whether it may stop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from holdfast.audit.probe import Batch, Evidence, Probe, Rows, Settings
from holdfast.core.errors import HoldfastError, InputError
from holdfast.core.estimate import Estimate
from holdfast.core.seeds import torch_generator
from holdfast.store.files import Folder
from holdfast.store.shards import read_shard, shards_present, write_shard
from holdfast.subject.subject import Subject


def shard_bounds(shard: int, size: int, total: int) -> tuple[int, int]:
    """First and one-past-last place of shard number `shard` in the audit's order."""
    return shard * size, min((shard + 1) * size, total)


def clean_batch(
    subject: Subject, clean: Mapping[str, np.ndarray], start: int, stop: int, generator: torch.Generator
) -> Batch:
    """The examples at places [start, stop) of the audit's order with their clean predictions."""
    index = clean["index"][start:stop]
    inputs, labels = subject.test.take(index)
    return Batch(
        index=index,
        x=subject.tensor(inputs),
        y=torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)).to(subject.device),
        logits=torch.from_numpy(clean["logits"][start:stop]).to(subject.device),
        generator=generator,
    )


def examine_shard(
    subject: Subject,
    probe: Probe,
    state: Any,
    clean: Mapping[str, np.ndarray],
    seed: int,
    shard: int,
    start: int,
    stop: int,
) -> tuple[int, Rows, float]:
    """Run `probe` on one shard: a pure function, so it may run anywhere.  Returns (shard, rows, seconds)."""
    began = time.perf_counter()
    batch = clean_batch(subject, clean, start, stop, torch_generator(seed, "examine", probe.name, shard))
    rows = {name: np.asarray(column) for name, column in probe.examine(subject, state, batch).items()}
    wrong = {name: column.shape for name, column in rows.items() if column.ndim == 0 or len(column) != len(batch)}
    if wrong:
        raise InputError(
            f"probe {probe.name} returned columns {wrong} for {len(batch)} examples; one row an example was wanted"
        )
    return shard, rows, time.perf_counter() - began


@dataclass
class Lane:
    """Progress of one probe.

    Evidence counts only as an unbroken run of shards from the first, so the stopping rule sees the same evidence
    however many workers there are and however often the run was interrupted.
    """

    probe: Probe
    subject: Subject
    settings: Settings
    folder: Folder
    total: int
    state: Any = None
    prepared: bool = False
    seconds: float = 0.0
    done: bool = False
    failure: HoldfastError | None = None
    next_shard: int = 0
    headline: Estimate | None = None
    _columns: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def examined(self) -> int:
        return min(self.next_shard * self.probe.shard_size, self.total)

    @property
    def shards(self) -> int:
        return -(-self.total // self.probe.shard_size)

    def prepare(self) -> None:
        """Build the probe's state."""
        began = time.perf_counter()
        self.state = self.probe.prepare(self.subject, self.settings)
        self.prepared = True
        self.seconds += time.perf_counter() - began

    def restore(self, clean: Mapping[str, np.ndarray]) -> None:
        """Take up the shards an earlier process finished, up to the first gap.

        A shard about other examples than now is a gap: the last one of a run that knew fewer predictions is short.
        """
        present = set(shards_present(self.folder, self.probe.name))
        while not self.done and self.next_shard in present and self.next_shard < self.shards:
            columns = read_shard(self.folder, self.probe.name, self.next_shard)
            start, stop = shard_bounds(self.next_shard, self.probe.shard_size, self.total)
            if not np.array_equal(columns["index"], clean["index"][start:stop]):
                break
            self._take(self.next_shard, columns, clean)

    def pending(self, count: int) -> list[int]:
        """The next `count` shards to examine."""
        return list(range(self.next_shard, min(self.next_shard + count, self.shards)))

    def accept(self, results: Iterable[tuple[int, Rows, float]], clean: Mapping[str, np.ndarray]) -> None:
        """Store finished shards and look at the headline after each; shards past the stopping point are dropped."""
        for shard, rows, seconds in results:
            self.seconds += seconds
            if self.done:
                return
            start, stop = shard_bounds(shard, self.probe.shard_size, self.total)
            columns = {"index": clean["index"][start:stop], **rows}
            write_shard(self.folder, self.probe.name, shard, columns)
            self._take(shard, columns, clean)

    def _take(self, shard: int, columns: Mapping[str, np.ndarray], clean: Mapping[str, np.ndarray]) -> None:
        for name, values in columns.items():
            if name != "index":
                self._columns.setdefault(name, []).append(values)
        self.next_shard = shard + 1
        self.headline = self.probe.headline(self.state, self.evidence(clean), self.settings)
        self.done = self.examined >= self.total or self._precise()

    def _precise(self) -> bool:
        wanted = self.settings.precision
        return wanted is not None and self.headline is not None and self.headline.width <= 2 * wanted

    def evidence(self, clean: Mapping[str, np.ndarray]) -> Evidence:
        """Everything the probe has, in the audit's order."""
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        return Evidence(columns, {name: values[: self.examined] for name, values in clean.items()})
