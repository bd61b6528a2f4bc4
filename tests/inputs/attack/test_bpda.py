"""Plain gradients fail on defences that have none of use; straight-through and averaged ones do not."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.inputs.attack import symptoms
from holdfast.inputs.attack.apgd import APGD
from holdfast.inputs.attack.bpda import Purified, share_fooled
from holdfast.inputs.attack.ensemble import StandardEnsemble
from holdfast.inputs.attack.gradient import PGD
from holdfast.threats import Linf

spec = importlib.util.spec_from_file_location("attack_models", Path(__file__).with_name("models.py"))
models = importlib.util.module_from_spec(spec)
sys.modules["attack_models"] = models
spec.loader.exec_module(models)

LEVELS = 6


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def quantised(x):
    """A few grey levels; the derivative is zero wherever there is one."""
    return (x * LEVELS).round() / LEVELS


class Bare(torch.nn.Module):
    """A model behind a defence, differentiated as it is."""

    def __init__(self, model, defence):
        super().__init__()
        self.model, self.defence = model, defence

    def forward(self, x):
        return self.model(self.defence(x))


def test_quantising_blinds_plain_gradients_and_not_straight_through_ones():
    model, x, y = models.trained()
    x, y, threat = x[:80], y[:80], Linf(0.15)
    bare, through = Bare(model, quantised).eval(), Purified(model, quantised)
    blind = PGD(threat, steps=20, random_start=False).run(bare, x, y)
    seeing = PGD(threat, steps=20, random_start=False).run(through, x, y)
    assert torch.equal(bare(x), through(x))
    assert blind.success.float().mean() < 0.1
    assert seeing.success.float().mean() > 0.6
    assert torch.equal(bare(seeing.x_adv).argmax(1) != y, through(seeing.x_adv).argmax(1) != y)


def test_a_better_stand_in_than_the_identity_may_be_given():
    model, x, _ = models.trained()

    def flipped(z):
        return quantised(1 - z)

    leaf = x[:5].clone().requires_grad_()
    (right,) = torch.autograd.grad(Purified(model, flipped, backward=lambda z: 1 - z)(leaf).sum(), leaf)
    (wrong,) = torch.autograd.grad(Purified(model, flipped)(leaf).sum(), leaf)
    assert torch.allclose(right, -wrong)


def test_averaged_gradients_beat_single_ones_on_a_randomised_defence():
    model, x, y = models.trained()
    x, y, threat = x[:60], y[:60], Linf(0.08)
    right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    noise = stream(3)

    def jittered(z):
        return z + 0.5 * torch.randn(z.shape, generator=noise)

    random_model = Bare(model, jittered).eval()
    assert symptoms.randomness(random_model, x) is not None
    single, averaged = (APGD(threat, steps=20, eot=eot)(random_model, x, y, generator=stream()) for eot in (1, 40))
    clean, one, many = (
        float(share_fooled(random_model, points, y, passes=60).mean()) for points in (x, single, averaged)
    )
    assert clean < many
    assert one + 0.05 < many


def test_the_defence_is_neither_trained_nor_differentiated():
    model, x, _ = models.trained()
    layer = torch.nn.Conv2d(1, 1, 1)
    defended = Purified(model, layer)
    assert not defended.training
    leaf = x[:4].clone().requires_grad_()
    defended(leaf).sum().backward()
    assert leaf.grad.abs().sum() > 0
    assert layer.weight.grad is None


def test_shapes_and_settings_that_do_not_fit_are_named():
    model, x, y = models.trained()
    with pytest.raises(InputError, match="identity"):
        Purified(model, quantised, backward="straight")
    shrinking = Purified(model, lambda z: torch.nn.functional.pad(z, (-1, -1, -1, -1)))
    with pytest.raises(InputError, match="stand-in"):
        shrinking(x[:2])
    with pytest.raises(InputError, match="at least one pass"):
        share_fooled(model, x, y, passes=0)


def test_the_ensemble_goes_through_a_defence_too():
    model, x, y = models.trained()
    threat = Linf(0.1)
    run = StandardEnsemble(threat, "cheap").run(Purified(model, quantised), x[:30], y[:30], generator=stream())
    assert threat.contains(run.x_adv, x[:30], (0, 1)).all()
    assert torch.equal(run.success, (run.broken_by >= 0))
    assert run.success.any()
