"""Predictions on unperturbed data: computed once, stored once, shared by every probe."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from holdfast.audit.lane import shard_bounds
from holdfast.core.errors import InputError
from holdfast.core.seeds import numpy_generator
from holdfast.store.files import Folder
from holdfast.store.shards import read_shard, shards_present, write_shard
from holdfast.subject.subject import Subject

CLEAN = "clean"
SHARD = 512


def audit_order(examples: int, seed: int, limit: int | None) -> np.ndarray:
    """The random order in which an audit looks at the test data: any prefix is a uniform sample without replacement."""
    order = numpy_generator(seed, "order").permutation(examples)
    return order if limit is None else order[:limit]


def clean_predictions(
    subject: Subject,
    order: np.ndarray,
    folder: Folder,
    out_of_time: Callable[[], bool],
    told: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    """Columns `index, label, prediction, logits` for as much of `order` as time allows (at least one shard).

    Raises InputError when the model's outputs are not finite.
    """
    present = set(shards_present(folder, CLEAN))
    parts: list[dict[str, np.ndarray]] = []
    for shard in range(-(-len(order) // SHARD)):
        if parts and out_of_time():
            break
        if shard in present:
            parts.append(read_shard(folder, CLEAN, shard))
        else:
            start, stop = shard_bounds(shard, SHARD, len(order))
            parts.append(_predict(subject, order[start:stop]))
            write_shard(folder, CLEAN, shard, parts[-1])
        told(min((shard + 1) * SHARD, len(order)), len(order))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _predict(subject: Subject, index: np.ndarray) -> dict[str, np.ndarray]:
    inputs, labels = subject.test.take(index)
    logits = subject.logits(subject.tensor(inputs)).float().cpu().numpy()
    if not np.isfinite(logits).all():
        bad = index[~np.isfinite(logits).all(axis=1)]
        raise InputError(
            f"the model gives NaN or infinite outputs for {len(bad)} of {len(index)} examples "
            f"(first: test example {bad[0]}); logits must be finite: check the model's weights and the input range"
        )
    return {
        "index": index.astype(np.int64),
        "label": labels.astype(np.int64),
        "prediction": logits.argmax(axis=1).astype(np.int64),
        "logits": logits,
    }
