"""Linear systems on forests in linear time, and greedy blocks that induce one.

For a symmetric H whose graph has no cycle, H d = -g is solved by messages from the leaves to the root and back
(Gaussian belief propagation on a tree, which is Cholesky elimination without fill):

    P_ij = -H_ij² / (H_ii + Σ_{k≠j} P_ki)          μ_ij = -H_ij (g_i + Σ_{k≠j} μ_ki) / (H_ii + Σ_{k≠j} P_ki)

and the root's d = -(g + Σ μ) / (H_rr + Σ P) is handed down.  Nutini, Laradji and Schmidt, 2022.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from holdfast.core.errors import InputError
from holdfast.optim.problem import Matrix


def solve_forest(H: Matrix, g: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The d with H d = -g, for H (n, n) symmetric positive definite, dense or sparse, whose graph is a forest.

    Raises InputError when the graph has a cycle, H is not symmetric, or an elimination step meets a pivot that is not
    positive (then H is not positive definite).
    """
    graph = sp.csr_array(H)
    graph.eliminate_zeros()
    n = len(g)
    if graph.shape != (n, n):
        raise InputError(f"H must have shape {(n, n)} to fit g, got {graph.shape}")
    starts, neighbours, weights = graph.indptr.tolist(), graph.indices.tolist(), graph.data.tolist()
    order, parent, weight = _rooted(starts, neighbours, weights, n)
    diagonal, right = graph.diagonal().tolist(), g.tolist()
    for node in reversed(order):  # leaves first: fold each node into its parent
        if not diagonal[node] > 0:
            raise InputError(f"pivot {diagonal[node]:.3g} at coordinate {node}: H is not positive definite")
        above = parent[node]
        if above >= 0:
            ratio = weight[node] / diagonal[node]
            diagonal[above] -= ratio * weight[node]
            right[above] -= ratio * right[node]
    d = [0.0] * n
    for node in order:  # roots first: every parent is known before its children
        above = parent[node]
        known = weight[node] * d[above] if above >= 0 else 0.0
        d[node] = -(right[node] + known) / diagonal[node]
    return np.asarray(d)


def forest_block(score: Float[np.ndarray, " n"], adjacency: Matrix) -> Int[np.ndarray, " block"]:
    """Sorted coordinates of a greedy forest: by falling score, each that meets every tree chosen so far at most once.

    `adjacency` (n, n) is sparse (or dense) with the pattern of H; its diagonal is ignored.  No further coordinate could
    be added without closing a cycle.  Coordinates with score zero are taken too: they cost nothing and may be helped.
    """
    graph = sp.csr_array(adjacency)
    n = len(score)
    if graph.shape != (n, n):
        raise InputError(f"the adjacency must have shape {(n, n)} to fit the scores, got {graph.shape}")
    starts, neighbours = graph.indptr.tolist(), graph.indices.tolist()
    root = list(range(n))
    chosen = [False] * n

    def find(node: int) -> int:
        while root[node] != node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    for node in np.argsort(-score, kind="stable").tolist():
        nearby = [other for other in neighbours[starts[node] : starts[node + 1]] if chosen[other] and other != node]
        trees = {find(other) for other in nearby}
        if len(trees) == len(nearby):
            chosen[node] = True
            for tree in trees:
                root[tree] = node
    return np.flatnonzero(chosen)


def _rooted(
    starts: list[int], neighbours: list[int], weights: list[float], n: int
) -> tuple[list[int], list[int], list[float]]:
    """Nodes with every parent before its children, the parent of each (-1 at roots), and the weight of that edge."""
    parent, weight, order = [-2] * n, [0.0] * n, []
    for root in range(n):
        if parent[root] != -2:
            continue
        parent[root] = -1
        stack = [root]
        while stack:
            node = stack.pop()
            order.append(node)
            met_parent = parent[node] == -1
            for position in range(starts[node], starts[node + 1]):
                other = neighbours[position]
                if other == node:
                    continue
                if other == parent[node]:
                    met_parent = True
                    if weights[position] != weight[node]:
                        raise InputError(f"H is not symmetric between coordinates {node} and {other}")
                elif parent[other] == -2:
                    parent[other], weight[other] = node, weights[position]
                    stack.append(other)
                elif node not in neighbours[starts[other] : starts[other + 1]]:
                    raise InputError(f"H is not symmetric between coordinates {node} and {other}")
                else:
                    raise InputError(f"the graph of H has a cycle through coordinate {other}; it must be a forest")
            if not met_parent:
                raise InputError(f"H is not symmetric at coordinate {node}")
    return order, parent, weight
