"""Message passing equals a dense solve on forests and refuses everything else; greedy blocks are maximal forests."""

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.optim.coordinate import forest_block, solve_forest


def random_forest(n, generator, keep=0.85):
    """Symmetric positive definite matrix whose graph is a random forest."""
    H = sp.lil_array((n, n))
    for node in range(1, n):
        if generator.random() < keep:
            H[node, (other := int(generator.integers(node)))] = generator.normal()
            H[other, node] = H[node, other]
    H = H.tocsr()
    return (H + sp.diags_array(np.abs(H).sum(axis=1) + 0.5)).tocsr()


@pytest.mark.parametrize("seed", range(20))
def test_message_passing_equals_a_dense_solve(seed):
    generator = np.random.default_rng(seed)
    n = int(generator.integers(1, 300))
    H, g = random_forest(n, generator), generator.normal(size=n)
    relabelled = generator.permutation(n)
    H = H[relabelled][:, relabelled]
    np.testing.assert_allclose(solve_forest(H, g), np.linalg.solve(H.toarray(), -g), atol=1e-10)
    np.testing.assert_allclose(solve_forest(H.toarray(), g), solve_forest(H, g), atol=1e-13)


def test_long_path_does_not_exhaust_the_stack():
    n = 20_000
    H = sp.diags_array([np.full(n - 1, -1.0), np.full(n, 2.5), np.full(n - 1, -1.0)], offsets=[-1, 0, 1]).tocsr()
    g = np.ones(n)
    np.testing.assert_allclose(H @ solve_forest(H, g), -g, atol=1e-10)


@pytest.mark.parametrize(
    ("H", "message"),
    [
        (np.ones((3, 3)) + 3 * np.eye(3), "cycle"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "not positive definite"),
        (np.array([[2.0, 1.0], [0.0, 2.0]]), "symmetric"),
        (np.array([[2.0, 0.0], [1.0, 2.0]]), "symmetric"),
        (np.array([[2.0, 1.0], [0.5, 2.0]]), "symmetric"),
        (np.eye(3), "shape"),
    ],
)
def test_other_matrices_are_refused(H, message):
    with pytest.raises(InputError, match=message):
        solve_forest(H, np.ones(len(H) if message != "shape" else 2))


@given(st.integers(0, 10_000), st.integers(2, 25), st.floats(0.05, 0.7))
def test_a_greedy_block_is_a_forest_and_cannot_grow(seed, n, density):
    graph = nx.gnp_random_graph(n, density, seed=seed)
    adjacency = nx.to_scipy_sparse_array(graph)
    scores = np.random.default_rng(seed).random(n)
    block = forest_block(scores, adjacency)
    assert nx.is_forest(graph.subgraph(block))
    assert np.argmax(scores) in block
    for outside in set(range(n)) - set(block.tolist()):
        assert not nx.is_forest(graph.subgraph([*block, outside]))
