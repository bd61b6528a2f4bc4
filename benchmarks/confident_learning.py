"""Confident learning against cleanlab: the same issues in the same order, then time and peak memory.

Both sides take labels and probabilities and return the positions of the issues under the strictest rule (flagged by
class and by noise rate), most suspicious first by self-confidence.  Labels are wrong for one example in ten.
cleanlab is timed in one process and in as many as it chooses by default (`n_jobs=None`).
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import Benchmark, version

SIZES = ((10_000, 10), (100_000, 10), (1_000_000, 10), (100_000, 1000))


def noisy_predictions(examples: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (10 % wrong) and float64 probabilities of a model that is right about nine times in ten."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, classes, examples)
    labels = np.where(rng.random(examples) < 0.1, rng.integers(0, classes, examples), true)
    probabilities = rng.standard_normal((examples, classes))
    probabilities *= 1.5
    probabilities[np.arange(examples), true] += 4 + np.log(classes / 10)
    np.exp(probabilities, out=probabilities)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return labels, probabilities


def ours(data: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Issues found by holdfast."""
    from holdfast.labels.confident import find_label_issues

    return find_label_issues(*data, rule="both").order


def theirs(data: tuple[np.ndarray, np.ndarray], n_jobs: int | None) -> Any:
    """Issues found by cleanlab."""
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return find_label_issues(*data, filter_by="both", return_indices_ranked_by="self_confidence", n_jobs=n_jobs)


def size_name(examples: int) -> str:
    """10000 as 10k, 1000000 as 1m."""
    return f"{examples // 1_000_000}m" if examples >= 1_000_000 else f"{examples // 1000}k"


BENCHMARKS = tuple(
    Benchmark(
        name=f"confident-learning-{size_name(examples)}x{classes}" + ("" if jobs == 1 else "-parallel"),
        subject=f"label issues among {examples:,} examples of {classes} classes",
        peer="cleanlab" if jobs == 1 else "cleanlab, default processes",
        peer_version=version("cleanlab"),
        prepare=partial(noisy_predictions, examples, classes),
        ours=ours,
        theirs=partial(theirs, n_jobs=jobs),
        equal=np.array_equal,
        settings={"rule": "both", "rank_by": "self-confidence", "dtype": "float64", "n_jobs": jobs},
    )
    for examples, classes in SIZES
    for jobs in (1, None)
)
