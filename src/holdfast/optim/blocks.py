"""Block partitions of coordinates and the scores of fixed blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla
from jaxtyping import Float

from holdfast.core.errors import InputError
from holdfast.optim.problem import Matrix, submatrix


@dataclass(frozen=True)
class Partition:
    """Fixed `blocks`, or None for blocks chosen afresh each time; `adjacency` asks that they be forests of it."""

    curvature: Matrix
    block_size: int
    blocks: tuple[np.ndarray, ...] | None = None
    adjacency: sp.csr_array | None = None
    _constants: dict[bytes, float] = field(default_factory=dict, repr=False)

    @cached_property
    def largest_eigenvalue(self) -> float:
        """λ_max of the whole curvature matrix."""
        return _largest(self.curvature)

    @cached_property
    def _inverses(self) -> list[np.ndarray]:
        assert self.blocks is not None
        return [np.linalg.pinv(submatrix(self.curvature, block), hermitian=True) for block in self.blocks]

    def lipschitz(self, block: np.ndarray, curvature: Matrix) -> float:
        """L_b = λ_max(H_b)."""
        key = block.tobytes()
        if key not in self._constants:
            self._constants[key] = float(np.linalg.eigvalsh(submatrix(curvature, block))[-1])
        return self._constants[key]

    def scores(self, rule: str, gradient: np.ndarray, majoriser: np.ndarray) -> Float[np.ndarray, " blocks"]:
        """Score of every fixed block; half of it is guaranteed progress for gsl, gsd and gsq."""
        assert self.blocks is not None
        parts = [gradient[block] for block in self.blocks]
        if rule == "gsq":
            return np.array([g @ inverse @ g for g, inverse in zip(parts, self._inverses, strict=True)])
        if rule == "gsd":
            return np.array([(g**2 / majoriser[block]).sum() for g, block in zip(parts, self.blocks, strict=True)])
        squares = np.array([g @ g for g in parts])
        if rule == "gs":
            return squares
        return squares / np.array([self.lipschitz(block, self.curvature) for block in self.blocks])


def make_partition(
    blocks: Literal["variable", "sorted", "red_black", "forest"] | Sequence[np.ndarray],
    block_size: int,
    curvature: Matrix,
    lipschitz: Float[np.ndarray, " n"],
) -> Partition:
    """The partition that `blocks` names.  Raises InputError for a block size outside 1..n or missing coordinates."""
    n = len(lipschitz)
    if not 1 <= block_size <= n:
        raise InputError(f"the block size must lie between 1 and {n}, got {block_size}")
    if not isinstance(blocks, str):
        given = tuple(np.sort(np.asarray(block, dtype=np.int64)) for block in blocks)
        if not given or not np.array_equal(np.unique(np.concatenate(given)), np.arange(n)):
            raise InputError(f"the blocks must cover every coordinate 0..{n - 1} and nothing else")
        return Partition(curvature, block_size, given)
    if blocks == "variable":
        return Partition(curvature, block_size)
    if blocks == "sorted":
        order = np.argsort(-lipschitz, kind="stable")
        fixed = tuple(np.sort(order[start : start + block_size]) for start in range(0, n, block_size))
        return Partition(curvature, block_size, fixed)
    graph = _graph(curvature)
    if blocks == "forest":
        return Partition(curvature, block_size, adjacency=graph)
    colours = colour(graph)
    return Partition(curvature, block_size, tuple(np.flatnonzero(colours == c) for c in range(colours.max() + 1)))


def curvature_diagonals(H: Matrix) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(L_i, D_i): the diagonal of H, and its absolute row sums, which majorise H by diagonal dominance.

    Raises InputError when a coordinate has no curvature.
    """
    lipschitz = np.asarray(H.diagonal(), dtype=np.float64)
    if not (lipschitz > 0).all():
        where = int(np.argmin(lipschitz))
        raise InputError(
            f"coordinate {where} has curvature {lipschitz[where]:g}; drop it (a constant column?) or add a little l2"
        )
    majoriser = np.asarray(abs(H).sum(axis=1), dtype=np.float64).reshape(-1)
    return lipschitz, majoriser


def colour(graph: sp.csr_array) -> np.ndarray:
    """Greedy colouring, largest degree first: neighbours never share a colour; shape (n,)."""
    starts, neighbours = graph.indptr.tolist(), graph.indices.tolist()
    colours = np.full(graph.shape[0], -1)
    for node in np.argsort(-np.diff(graph.indptr), kind="stable").tolist():
        taken = {int(colours[other]) for other in neighbours[starts[node] : starts[node + 1]]}
        colours[node] = next(c for c in range(len(taken) + 1) if c not in taken)
    return colours


def _graph(H: Matrix) -> sp.csr_array:
    graph = sp.csr_array(H, copy=True)
    graph.setdiag(0)
    graph.eliminate_zeros()
    return graph


def _largest(H: Matrix) -> float:
    if sp.issparse(H) and H.shape[0] > 50:
        start = np.ones(H.shape[0])  # a fixed start keeps the run repeatable
        return float(spla.eigsh(H, k=1, v0=start, return_eigenvectors=False)[0])
    dense = H.toarray() if sp.issparse(H) else H
    return float(np.linalg.eigvalsh(dense)[-1])
