"""bcd: better greedy rules, message passing and active sets for block coordinate descent.

Everything runs on data bundled with scikit-learn, so smoke and full scale differ in how many random points,
forests, labelled sets and iterations are tried.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla
from jaxtyping import Float
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import Lasso
from sklearn.neighbors import kneighbors_graph

from holdfast.core.exhibit import Curve, Series
from holdfast.core.seeds import numpy_generator
from holdfast.optim.blocks import curvature_diagonals, make_partition
from holdfast.optim.coordinate import BlockCoordinateDescent, Rule, Update
from holdfast.optim.forest import solve_forest
from holdfast.optim.problem import LeastSquares, Quadratic
from holdfast.optim.prox import L1
from holdfast.optim.result import Result
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale

PAPER = Paper(
    key="bcd",
    group="optim",
    title="Let's Make Block Coordinate Descent Converge Faster: Faster Greedy Rules, Message-Passing, Active-Set "
    "Complexity, and Superlinear Convergence",
    builds=(
        "holdfast.optim.coordinate.BlockCoordinateDescent",
        "holdfast.optim.forest.forest_block",
        "holdfast.optim.forest.solve_forest",
    ),
    claim=(
        "Block rules that use curvature promise, and make, more progress than gradient size alone; forest blocks "
        "solved exactly by message passing beat small or uncoupled blocks; and once the active set is right, sparse "
        "problems end in finitely many steps."
    ),
    reference="Nutini, Laradji and Schmidt, JMLR 2022",
)

PAIRS: tuple[tuple[Rule, Update], ...] = (("gsl", "gradient"), ("gsd", "diagonal"), ("gsq", "matrix"))
ITERATIONS = 30
NOTES = (
    "Against random blocks of the forests' own size the ratio lies at its limit of 0.3, from 0.24 to 0.31 over seeds, "
    "and the side on which the largest falls depends on rounding: 0.305 with one thread, 0.297 with two."
)


def check(scale: Scale) -> Outcome:
    """Message passing, guaranteed progress, label propagation and finite termination."""
    smoke = scale is Scale.SMOKE
    seeds = (0,) if smoke else (0, 1, 2, 3, 4)
    spread, curve = _label_propagation(seeds, 600 if smoke else 1797)
    exact = (_message_passing(10 if smoke else 50), *_progress(30 if smoke else 200))
    return Outcome((*exact, *spread, *_finite_termination()), exhibits=(curve,), seeds=seeds, notes=NOTES)


def _message_passing(forests: int) -> Criterion:
    worst = 0.0
    for seed in range(forests):
        generator = numpy_generator(seed, "bcd", "forest")
        n = int(generator.integers(2, 501))
        H, g = random_forest(n, generator), generator.normal(size=n)
        worst = max(worst, float(np.abs(solve_forest(H, g) - np.linalg.solve(H.toarray(), -g)).max()))
    statement = "Message passing equals a dense solve on random forests of up to 500 coordinates to 1e-10"
    return Criterion(statement, worst <= 1e-10, {"largest difference": worst, "forests": forests})


def random_forest(n: int, generator: np.random.Generator) -> sp.csr_array:
    """Symmetric positive definite, every coordinate tied to at most one before it, in random order."""
    rows = np.flatnonzero(generator.random(n - 1) < 0.9) + 1
    columns = (generator.random(len(rows)) * rows).astype(np.int64)
    label = generator.permutation(n)
    half = sp.coo_array((generator.normal(size=len(rows)), (label[rows], label[columns])), shape=(n, n))
    H = sp.csr_array(half + half.T)
    return sp.csr_array(H + sp.diags_array(np.asarray(abs(H).sum(axis=1)).reshape(-1) + 0.1))


def _progress(points: int) -> tuple[Criterion, Criterion]:
    X, _ = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    generator = numpy_generator(0, "bcd", "progress")
    problem = LeastSquares(X, generator.normal(size=len(X)))
    lipschitz, majoriser = curvature_diagonals(problem.curvature)
    partition = make_partition("sorted", 5, problem.curvature, lipschitz)
    short, over_gsl, over_gsd = np.inf, np.inf, np.inf
    for _ in range(points):
        x = generator.normal(size=problem.size)
        gradient = problem.track(x).gradient
        scores = {rule: partition.scores(rule, gradient, majoriser) for rule, _ in PAIRS}
        for rule, update in PAIRS:
            solved = BlockCoordinateDescent(rule, update, "sorted", max_iter=1).solve(problem, x)
            short = min(short, (problem.value(x) - solved.value) / (scores[rule].max() / 2))
        over_gsl = min(over_gsl, float((scores["gsq"] / scores["gsl"]).min()))
        over_gsd = min(over_gsd, float((scores["gsq"] / scores["gsd"]).min()))
    return (
        Criterion(
            "Least squares on breast cancer: no step decreases the objective by less than its rule guarantees",
            bool(short >= 1 - 1e-9),
            {"smallest decrease over guarantee": short, "points": points},
        ),
        Criterion(
            "At the same point the guaranteed progress of GSQ is at least that of GSL and of GSD, for every block",
            min(over_gsl, over_gsd) >= 1 - 1e-9,
            {"smallest GSQ / GSL": over_gsl, "smallest GSQ / GSD": over_gsd},
        ),
    )


def label_graph(images: int, seed: int) -> Quadratic:
    """Label propagation on the 10-nearest-neighbour graph of digits: even or odd, one in ten labelled.

    f = ½ Σ_ij w_ij (x_i - x_j)² over the unlabelled, labels ±1 held fixed.  Parts without a label have no unique
    solution and are left out.
    """
    X, y = load_digits(return_X_y=True)
    X, target = X[:images], np.where(y[:images] % 2 == 0, 1.0, -1.0)
    W = kneighbors_graph(X, 10).maximum(kneighbors_graph(X, 10).T).tocsr()
    laplacian = (sp.diags_array(np.asarray(W.sum(axis=1)).reshape(-1)) - W).tocsr()
    labelled = numpy_generator(seed, "bcd", "labelled").random(images) < 0.1
    _, part = sp.csgraph.connected_components(W, directed=False)
    open_ = ~labelled & np.isin(part, part[labelled])
    q = laplacian[open_][:, labelled] @ target[labelled]
    return Quadratic(sp.csr_array(laplacian[open_][:, open_]), np.asarray(q))


def _label_propagation(seeds: tuple[int, ...], images: int) -> tuple[tuple[Criterion, ...], Curve]:
    # "Random blocks of the same mean size" can be read either way, so both are held: the red-black blocks' mean size,
    # and the much larger size of the forests, where one exact (dense) step costs far more than message passing.
    gaps: dict[str, list[np.ndarray]] = {"forest": [], "random, forest size": [], "red-black": [], "random": []}
    for seed in seeds:
        problem = label_graph(images, seed)
        best = problem.value(-spla.spsolve(sp.csc_array(problem.H), problem.q))
        forest = BlockCoordinateDescent("gsd", "message_passing", "forest", max_iter=ITERATIONS).solve(problem)
        red_black = BlockCoordinateDescent("gsd", "message_passing", "red_black", max_iter=ITERATIONS).solve(problem)
        for name, greedy, blind in (("forest", forest, "random, forest size"), ("red-black", red_black, "random")):
            gaps[name].append(_gap(greedy, best))
            gaps[blind].append(_gap(_random_blocks(problem, round(greedy.calls / greedy.iterations), seed), best))
    final = {name: np.array([gap[-1] for gap in runs]) for name, runs in gaps.items()}
    ratio, dense = final["forest"] / final["random"], final["forest"] / final["random, forest size"]
    numbers = {
        f"{name}, seed {seed}": float(value) for name in final for seed, value in zip(seeds, final[name], strict=True)
    }
    criteria = (
        Criterion(
            "Label propagation on digits: objective gap after 30 iterations is smaller with forest blocks and message "
            "passing than with red-black blocks",
            bool((final["forest"] < final["red-black"]).all()),
            numbers,
        ),
        Criterion(
            "Label propagation on digits: red-black blocks end closer than random blocks of their mean size",
            bool((final["red-black"] < final["random"]).all()),
            numbers,
        ),
        Criterion(
            "Label propagation on digits: the forests' gap is less than 0.3 of that of the same random blocks",
            bool((ratio < 0.3).all()),
            {f"ratio, seed {seed}": float(value) for seed, value in zip(seeds, ratio, strict=True)},
        ),
        Criterion(
            "Label propagation on digits: the forests' gap is less than 0.3 of that of random blocks of the forests' "
            "own mean size, solved exactly",
            bool((dense < 0.3).all()),
            {f"ratio, seed {seed}": float(value) for seed, value in zip(seeds, dense, strict=True)},
        ),
    )
    steps = tuple(float(step) for step in range(ITERATIONS + 1))
    lines = tuple(Series(name, steps[: len(runs[0])], tuple(map(float, runs[0]))) for name, runs in gaps.items())
    curve = Curve("Label propagation on digits (first seed)", "iteration", "objective gap", lines, y_log=True)
    return criteria, curve


def _random_blocks(problem: Quadratic, size: int, seed: int) -> Result:
    solver = BlockCoordinateDescent("random", "matrix", "variable", block_size=max(1, size), max_iter=ITERATIONS)
    return solver.solve(problem, generator=numpy_generator(seed, "bcd", "random blocks"))


def _gap(result: Result, best: float) -> Float[np.ndarray, " iterations"]:
    return np.maximum(result.trace["value"] - best, 1e-16)


def _finite_termination() -> tuple[Criterion, ...]:
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    weight = 0.1 * float(np.abs(X.T @ y).max())
    solver = BlockCoordinateDescent("gsd", "diagonal", block_size=1, tol=1e-12)
    result = solver.solve(LeastSquares(X, y, L1(weight)))
    reference = Lasso(weight / len(y), fit_intercept=False, tol=1e-12, max_iter=1_000_000).fit(X, y).coef_
    working = int(result.trace["working_set"].sum())
    difference = float(np.abs(result.x - reference).max())
    return (
        Criterion(
            "Lasso on diabetes: the support is scikit-learn's",
            bool(np.array_equal(result.x != 0, reference != 0)),
            {"non-zero coefficients": int((result.x != 0).sum())},
        ),
        Criterion(
            "Lasso on diabetes: coefficients agree to 1e-8", difference <= 1e-8, {"largest difference": difference}
        ),
        Criterion(
            "Lasso on diabetes: the residual falls below 1e-12 within three working-set steps of identification",
            result.residual < 1e-12 and working <= 3,
            {"residual": result.residual, "working-set steps": working, "iterations": result.iterations},
        ),
    )
