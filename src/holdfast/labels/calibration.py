"""Counts of the confident joint made to agree with the given labels, and to whole examples.

Rounding of a row of counts keeps its total: round to nearest, then move the entries whose rounding error is largest
by one until the total is right.  Shapes: counts are (classes, classes) by [given, true]; `given` is (classes,).
"""

from __future__ import annotations

import numpy as np


def paper_counts(counts: np.ndarray, given: np.ndarray) -> np.ndarray:
    """C[i, j] / sum_j C[i, j] · given[i], float64.  A class without a confident example keeps all of its labels."""
    totals = counts.sum(axis=1)
    shares = counts / np.where(totals > 0, totals, 1)[:, None]
    shares[totals == 0] = np.eye(len(counts))[totals == 0]
    return shares * given[:, None]


def calibrated_counts(counts: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The same in whole examples, int64, in the order of floating-point operations of cleanlab 2.9."""
    scaled = (counts.T / np.clip(counts.sum(axis=1), 1e-100, None) * given).T
    scaled = scaled / np.clip(np.sum(scaled), 1e-100, None) * given.sum()
    return round_rows(scaled)


def prune_counts(counts: np.ndarray, keep: int) -> np.ndarray:
    """Whole numbers of examples to remove off the diagonal once every class keeps at least `keep` on it, int64.

    What the diagonal gains is taken from the non-zero entries of the row in equal parts (negative results become zero).
    """
    kept = np.maximum(counts.diagonal(), keep)
    gained = kept - counts.diagonal()
    entries = np.maximum(np.count_nonzero(counts, axis=1) - 1.0, 1.0)
    reduced = counts - (gained / entries)[:, None]
    reduced[reduced < 0] = 0
    np.fill_diagonal(reduced, kept)
    return reduced.astype(np.int64)


def round_rows(values: np.ndarray) -> np.ndarray:
    """Round every row to whole numbers without changing its (rounded) total, int64."""
    rounded = values.round()
    wanted = values.sum(axis=1).round()
    for row in np.flatnonzero(np.abs(rounded.sum(axis=1) - wanted) > 1e-6):
        rounded[row] = _round_row(values[row], rounded[row], float(wanted[row]))
    return rounded.astype(np.int64)


def _round_row(values: np.ndarray, rounded: np.ndarray, wanted: float) -> np.ndarray:
    rounded = rounded.copy()
    while abs(missing := round(wanted - float(rounded.sum()))) > 0:
        step = 1 if missing > 0 else -1
        moved = np.argsort(values - rounded)[::-step][: abs(missing)]
        rounded[moved] += step
    return rounded
