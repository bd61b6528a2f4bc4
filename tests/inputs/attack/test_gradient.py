"""FGSM and PGD: closed forms on linear models, agreement with peers, and what they must never do."""

import importlib.util
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.inputs.attack.apgd import APGD
from holdfast.inputs.attack.gradient import FGSM, PGD
from holdfast.inputs.attack.loop import check_batch
from holdfast.inputs.attack.losses import Targeted
from holdfast.threats import L0, L1, L2, Box, Linf, Patch

spec = importlib.util.spec_from_file_location("attack_models", Path(__file__).with_name("models.py"))
models = importlib.util.module_from_spec(spec)
sys.modules["attack_models"] = models
spec.loader.exec_module(models)

THREATS = [Linf(0.1), L2(0.8), L1(3.0), L0(6), Box(-0.05, 0.1), Patch(3, 3), Linf(torch.linspace(0, 0.2, 12))]


def distance(model, x, y, norm):
    """Distance of every x to the nearest decision boundary of a linear model."""
    gaps = model(x) - model(x).gather(1, y[:, None])
    normals = model.weight[None] - model.weight[y][:, None]
    size = normals.abs().sum(2) if norm == "linf" else normals.norm(dim=2)
    return torch.where(torch.arange(gaps.shape[1]) == y[:, None], torch.inf, -gaps / size).amin(1)


@pytest.mark.parametrize(("norm", "threat"), [("linf", Linf), ("l2", L2)])
def test_pgd_finds_exactly_the_examples_within_reach_of_a_linear_model(norm, threat):
    model, x, y = models.linear(classes=2)
    reach = distance(model, x, y, norm).detach()
    radius = float(reach.sort().values[15:17].mean())
    run = PGD(threat(radius), steps=100, loss="margin", random_start=False).run(model, x, y, valid=(-9, 9))
    assert torch.equal(run.success, reach < radius)
    assert run.success.any()
    assert not run.success.all()


@pytest.mark.parametrize("threat", THREATS, ids=repr)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=6)
def test_never_outside_the_set_and_never_counting_what_was_wrong_already(threat, seed):
    model = models.convolutional()
    x, y = models.images(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for attack in (FGSM(threat), PGD(threat, steps=8, restarts=2)):
        run = attack.run(model, x, y, generator=generator)
        assert threat.contains(run.x_adv, x, (0, 1)).all()
        assert run.x_adv.min() >= 0
        assert run.x_adv.max() <= 1
        wrong = model(x).argmax(1) != y
        assert not run.success[wrong].any()
        assert torch.equal(run.x_adv[wrong], x[wrong])
        assert (run.queries[wrong] == 0).all()
        assert torch.equal(run.success, ~wrong & (model(run.x_adv).argmax(1) != y))
        assert (run.norm <= threat.radius * (1 + 1e-6) + 1e-6).all()


def test_fooled_examples_are_not_touched_again():
    model = models.convolutional()
    x, y = models.images(model)
    seen = []

    class Counting(torch.nn.Module):
        def forward(self, batch):
            seen.append(len(batch))
            return model(batch)

    run = PGD(Linf(0.3), steps=20, random_start=False).run(Counting().eval(), x, y)
    standing = int((model(x).argmax(1) == y).sum())
    assert run.success.any()
    assert sum(seen) == int(run.queries.sum()) + len(x)  # the clean pass is the only one not charged to an example
    assert sum(seen) < 0.8 * standing * 21  # without shrinking every step would see every standing example
    assert seen[1:-1] == sorted(seen[1:-1], reverse=True)


def test_more_steps_and_restarts_never_fool_fewer():
    model, x, y = models.trained()
    few = PGD(Linf(0.06), steps=1, random_start=False).run(model, x, y).success
    many = PGD(Linf(0.06), steps=30, restarts=3).run(model, x, y, generator=torch.Generator().manual_seed(0)).success
    assert 0 < few.sum() < many.sum()


def test_the_stream_is_the_callers_alone():
    model = models.convolutional()
    x, y = models.images(model)
    before = torch.get_rng_state()
    first, second = (
        PGD(Linf(0.03), steps=5)(model, x, y, generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert not x.requires_grad
    assert not first.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threat", [Linf(0.25), L2(1.5), L1(4.0)], ids=repr)
@pytest.mark.parametrize("make", [FGSM, PGD, partial(APGD, steps=15), partial(APGD, steps=15, targets=2)])
def test_halves_are_attacked_as_halves(make, threat, dtype):
    model = models.convolutional().to(dtype)
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = model(x).argmax(1)
    run = make(threat).run(model, x, y, generator=torch.Generator().manual_seed(0))
    assert run.x_adv.dtype == dtype
    assert threat.contains(run.x_adv, x, (0, 1)).all()
    assert run.x_adv.min() >= 0
    assert run.x_adv.max() <= 1
    assert torch.equal(run.success, model(run.x_adv).argmax(1) != y)
    single = make(threat).run(model.float(), x.float(), y, generator=torch.Generator().manual_seed(0))
    assert run.success.sum() >= single.success.sum() - 4


def test_targeted_reaches_the_class_that_was_asked_for():
    model, x, y = models.linear()
    target = (y + 1) % 4
    run = PGD(Linf(0.6), steps=50).run(model, x, y, valid=(-9, 9), goal=Targeted(target))
    assert run.success.float().mean() > 0.5
    assert torch.equal(model(run.x_adv).argmax(1)[run.success], target[run.success])
    with pytest.raises(InputError, match="targets of shape"):
        PGD(Linf(0.1))(model, x, y, goal=Targeted(target[:3]))


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_work_with_every_loss(loss, classes):
    model, x, y = models.linear(classes=classes)
    run = PGD(Linf(2.0), steps=20, loss=loss).run(model, x, y, valid=(-9, 9))
    assert run.success.float().mean() > 0.9


def test_empty_batch_and_batch_of_one():
    model, x, y = models.linear()
    assert PGD(Linf(0.1))(model, x[:0], y[:0]).shape == (0, 8)
    assert PGD(Linf(0.1))(model, x[:1], y[:1]).shape == (1, 8)


def test_fgsm_gives_the_same_tensor_as_torchattacks():
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = models.trained()
    right = model(x).argmax(1) == y
    peer = torchattacks.FGSM(model, eps=0.05)(x, y)
    assert torch.equal(FGSM(Linf(0.05))(model, x, y)[right], peer[right])


def test_pgd_is_as_strong_as_foolbox():
    foolbox = pytest.importorskip("foolbox")
    model, x, y = models.trained()
    peer_model = foolbox.PyTorchModel(model, bounds=(0, 1))
    for threat, peer in (
        (Linf(0.05), foolbox.attacks.LinfPGD(steps=40)),
        (L2(0.3), foolbox.attacks.L2PGD(steps=40)),
    ):
        _, _, theirs = peer(peer_model, x, y, epsilons=threat.radius)
        ours = PGD(threat, steps=40).run(model, x, y, generator=torch.Generator().manual_seed(0))
        fooled = ours.success | (model(x).argmax(1) != y)
        assert float(fooled.float().mean()) >= float(theirs.float().mean()) - 0.005


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m, x, y: (m.train(), x, y), "training mode"),
        (lambda m, x, y: (m, x * 255, y), "outside the valid range"),
        (lambda m, x, y: (m, x, y + 4), "labels span"),
        (lambda m, x, y: (m, x + torch.nan, y), "NaN or infinity"),
        (lambda m, x, y: (lambda z: m(z)[:, :1], x, y), "single output column"),
        (lambda m, x, y: (lambda z: m(z)[0], x, y), "was wanted"),
        (lambda m, x, y: (lambda z: m(z).detach(), x, y), "gives no gradient"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(change, says):
    model, x, y = change(*models.linear())
    with pytest.raises(InputError, match=says):
        PGD(Linf(0.1))(model, x, y)


def test_types_are_checked_at_the_door_too():
    model, x, y = models.linear()
    with pytest.raises(InputError, match="cannot be perturbed"):
        check_batch(model, (x * 255).long(), y, None)
    for labels in (y[:3], y.float()):
        with pytest.raises(InputError, match="labels must be int64"):
            check_batch(model, x, labels, None)


def test_bad_configurations_are_refused():
    for make, says in (
        (lambda: PGD(Linf(0.1), steps=0), "at least one step"),
        (lambda: PGD(Linf(0.1), step_size=-1.0), "must be positive"),
        (lambda: PGD(Linf(0.1), loss="hinge")(*models.linear()), "unknown loss"),
    ):
        with pytest.raises(InputError, match=says):
            make()
