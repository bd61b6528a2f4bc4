"""An evaluation by an ensemble that can be killed and resumed, and that knows which member broke which example.

Examples are taken `shard` at a time, and every member of the ensemble has its turn on the shard.  After each turn the
state of the shard (broken by whom, queries, margin, adversarial inputs) is written to `folder`, whole or not at all.
A second call with the same folder goes on after the last turn that was written: every (member, shard) draws from a
stream of its own, so a resumed evaluation ends with the same numbers as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson
from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.ensemble import UNBROKEN, WRONG, StandardEnsemble, Standing, members
from holdfast.inputs.attack.loop import Model, as_labels
from holdfast.store.files import Folder
from holdfast.store.manifest import read_json, require_same, write_json
from holdfast.store.shards import read_shard, shards_present, write_shard
from holdfast.threats.base import Valid

IDENTITY = "attack.json"


@dataclass(frozen=True, eq=False)
class Record:
    """What an ensemble found, one entry an example in the order they were given.

    `broken_by` is the place in `names` of the member that broke the example, -1 for none, -2 where the clean input is
    wrong; `margin` of `x_adv` (positive: wrong), -inf where nothing was attacked; `queries` passes through the model.
    """

    names: tuple[str, ...]
    broken_by: Int[np.ndarray, " examples"]
    queries: Int[np.ndarray, " examples"]
    margin: Float[np.ndarray, " examples"]
    x_adv: Float[Tensor, "examples *shape"]

    def accuracy(self, level: float = 0.95) -> Estimate:
        """Accuracy on clean inputs, with the Clopper-Pearson interval."""
        return clopper_pearson(int((self.broken_by != WRONG).sum()), len(self.broken_by), level)

    def robust_accuracy(self, level: float = 0.95) -> Estimate:
        """Share of the examples that are right and that no member broke."""
        return clopper_pearson(int((self.broken_by == UNBROKEN).sum()), len(self.broken_by), level)

    def left_after(self, level: float = 0.95) -> Mapping[str, Estimate]:
        """Accuracy that is left after each member's turn."""
        places = np.where(self.broken_by == UNBROKEN, len(self.names), self.broken_by)
        return {
            name: clopper_pearson(int((places > place).sum()), len(places), level)
            for place, name in enumerate(self.names)
        }


def evaluate(
    ensemble: StandardEnsemble,
    model: Model,
    x: Float[Tensor, "examples *shape"],
    y: Int[Tensor, " examples"],
    *,
    valid: Valid = (0, 1),
    shard: int = 256,
    seed: int = 0,
    folder: str | None = None,
) -> Record:
    """Attack every example, resuming from `folder` (a path or any fsspec URL) where it holds earlier turns.

    Raises InputError without examples or for a batch that does not fit (see `loop.check_batch`), ResumeError for a
    folder that holds the turns of other examples, another model, ensemble, shard size or seed.
    """
    y = as_labels(x, y)
    if not len(x) or shard < 1:
        raise InputError(f"at least one example and one example a shard are needed, got {len(x)} and {shard}")
    store = None if folder is None else Folder(folder)
    parts = list(zip(x.split(shard), y.split(shard)))
    begun = [Standing.begin(ensemble.threat, model, *part, valid) for part in parts]
    if store is not None:
        _claim(store, ensemble, begun, shard, seed)
    for number, standing in enumerate(begun):
        _take_turns(ensemble, standing, number, seed, store)
    return Record(
        names=ensemble.names,
        broken_by=torch.cat([part.broken_by for part in begun]).cpu().numpy(),
        queries=torch.cat([part.queries for part in begun]).cpu().numpy(),
        margin=torch.cat([part.best for part in begun]).cpu().numpy(),
        x_adv=torch.cat([part.x_adv for part in begun]),
    )


def _take_turns(ensemble: StandardEnsemble, standing: Standing, number: int, seed: int, store: Folder | None) -> None:
    """All members on one shard, from the first whose turn has not been written."""
    attacks = members(ensemble.threat, ensemble.version)
    turns = [f"{place}-{name}" for place, (name, _) in enumerate(attacks)]
    done = 0
    if store is not None:
        written = [place for place, turn in enumerate(turns) if number in shards_present(store, turn)]
        if written:
            done = written[-1] + 1
            _restore(standing, read_shard(store, turns[written[-1]], number))
    for place in range(done, len(attacks)):
        standing.face(place, attacks[place][1], torch_generator(seed, "attack", turns[place], number))
        if store is not None:
            write_shard(store, turns[place], number, _columns(standing))


def _columns(standing: Standing) -> dict[str, np.ndarray]:
    parts = {name: getattr(standing, name) for name in ("broken_by", "queries", "best", "x_adv")}
    return {name: values.cpu().numpy() for name, values in parts.items()}


def _restore(standing: Standing, columns: Mapping[str, np.ndarray]) -> None:
    for name, values in columns.items():
        like: Tensor = getattr(standing, name)
        setattr(standing, name, torch.tensor(values, dtype=like.dtype, device=like.device))


def _claim(store: Folder, ensemble: StandardEnsemble, begun: list[Standing], shard: int, seed: int) -> None:
    """Write what identifies the evaluation, or make sure that the folder's is the same."""
    digest = hashlib.blake2b(digest_size=16)
    for part in begun:
        for values in (part.x, part.y, part.logits.argmax(1)):
            digest.update(values.cpu().contiguous().numpy().tobytes())
    now: dict[str, Any] = {
        "threat": repr(ensemble.threat),
        "version": ensemble.version,
        "shard": shard,
        "seed": seed,
        "examples and predictions": digest.hexdigest(),
    }
    if store.exists(IDENTITY):
        require_same(read_json(store, IDENTITY), now, store.url)
    else:
        write_json(store, IDENTITY, now)
