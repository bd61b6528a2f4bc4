"""FAB finds exact distances where they are known; its wins fool and lie in the set; its ways to planes are optimal."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.attack.fab import FAB
from holdfast.inputs.attack.hyperplane import towards_plane
from holdfast.inputs.attack.losses import Targeted
from holdfast.threats import L0, L1, L2, Linf

spec = importlib.util.spec_from_file_location("attack_models", Path(__file__).with_name("models.py"))
models = importlib.util.module_from_spec(spec)
sys.modules["attack_models"] = models
spec.loader.exec_module(models)

ORDER = {"Linf": torch.inf, "L2": 2.0, "L1": 1.0}


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def least_move(threat, point, normal, offset):
    """Size of the smallest move onto the plane inside [0, 1]^n by a general solver, None when it is out of reach."""
    n = len(point)
    room = [(-p, 1 - p) for p in point]
    gap = offset - normal @ point
    if isinstance(threat, L2):
        start = np.clip(normal * gap / (normal @ normal), *np.array(room).T)
        plane = {"type": "eq", "fun": lambda d: normal @ d - gap, "jac": lambda d: normal}
        found = minimize(lambda d: d @ d, start, jac=lambda d: 2 * d, bounds=room, constraints=[plane], tol=1e-14)
        return float(np.sqrt(found.fun)) if found.success and abs(normal @ found.x - gap) < 1e-7 else None
    # Split into d = up - down; minimise their sum (L1) or their common bound (L-infinity).
    cost = np.ones(2 * n) if isinstance(threat, L1) else np.r_[np.zeros(2 * n), 1.0]
    bounds = [(0, high) for _, high in room] + [(0, -low) for low, _ in room]
    equal, above = np.r_[normal, -normal], None
    if isinstance(threat, Linf):
        bounds, equal = [*bounds, (0, None)], np.r_[equal, 0.0]
        above = np.c_[np.eye(n), np.eye(n), -np.ones(n)]
    found = linprog(cost, above, None if above is None else np.zeros(n), equal[None], [gap], bounds)
    return found.fun if found.success else None


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), L1(1.0)])
def test_the_way_to_a_plane_is_the_shortest_one_inside_the_box(threat):
    generator = np.random.default_rng(0)
    reached = 0
    for _ in range(40):
        n = int(generator.integers(2, 7))
        point, normal = generator.random(n), generator.normal(size=n) * (generator.random(n) > 0.2)
        offset = normal @ generator.uniform(-0.3, 1.3, n)
        as_rows = [torch.from_numpy(part)[None] for part in (point, normal)]
        low, high = torch.zeros(1, n, dtype=torch.float64), torch.ones(1, n, dtype=torch.float64)
        move = towards_plane(threat, *as_rows, torch.tensor([offset]), low, high)[0].numpy()
        assert (point + move >= -1e-12).all()
        assert (point + move <= 1 + 1e-12).all()
        wanted = least_move(threat, point, normal, offset)
        if wanted is None:
            corner = np.where(normal * np.sign(offset - normal @ point) > 0, 1.0, 0.0)
            assert np.allclose((point + move)[normal != 0], corner[normal != 0])
            continue
        reached += 1
        assert normal @ (point + move) == pytest.approx(offset, abs=1e-9)
        assert np.linalg.norm(move, ORDER[type(threat).__name__]) == pytest.approx(wanted, abs=1e-6)
    assert reached >= 15


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), L1(1.0)])
@pytest.mark.parametrize("targets", [0, 3])
def test_nearest_is_the_exact_distance_of_a_linear_model(threat, targets):
    model, x, y = models.linear()
    run = FAB(threat, steps=30, targets=targets).nearest(model, x, y, valid=None, generator=stream())
    dual = {"Linf": 1.0, "L2": 2.0, "L1": torch.inf}[type(threat).__name__]
    logits = model(x)
    rows = model.weight[y][:, None] - model.weight[None]
    gaps = logits.gather(1, y[:, None]) - logits
    far = gaps / torch.linalg.vector_norm(rows, ord=dual, dim=2)
    far[torch.arange(len(y)), y] = torch.inf
    assert run.success.all()
    assert (model(run.x_adv).argmax(1) != y).all()
    assert torch.allclose(run.norm, threat.norm(run.x_adv - x))
    assert (run.norm >= far.amin(1) - 1e-9).all()
    assert torch.allclose(run.norm, far.amin(1).detach(), rtol=1e-4)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_nearest_point_lies_at_the_boundary_of_a_network_and_every_pass_is_counted(threat, targeted):
    model, x, y = models.trained()
    x, y = x[:30], y[:30]
    goal, seen = Targeted((y + 1) % 10) if targeted else None, []
    run = FAB(threat, steps=8, targets=0).nearest(lambda z: seen.append(len(z)) or model(z), x, y, goal=goal)
    found = run.success
    assert found.any()
    answers = model(run.x_adv).argmax(1)
    assert (answers == goal.target if targeted else answers != y)[found].all()
    assert torch.allclose(run.norm[found], threat.norm(run.x_adv - x)[found])
    back = x + (1 - 1e-3) * (run.x_adv - x)
    assert (model(back).argmax(1) == y)[found].float().mean() > (0.5 if targeted else 0.95)
    assert int(run.queries.sum()) == sum(seen) - len(x)


@pytest.mark.parametrize("threat", [Linf(0.06), L2(0.5), L1(2.0)])
def test_wins_lie_in_the_set_and_fool(threat):
    model, x, y = models.trained()
    right = model(x).argmax(1) == y
    run = FAB(threat, steps=20, targets=3, restarts=2).run(model, x, y, generator=stream())
    assert threat.contains(run.x_adv, x, (0, 1)).all()
    assert torch.equal(run.success, right & (model(run.x_adv).argmax(1) != y))
    assert run.success.any()
    assert (run.queries[~right] == 0).all()
    assert torch.equal(run.x_adv[~right], x[~right])


def test_more_steps_never_bring_the_nearest_point_further_away(monkeypatch):
    model, x, y = models.trained()
    x, y = x[:40], y[:40]
    few, many = (FAB(L2(1.0), steps=steps, targets=2).nearest(model, x, y).norm for steps in (5, 25))
    assert (many <= few * (1 + 1e-3)).all()  # a walk's nearest point may have less to gain along its own segment
    monkeypatch.setattr("holdfast.inputs.attack.fab.FINAL_STEPS", 0)
    walked, further = (FAB(L2(1.0), steps=steps, targets=2).nearest(model, x, y).norm for steps in (5, 25))
    assert (further <= walked + 1e-6).all()
    assert (few <= walked).all()
    assert (few < walked).any()


def test_a_targeted_goal_reaches_that_class():
    model, x, y = models.trained()
    goal = (y + 1) % 10
    run = FAB(L2(3.0), steps=40).run(model, x[:40], y[:40], goal=Targeted(goal[:40]))
    assert run.success.any()
    assert torch.equal(model(run.x_adv).argmax(1)[run.success], goal[:40][run.success])


def test_bad_settings_are_named():
    with pytest.raises(UnsupportedError, match="Linf, L2 or L1"):
        FAB(L0(2))
    with pytest.raises(InputError, match="steps"):
        FAB(Linf(0.1), steps=0)
    with pytest.raises(InputError, match="alpha_max"):
        FAB(Linf(0.1), beta=0.0)
