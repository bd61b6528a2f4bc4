"""Guaranteed progress is never missed, every combination finds the minimiser, and greedy gradients do not drift."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import Lasso

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.optim.blocks import colour, make_partition
from holdfast.optim.coordinate import BlockCoordinateDescent
from holdfast.optim.problem import LeastSquares, Logistic, Quadratic
from holdfast.optim.prox import L1, Box, Nothing

PAIRS = [("gsl", "gradient"), ("gsd", "diagonal"), ("gsq", "matrix")]


@pytest.fixture(scope="module")
def system():
    generator = np.random.default_rng(0)
    A = generator.normal(size=(60, 12)) * generator.uniform(0.8, 1.6, 12)
    return A, generator.normal(size=60)


@pytest.mark.parametrize("blocks", ["variable", "sorted", [np.arange(0, 12, 2), np.arange(1, 12, 2)]])
@pytest.mark.parametrize("rule", ["gs", "gsl", "gsd", "gsq", "random", "cyclic"])
@pytest.mark.parametrize("update", ["gradient", "diagonal", "matrix", "newton"])
def test_every_combination_solves_least_squares(system, rule, update, blocks):
    A, b = system
    solver = BlockCoordinateDescent(rule=rule, update=update, blocks=blocks, tol=1e-7, max_iter=5000)
    result = solver.solve(LeastSquares(A, b))
    assert result.converged
    np.testing.assert_allclose(result.x, np.linalg.lstsq(A, b, rcond=None)[0], atol=1e-6)
    np.testing.assert_allclose(result.residual, np.abs(A.T @ (A @ result.x - b)).max(), atol=1e-12)
    assert np.all(np.diff(result.trace["value"]) <= 1e-9)
    assert result.calls == result.trace["calls"][-1] >= result.iterations


@pytest.mark.parametrize(("rule", "update"), PAIRS)
def test_guaranteed_progress_is_kept_at_every_step(rule, update):
    X, _ = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    generator = np.random.default_rng(1)
    problem = LeastSquares(X, generator.normal(size=len(X)))
    solver = BlockCoordinateDescent(rule=rule, update=update, blocks="sorted", max_iter=1)
    lipschitz = np.diag(problem.curvature)
    partition = make_partition("sorted", 5, problem.curvature, lipschitz)
    majoriser = np.abs(problem.curvature).sum(1)
    for _ in range(20):
        x = generator.normal(size=30)
        gradient = X.T @ (X @ x - problem.b)
        result = solver.solve(problem, x)
        promised = partition.scores(rule, gradient, majoriser).max() / 2
        assert problem.value(x) - result.value >= promised * (1 - 1e-9)


def test_red_black_and_forest_blocks_solve_a_sparse_system():
    generator = np.random.default_rng(2)
    W = sp.random_array((80, 80), density=0.04, rng=generator)
    W = W + W.T
    H = (sp.diags_array(np.asarray(W.sum(axis=1)).ravel() + 0.3) - W).tocsr()
    q = generator.normal(size=80)
    for blocks in ("red_black", "forest"):
        result = BlockCoordinateDescent("gs", "message_passing", blocks).solve(Quadratic(H, q))
        assert result.converged
        np.testing.assert_allclose(result.x, np.linalg.solve(H.toarray(), -q), atol=1e-7)
    colours = colour(sp.csr_array(W))
    rows, columns = W.nonzero()
    assert np.all(colours[rows[rows != columns]] != colours[columns[rows != columns]])


def test_a_tree_is_solved_in_one_message_passing_step():
    H = sp.diags_array([np.full(49, -1.0), np.full(50, 2.1), np.full(49, -1.0)], offsets=[-1, 0, 1]).tocsr()
    result = BlockCoordinateDescent("gs", "message_passing", "forest").solve(Quadratic(H, np.ones(50)))
    assert result.iterations == 1


def test_logistic_regression_agrees_with_scipy():
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    problem = Logistic(X, 2.0 * y - 1, l2=1.0)

    def gradient(w):
        p = 1 / (1 + np.exp(problem.y * (X @ w)))
        return -X.T @ (problem.y * p) + w

    reference = minimize(problem.value, np.zeros(30), jac=gradient, method="L-BFGS-B", options={"gtol": 1e-9})
    for rule, update in (("gsq", "newton"), ("gsl", "matrix")):
        result = BlockCoordinateDescent(rule, update, tol=1e-6, max_iter=20_000).solve(problem)
        assert result.converged
        np.testing.assert_allclose(result.value, reference.fun, rtol=1e-8)


def test_tracked_gradients_equal_fresh_ones(system):
    A, b = system
    H = A.T @ A + np.eye(12)
    generator = np.random.default_rng(3)
    for problem in (LeastSquares(A, b), Logistic(A, np.sign(b), 0.1), Quadratic(H, b[:12])):
        tracker = problem.track(np.zeros(12))
        for _ in range(30):
            block = generator.choice(12, 3, replace=False)
            tracker.move(block, generator.normal(size=3) * 0.1)
        kept, value = tracker.gradient.copy(), tracker.value()
        tracker.refresh()
        np.testing.assert_allclose(kept, tracker.gradient, atol=1e-9)
        np.testing.assert_allclose(value, problem.value(tracker.x), rtol=1e-10)


def test_lasso_ends_exactly_where_scikit_learn_does():
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    weight = 0.1 * np.abs(X.T @ y).max()
    result = BlockCoordinateDescent("gsd", "diagonal", block_size=1, tol=1e-12).solve(LeastSquares(X, y, L1(weight)))
    reference = Lasso(weight / len(y), fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, y).coef_
    assert result.converged
    np.testing.assert_array_equal(result.x != 0, reference != 0)
    np.testing.assert_allclose(result.x, reference, atol=1e-8)
    assert result.trace["working_set"].sum() <= 3


def test_bounds_agree_with_non_negative_least_squares(system):
    A, b = system
    result = BlockCoordinateDescent("gsd", "diagonal", block_size=2, tol=1e-10).solve(LeastSquares(A, b, Box(0.0)))
    assert result.converged
    np.testing.assert_allclose(result.x, nnls(A, b)[0], atol=1e-9)


def test_l1_logistic_regression_meets_its_optimality_condition():
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    problem = Logistic(X, 2.0 * y - 1, 1e-3, L1(5.0))
    result = BlockCoordinateDescent("gsd", "diagonal", tol=1e-8, max_iter=5000).solve(problem)
    assert result.converged
    gradient = problem.track(result.x).gradient
    zero = result.x == 0
    assert 0 < zero.sum() < 30
    assert np.all(np.abs(gradient[zero]) <= 5.0 + 1e-7)
    np.testing.assert_allclose(gradient[~zero], -5.0 * np.sign(result.x[~zero]), atol=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.floats(0.1, 3.0))
def test_proximal_maps_minimise_their_model(v, step):
    v = np.array(v)
    steps = np.full(len(v), step)
    grid = np.linspace(-6, 6, 1201)
    for penalty in (Nothing(), L1(0.7), Box(-1.0, 2.0)):
        point = penalty.prox(v, steps)
        ours = penalty.each(point) + (point - v) ** 2 / (2 * step)
        best = (penalty.each(grid)[:, None] + (grid[:, None] - v) ** 2 / (2 * step)).min(0)
        assert np.all(ours <= best + 1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Quadratic(np.array([[1.0, 2.0], [0.0, 1.0]]), np.zeros(2)),
        lambda: LeastSquares(np.full((3, 2), np.nan), np.zeros(3)),
        lambda: LeastSquares(np.ones((3, 2)), np.zeros(4)),
        lambda: Logistic(np.ones((3, 2)), np.array([0.0, 1.0, 1.0])),
        lambda: BlockCoordinateDescent().solve(LeastSquares(np.eye(3)[:, [0, 1, 1]] * [1, 1, 0], np.ones(3))),
        lambda: BlockCoordinateDescent(block_size=9).solve(Quadratic(np.eye(3), np.ones(3))),
        lambda: BlockCoordinateDescent(blocks=[np.array([0, 1])], block_size=1).solve(Quadratic(np.eye(3), np.ones(3))),
        lambda: BlockCoordinateDescent(update="matrix", block_size=2).solve(
            Quadratic(np.array([[1.0, 2.0], [2.0, 1.0]]), np.ones(2))
        ),
        lambda: BlockCoordinateDescent(update="message_passing"),
        lambda: BlockCoordinateDescent(block_size=1).solve(Quadratic(np.eye(2), np.ones(2)), np.zeros(3)),
        lambda: BlockCoordinateDescent("gsd", "diagonal", block_size=1).solve(
            Quadratic(np.eye(2), np.ones(2), Box(0.0)), np.full(2, -1.0)
        ),
        lambda: L1(-1.0),
        lambda: Box(1.0, 0.0),
        lambda: BlockCoordinateDescent(tol=0.0),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InputError):
        call()


def test_matrix_updates_under_a_penalty_are_beyond_it():
    with pytest.raises(UnsupportedError):
        BlockCoordinateDescent(update="matrix", block_size=1).solve(Quadratic(np.eye(2), np.ones(2), L1(1.0)))
