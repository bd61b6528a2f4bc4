"""What every attack owes its caller, whatever it is: points inside, honest successes, a model left as it was, clear
refusals.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.errors import HoldfastError, InputError
from holdfast.inputs.attack.apgd import APGD
from holdfast.inputs.attack.ensemble import StandardEnsemble, members
from holdfast.inputs.attack.fab import FAB
from holdfast.inputs.attack.gradient import FGSM, PGD
from holdfast.inputs.attack.hope import given_up
from holdfast.inputs.attack.hopskipjump import HopSkipJump
from holdfast.inputs.attack.losses import Targeted
from holdfast.inputs.attack.noise import RandomNoise
from holdfast.inputs.attack.record import evaluate
from holdfast.inputs.attack.square import Square
from holdfast.threats import L1, L2, Linf, Patch

spec = importlib.util.spec_from_file_location("attack_models", Path(__file__).with_name("models.py"))
models = importlib.util.module_from_spec(spec)
sys.modules["attack_models"] = models
spec.loader.exec_module(models)

MAKERS = {
    "FGSM": FGSM,
    "PGD": lambda threat: PGD(threat, steps=5, restarts=2),
    "APGD": lambda threat: APGD(threat, steps=15),
    "APGD-T": lambda threat: APGD(threat, steps=15, targets=2, restarts=2, hope=0.3),
    "FAB": lambda threat: FAB(threat, steps=8, targets=0),
    "FAB-T": lambda threat: FAB(threat, steps=12, targets=2, restarts=2, hope=0.3),
    "Square": lambda threat: Square(threat, queries=60, hope=0.3),
    "HopSkipJump": lambda threat: HopSkipJump(threat, iterations=2, initial_evals=10, tries=10),
    "noise": lambda threat: RandomNoise(threat, draws=3),
}
PAIRS = [
    (name, threat)
    for name in MAKERS
    for threat in (Linf(0.08), L2(0.6), L1(2.5))
    if not (name == "HopSkipJump" and isinstance(threat, L1))
]
each_pair = pytest.mark.parametrize(("name", "threat"), PAIRS, ids=[f"{name}-{threat!r}" for name, threat in PAIRS])


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def excess(threat, x_adv, x):
    """How far outside the set each point lies, in float64, every coordinate granted one unit in its last place."""
    change = (x_adv.double() - x.double()).abs()
    unit = torch.finfo(x.dtype).eps * torch.maximum(x.abs(), x_adv.abs()).double()
    return threat.norm((change - unit).clamp(min=0)) - threat.radius


@each_pair
@given(seed=st.integers(0, 10_000))
@settings(max_examples=4, deadline=None)
def test_inside_to_the_last_place_and_honest_about_success(name, threat, seed):
    model = models.convolutional(seed=seed % 7)
    x, y = models.images(model, seed=seed, batch=20)
    kept = x.clone()
    run = MAKERS[name](threat).run(model, x, y, generator=stream(seed))
    wrong = model(x).argmax(1) != y
    # Norms of many coordinates are themselves sums of rounded numbers; a part in ten million is below that.
    assert (excess(threat, run.x_adv, x) <= 1e-7 * max(1.0, threat.radius)).all()
    assert run.x_adv.min() >= 0
    assert run.x_adv.max() <= 1
    assert torch.equal(run.success, ~wrong & (model(run.x_adv).argmax(1) != y))
    assert torch.equal(run.x_adv[wrong], x[wrong])
    assert (run.queries[wrong] == 0).all()
    assert torch.equal(x, kept)
    assert not run.x_adv.requires_grad


@pytest.mark.parametrize("name", MAKERS)
def test_the_model_is_left_as_it_was(name):
    model = models.convolutional()
    model[0].weight.requires_grad_(False)
    x, y = models.images(model, batch=12)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    needs = [parameter.requires_grad for parameter in model.parameters()]
    MAKERS[name](Linf(0.08))(model, x, y, generator=stream())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == needs
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_rows_of_features_one_example_and_none(name, classes):
    model, x, y = models.linear(classes=classes, dtype=torch.float32)
    attack = MAKERS[name](Linf(0.6))
    run = attack.run(model, x[:8], y[:8], valid=(-3, 3), generator=stream())
    assert torch.equal(run.success, model(run.x_adv).argmax(1) != y[:8])
    for few in (1, 0):
        assert attack(model, x[:few], y[:few], valid=(-3, 3), generator=stream()).shape == (few, 8)


@pytest.mark.parametrize("name", MAKERS)
def test_images_of_any_proportions_and_nobody_left_to_attack(name):
    model = models.convolutional(channels=3)
    x = torch.rand(6, 3, 9, 17, generator=stream(2))
    y = model(x).argmax(1)
    attack = MAKERS[name](Linf(0.08))
    assert attack(model, x, y, generator=stream()).shape == x.shape
    run = attack.run(model, x, (y + 1) % 10, generator=stream())
    assert torch.equal(run.x_adv, x)
    assert not run.success.any()
    assert not run.queries.any()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m, x, y: (m.train(), x, y), "training mode"),
        (lambda m, x, y: (m, x * 255, y), "outside the valid range"),
        (lambda m, x, y: (m, x, y + 10), "labels span"),
        (lambda m, x, y: (m, x + torch.nan, y), "NaN or infinity"),
    ],
    ids=["training", "range", "classes", "nan"],
)
def test_every_attack_refuses_what_does_not_fit(name, change, says):
    model = models.convolutional()
    x, y = models.images(model, batch=8)
    model, x, y = change(model, x, y)
    with pytest.raises(InputError, match=says):
        MAKERS[name](Linf(0.08))(model, x, y)


@pytest.mark.parametrize("name", [*MAKERS, "ensemble"])
@pytest.mark.parametrize(
    ("target", "says"),
    [
        (torch.full((8,), 10), "targets span 10 to 10, but the model has 10 classes"),
        (torch.full((8,), -1), "targets span -1 to -1"),
        (torch.zeros(8), "whole numbers"),
        (torch.zeros(3).long(), "targets of shape"),
        (1, "of type int"),
    ],
    ids=["large", "negative", "float", "short", "number"],
)
def test_targets_that_are_no_class_are_refused_before_any_query(name, target, says, as_users_run_it):
    model, passes = models.convolutional(), []
    x, y = models.images(model, batch=8)
    make = MAKERS.get(name, lambda threat: StandardEnsemble(threat, "cheap"))
    with pytest.raises(InputError, match=says):
        make(Linf(0.08))(lambda z: passes.append(len(z)) or model(z), x, y, goal=Targeted(target))
    assert sum(passes) <= len(x)  # the clean logits say how many classes there are


@pytest.mark.parametrize("name", [*MAKERS, "ensemble"])
def test_whole_numbers_of_any_type_are_labels_and_targets(name):
    model = models.convolutional()
    x, y = models.images(model, batch=8)
    attack = MAKERS.get(name, lambda threat: StandardEnsemble(threat, "cheap"))(Linf(0.3))
    target = (y + 1) % 10
    for goal in (None, Targeted(target)):
        narrow = None if goal is None else Targeted(target.int())
        wide = attack.run(model, x, y, goal=goal, generator=stream())
        run = attack.run(model, x, y.int(), goal=narrow, generator=stream())
        assert torch.equal(run.x_adv, wide.x_adv)
        assert torch.equal(run.success, wide.success)


@pytest.mark.parametrize("name", [*MAKERS, "ensemble"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m, x, y: (m, x.numpy(), y.numpy()), "inputs are of type ndarray"),
        (lambda m, x, y: (m, x.tolist(), y), "inputs are of type list"),
        (lambda m, x, y: (m, x, y.tolist()), "labels are of type list"),
        (lambda m, x, y: (m, x, y.float()), "labels must be int64"),
        (lambda m, x, y: (m, x, y[:3]), "labels must be int64"),
        (lambda m, x, y: (lambda z: (m(z), None), x, y), "answers with tuple"),
        (lambda m, x, y: (lambda z: {"logits": m(z)}, x, y), "answers with dict"),
    ],
    ids=["numpy", "list", "label list", "float labels", "few labels", "tuple", "dict"],
)
def test_what_is_no_tensor_is_refused(name, change, says, as_users_run_it):
    model = models.convolutional()
    model, x, y = change(model, *models.images(model, batch=8))
    attack = MAKERS.get(name, lambda threat: StandardEnsemble(threat, "cheap"))(Linf(0.08))
    with pytest.raises(InputError, match=says):
        attack(model, x, y)
    if name == "ensemble":
        with pytest.raises(InputError, match=says):
            evaluate(attack, model, x, y)


def test_a_threat_that_does_not_fit_the_data_is_named():
    model, x, y = models.linear(dtype=torch.float32)
    for attack in (PGD(Patch(2, 2)), APGD(Patch(2, 2))):
        with pytest.raises(HoldfastError, match="needs images"):
            attack(model, x, y, generator=stream())
    big = models.convolutional()
    x, y = models.images(big, batch=4)
    with pytest.raises(HoldfastError, match="does not fit"):
        PGD(Patch(40, 40))(big, x, y, generator=stream())


def test_hope_is_a_share_of_the_budget():
    left, done = torch.tensor([0.9, 1.1, 0.1]), torch.tensor([1.0, 1.0, 0.0])
    assert given_up(left, done, 0.1, 0.1).tolist() == [False, True, True]
    assert given_up(left, done, 0.5, 0.1).tolist() == [True, True, True]
    assert given_up(left, 1.0, 0.01, 0.1).tolist() == [False, False, False]
    for make in (APGD, FAB, Square):
        with pytest.raises(InputError, match="hope"):
            make(Linf(0.1), hope=0.0)


@pytest.mark.parametrize("threat", [Linf(0.06), L2(0.4), L1(0.7)], ids=repr)
def test_giving_up_saves_passes_and_loses_next_to_nothing(threat):
    model, x, y = models.trained()
    x, y = x[:40], y[:40]
    spent, broken = {}, {}
    for hope in (None, 0.3):
        attack = APGD(threat, steps=40, targets=3, hope=hope)
        run = attack.run(model, x, y, generator=stream())
        spent[hope], broken[hope] = int(run.queries.sum()), run.success
    assert spent[0.3] < 0.7 * spent[None]
    assert int((broken[None] & ~broken[0.3]).sum()) <= 1


def test_adaptive_has_the_members_of_standard():
    for threat in (Linf(0.1), L2(1.0), L1(3.0), Patch(2, 2)):
        adaptive, standard = (dict(members(threat, version)) for version in ("adaptive", "standard"))
        assert list(adaptive) == list(standard)
        assert all(attack.hope is not None for attack in adaptive.values())
        assert all(attack.hope is None for attack in standard.values())
