"""Attacks that see labels only: HopSkipJump and exhaustive shifts."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.inputs.attack.hopskipjump import HopSkipJump
from holdfast.inputs.attack.loop import Search
from holdfast.inputs.attack.losses import Targeted
from holdfast.inputs.attack.noise import RandomNoise
from holdfast.inputs.attack.shifts import ShiftAttack
from holdfast.threats import L1, L2, Box, Linf, Translation

spec = importlib.util.spec_from_file_location("attack_models", Path(__file__).with_name("models.py"))
models = importlib.util.module_from_spec(spec)
sys.modules["attack_models"] = models
spec.loader.exec_module(models)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def labels_only(model):
    return lambda x: torch.nn.functional.one_hot(model(x).argmax(1), model.weight.shape[0]).to(x.dtype)


@pytest.mark.parametrize(("threat", "dual"), [(L2(0.5), 2), (Linf(0.2), 1)], ids=["l2", "linf"])
def test_comes_close_to_the_boundary_of_a_linear_model_and_never_closer(threat, dual):
    model, x, y = models.linear(classes=2)
    blind = labels_only(model)
    search = Search.begin(blind, threat, x, y, (-9, 9), None, "margin")
    rows, point = HopSkipJump(threat, iterations=15).minimise(search, stream())
    normal = model.weight[0] - model.weight[1]
    exact = ((model(x)[:, 0] - model(x)[:, 1]).abs() / normal.norm(p=dual)).detach()[rows]
    ratio = threat.norm(point - x[rows]) / exact
    assert len(rows) == len(x)
    assert (blind(point).argmax(1) != y[rows]).all()
    assert (ratio >= 1 - 1e-9).all()
    assert ratio.median() < 1.25


@pytest.mark.parametrize(
    ("threat", "dual", "features", "most"),
    [(Linf(0.03), 1, 784, 1.5), (L2(1.0), 2, 784, 1.25), (L2(1.0), 2, 3072, 1.6)],
    ids=["linf-784", "l2-784", "l2-3072"],
)
def test_comes_as_close_with_many_features(threat, dual, features, most):
    """The bisection leaves a point nearer to the boundary than its probes reach, in float32 too."""
    model, x, y = models.linear(features=features, classes=2, dtype=torch.float32)
    x, y = x[:3], y[:3]
    normal = model.weight[0] - model.weight[1]
    exact = ((model(x)[:, 0] - model(x)[:, 1]).abs() / normal.norm(p=dual)).detach()
    blind, passes = labels_only(model), []
    search = Search.begin(lambda z: passes.append(len(z)) or blind(z), threat, x, y, (0, 1), None, "margin")
    passes.clear()
    rows, point = HopSkipJump(threat, iterations=15).minimise(search, stream())
    assert sorted(rows.tolist()) == [0, 1, 2]
    ratio = threat.norm(point - x[rows]) / exact[rows]
    assert (ratio >= 1 - 1e-3).all()
    assert (ratio < most).all()
    assert int(search.queries.sum()) == sum(passes)


def test_probes_are_made_a_few_at_a_time_and_none_is_lost(monkeypatch):
    model, x, y = models.linear(classes=2)
    blind, seen = labels_only(model), []
    point = x + 0.0
    direction = {}
    for elements in (1 << 24, 7 * x.numel()):
        monkeypatch.setattr("holdfast.inputs.attack.hopskipjump.PROBE_ELEMENTS", elements)
        seen.clear()
        search = Search.begin(lambda z: seen.append(len(z)) or blind(z), L2(0.5), x, y, (-9, 9), None, "margin")
        seen.clear()
        near = torch.full((len(x),), 5.0, dtype=x.dtype)
        attack = HopSkipJump(L2(0.5))
        direction[elements] = attack._normal(search, torch.arange(len(x)), point, near, 1000, stream())
        assert sum(seen) == 1000 * len(x)
    assert max(seen) <= 7 * len(x)
    whole, pieces = direction.values()
    assert ((whole * pieces).sum(1) > 0.95).all()


@pytest.mark.parametrize("threat", [L2(0.6), Linf(0.1), Linf(torch.linspace(0, 0.2, 8)), Box(-0.05, 0.2)], ids=repr)
def test_stays_inside_and_beats_noise(threat):
    model, x, y = models.trained()
    x, y = x[:60], y[:60]
    run = HopSkipJump(threat, iterations=3, initial_evals=40).run(model, x, y, generator=stream())
    noise = RandomNoise(threat, draws=10).run(model, x, y, generator=stream())
    assert threat.contains(run.x_adv, x, (0, 1)).all()
    assert run.success.sum() > noise.success.sum()
    wrong = model(x).argmax(1) != y
    assert torch.equal(run.x_adv[wrong], x[wrong])
    assert torch.equal(run.success, ~wrong & (model(run.x_adv).argmax(1) != y))


def test_a_model_that_never_errs_is_not_broken():
    x = torch.rand(3, 4)
    run = HopSkipJump(L2(0.1), iterations=1, tries=5).run(
        lambda z: torch.eye(3)[torch.zeros(len(z)).long()], x, torch.zeros(3).long()
    )
    assert not run.success.any()
    assert torch.equal(run.x_adv, x)
    with pytest.raises(UnsupportedError, match="L1"):
        HopSkipJump(L1(1.0))


@pytest.mark.parametrize("threat", [L2(0.01), Linf(0.001)], ids=repr)
def test_uniform_noise_over_the_valid_range_is_tried_first(threat):
    """Far from the boundary no ball of a hundred small radii holds a wrong answer; the valid range does."""
    seen = []

    def model(z):
        seen.append(z)
        bright = z.flatten(1).mean(1) - 0.25
        return torch.stack([-bright, bright], 1)

    x, valid = torch.zeros(4, 30), (0, 1)
    search = Search.begin(model, threat, x, torch.zeros(4).long(), valid, None, "margin")
    seen.clear()
    rows, point = HopSkipJump(threat)._misclassified(search, stream())
    assert len(rows) == 4
    assert len(seen) == 1
    assert (point >= 0).all()
    assert (point <= 1).all()
    assert point.max() > 0.9
    seen.clear()
    harmless = Search.begin(lambda z: model(z - 9), threat, x, torch.zeros(4).long(), valid, None, "margin")
    seen.clear()
    assert not len(HopSkipJump(threat, tries=15)._misclassified(harmless, stream())[0])
    assert len(seen) == 30
    assert all(points.max() > 0.9 - 9 for points in seen[:15])
    assert all(points.max() <= 0.9 - 9 for points in seen[15:])


def test_what_a_threat_holds_fixed_is_not_drawn_anew():
    x = torch.full((3, 8), 0.5)
    for threat, low, high in (
        (Linf(torch.linspace(0, 0.2, 8)), 0.0, 1.0),
        (Box(torch.tensor([0.0] + [-0.1] * 7), torch.tensor([0.2] * 7 + [0.0])), 0.0, 1.0),
    ):
        search = Search.begin(
            lambda z: torch.eye(2)[torch.ones(len(z)).long()], threat, x, torch.ones(3).long(), (0, 1), None, "margin"
        )
        lowest, highest = HopSkipJump(threat)._limits(search.x, (low, high))
        free = threat.scaled(1e6 * threat.radius).interval(x, (low, high))
        assert torch.equal(lowest, free[0])
        assert torch.equal(highest, free[1])


@pytest.mark.parametrize("threat", [L2(2.5), Linf(0.4)], ids=repr)
def test_given_points_start_a_targeted_search(threat):
    model, x, y = models.trained()
    right = (model(x).argmax(1) == y).nonzero().squeeze(1)
    x, y = x[right][:60], y[right][:60]
    target = (y + 1) % 10
    start = torch.stack([x[(y == wanted).nonzero()[0, 0]] for wanted in target])
    attack, goal = HopSkipJump(threat, iterations=6), Targeted(target)
    run = attack.run(model, x, y, goal=goal, start=start, generator=stream())
    assert run.success.float().mean() > 0.5
    assert torch.equal(run.success, model(run.x_adv).argmax(1) == target)
    assert threat.contains(run.x_adv, x, (0, 1)).all()
    assert torch.equal(run.x_adv, attack(model, x, y, goal=goal, start=start, generator=stream()))
    assert run.success.sum() > attack.run(model, x, y, goal=goal, generator=stream()).success.sum()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, start: start[:3], "must be like the inputs"),
        (lambda x, start: start.double(), "must be like the inputs"),
        (lambda x, start: start + 2, "leave the valid range"),
        (lambda x, start: start * torch.nan, "leave the valid range"),
        (lambda x, start: x.clone(), "not adversarial"),
    ],
    ids=["short", "float64", "range", "nan", "clean"],
)
def test_starting_points_that_do_not_fit_are_refused(change, says, as_users_run_it):
    model, x, y = models.trained()
    right = (model(x).argmax(1) == y).nonzero().squeeze(1)
    x, y = x[right][:8], y[right][:8]
    start = torch.stack([x[(y != own).nonzero()[0, 0]] for own in y])
    attack = HopSkipJump(L2(1.0), iterations=1)
    attack(model, x, y, start=start, generator=stream())
    with pytest.raises(InputError, match=says):
        attack(model, x, y, start=change(x, start), generator=stream())


@pytest.mark.parametrize("edge", ["zeros", "edge", "cyclic"])
def test_shifts_are_exhaustive(edge):
    model, x, y = models.trained()
    threat = Translation(1, edge)
    run = ShiftAttack(threat).run(model, x, y)
    right = model(x).argmax(1) == y
    answers = torch.stack([model(view).argmax(1) for view in threat.views(x)])
    assert torch.equal(run.success, right & (answers != y).any(0))
    assert run.success.any()
    assert threat.contains(run.x_adv, x).all()
