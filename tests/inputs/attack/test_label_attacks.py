"""Attacks that see labels only: HopSkipJump and exhaustive shifts."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from holdfast.core.errors import UnsupportedError
from holdfast.inputs.attack.hopskipjump import HopSkipJump
from holdfast.inputs.attack.loop import Search
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
