"""A cascade over a stream of batches: inputs that go on wait until the next member has a full batch of them.

Few inputs of a batch go on, and a small batch costs an accelerator as much time as a full one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from sklearn.utils.validation import check_is_fitted

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.cascades.members import Ensemble, Lazy, joined, taken
from holdfast.inputs.cascades.window import CascadeResult, WindowCascade

Places = Int[np.ndarray, " n"]
Decided = Iterator[tuple[Places, CascadeResult]]


def stream(cascade: WindowCascade, batches: Iterable[Any], batch_size: int = 256) -> Decided:
    """Pairs (places of the inputs in the order they came, their results) as they are decided; all come out once.

    Member 0 sees the batches as they are, every other member at least `batch_size` inputs at a time, except for what
    is left at the end.  Raises UnsupportedError with `adapt`, whose windows need all inputs at once.
    """
    check_is_fitted(cascade)
    if cascade.adapt:
        raise UnsupportedError("adapt=True needs all inputs of a batch at once; use run(X) on large batches instead")
    if batch_size < 1:
        raise InputError(f"the batch size must be at least 1, got {batch_size}")
    return _Stream(cascade).over(batches, batch_size)


@dataclass(frozen=True, eq=False)
class _Group:
    """Inputs between two members: their places, where they come from, what was said of them so far."""

    places: Places
    source: Lazy
    ensemble: Ensemble

    def part(self, rows: Int[np.ndarray, " rows"]) -> _Group:
        source = Lazy(self.source.members, taken(self.source.X, rows), self.source.score)
        return _Group(self.places[rows], source, self.ensemble.part(rows, source))

    @classmethod
    def of(cls, parts: list[_Group]) -> _Group:
        first = parts[0].source
        source = Lazy(first.members, joined([part.source.X for part in parts]), first.score)
        places = np.concatenate([part.places for part in parts])
        return cls(places, source, Ensemble.joined([part.ensemble for part in parts], source))


class _Stream:
    """One queue before every member but the first."""

    def __init__(self, cascade: WindowCascade) -> None:
        self.cascade = cascade
        self.waiting: list[list[_Group]] = [[] for _ in cascade.members]

    def over(self, batches: Iterable[Any], batch_size: int) -> Decided:
        seen = 0
        for batch in batches:
            source = Lazy(self.cascade.members, batch, self.cascade.score)
            places = np.arange(seen, seen + len(source))
            seen += len(source)
            yield from self._leave(_Group(places, source, Ensemble.begin(source, self.cascade.score)), 0)
            yield from self._serve(batch_size)
        yield from self._serve(1)

    def _serve(self, least: int) -> Decided:
        """Ask every member before which `least` inputs wait."""
        for stage, queue in enumerate(self.waiting):
            if sum(len(part.places) for part in queue) >= least:
                group = _Group.of(queue)
                self.waiting[stage] = []
                group.ensemble.ask(stage, np.arange(len(group.places)))
                yield from self._leave(group, stage)

    def _leave(self, group: _Group, stage: int) -> Decided:
        """Hand out what is decided after member `stage`, queue what goes on to the next."""
        scores = group.ensemble.scores
        last = stage == len(self.cascade.members) - 1
        onward = np.zeros(len(scores), dtype=bool) if last else self.cascade.windows_[stage].holds(scores)
        if onward.any():
            self.waiting[stage + 1].append(group.part(np.flatnonzero(onward)))
        if not onward.all():
            leaving = group.part(np.flatnonzero(~onward))
            yield leaving.places, self.cascade.result(leaving.ensemble)
