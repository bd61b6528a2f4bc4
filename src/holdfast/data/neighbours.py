"""Exact nearest neighbours in blocks: matrix products choose, float64 differences measure.

Squared distances |q|² + |r|² - 2 q·r of one block of queries against one block of references stand in memory at a
time, never queries × references.  The product is taken in float32 of centred data, whose cancellation error would
spoil the distances of near-duplicates; so a few more candidates than asked for are kept, measured again as |q - r| in
float64, and ordered by that.

Shapes: queries (queries, features), reference (references, features); distances are Euclidean, in the units of the
features.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from holdfast.core.errors import InputError
from holdfast.core.progress import track

_QUERY_BLOCK = 1024
_REFERENCE_BLOCK = 16384
_SPARE = 6


def nearest(
    queries: Float[np.ndarray, "queries features"],
    reference: Float[np.ndarray, "references features"],
    k: int,
    *,
    exclude_self: bool = False,
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    """Distances (float64, ascending) and positions of the k nearest references of every query.

    `exclude_self` leaves out position i for query i (for a set against itself).
    Raises InputError when fewer than k references are left, on differing widths and on NaN or infinite values.
    """
    available = len(reference) - int(exclude_self)
    if k < 1 or k > available:
        raise InputError(f"asked for {k} neighbours but only {available} references can be one; lower k or add data")
    if queries.shape[1] != reference.shape[1]:
        raise InputError(f"queries have {queries.shape[1]} features, the reference {reference.shape[1]}")
    if not (np.isfinite(queries).all() and np.isfinite(reference).all()):
        raise InputError("features hold NaN or infinite values; drop or fill them before searching neighbours")
    keep = min(available, k + _SPARE)
    centre = reference.mean(axis=0, dtype=np.float64)
    references = torch.from_numpy((reference - centre).astype(np.float32))
    sizes = references.square().sum(1)
    distances = np.empty((len(queries), k))
    positions = np.empty((len(queries), k), dtype=np.int64)
    for start in track(range(0, len(queries), _QUERY_BLOCK), "searching neighbours"):
        block = slice(start, min(start + _QUERY_BLOCK, len(queries)))
        centred = torch.from_numpy((queries[block] - centre).astype(np.float32))
        candidates = _candidates(centred, references, sizes, keep, start if exclude_self else None)
        distances[block], positions[block] = _measure(queries[block], reference, candidates, k)
    return distances, positions


def _candidates(
    queries: torch.Tensor, references: torch.Tensor, sizes: torch.Tensor, keep: int, own: int | None
) -> np.ndarray:
    """Positions of the `keep` references of smallest |r|² - 2 q·r (|q|² does not change the order), (queries, keep)."""
    best = torch.full((len(queries), keep), torch.inf)
    best_at = torch.zeros((len(queries), keep), dtype=torch.int64)
    for start in range(0, len(references), _REFERENCE_BLOCK):
        part = references[start : start + _REFERENCE_BLOCK]
        scores = torch.addmm(sizes[start : start + _REFERENCE_BLOCK], queries, part.T, alpha=-2)
        if own is not None:
            mine = torch.arange(len(queries)) + own - start
            here = torch.nonzero((mine >= 0) & (mine < len(part)))[:, 0]
            scores[here, mine[here]] = torch.inf
        found, at = scores.topk(min(keep, len(part)), largest=False)
        best, chosen = torch.cat([best, found], 1).topk(keep, largest=False)
        best_at = torch.cat([best_at, at + start], 1).gather(1, chosen)
    return best_at.numpy()


def _measure(
    queries: np.ndarray, reference: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    gaps = np.empty(candidates.shape)
    for column in range(candidates.shape[1]):
        difference = queries.astype(np.float64) - reference[candidates[:, column]]
        gaps[:, column] = np.einsum("qf,qf->q", difference, difference)
    order = np.lexsort((candidates, gaps), axis=1)[:, :k]
    return np.sqrt(np.take_along_axis(gaps, order, 1)), np.take_along_axis(candidates, order, 1)
