"""The ensemble is never weaker than a member, says who broke what, and symptoms fire on models that mask gradients."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.inputs.attack import symptoms
from holdfast.inputs.attack.apgd import APGD
from holdfast.inputs.attack.ensemble import StandardEnsemble, members
from holdfast.inputs.attack.gradient import PGD
from holdfast.inputs.attack.losses import Targeted, margin
from holdfast.threats import L0, L1, L2, Linf

spec = importlib.util.spec_from_file_location("attack_models", Path(__file__).with_name("models.py"))
models = importlib.util.module_from_spec(spec)
sys.modules["attack_models"] = models
spec.loader.exec_module(models)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def test_names_the_member_that_broke_each_example():
    model, x, y = models.trained()
    threat = Linf(0.06)
    ensemble = StandardEnsemble(threat, "cheap")
    run = ensemble.run(model, x, y, generator=stream())
    first = members(threat, "cheap")[0][1].run(model, x, y, generator=stream())
    right = model(x).argmax(1) == y
    assert ensemble.names == ("PGD", "APGD-T", "Square")
    assert (run.success | ~first.success).all()
    assert torch.equal(run.broken_by == 0, first.success)
    assert (run.broken_by[~right] == -2).all()
    assert torch.equal(run.broken_by == -1, right & ~run.success)
    assert torch.equal(run.success, right & (model(run.x_adv).argmax(1) != y))
    assert threat.contains(run.x_adv, x, (0, 1)).all()


def test_survivors_are_compared_by_one_measure_whatever_loss_a_member_climbs():
    model, x, y = models.trained()
    run = StandardEnsemble(Linf(0.02), "cheap").run(model, x, y, generator=stream())
    held = run.broken_by == -1
    reached = margin(model(run.x_adv), y)
    assert held.any()
    assert torch.allclose(run.best_loss[run.broken_by != -2], reached[run.broken_by != -2], atol=1e-5)
    alone = PGD(Linf(0.02), steps=10).run(model, x, y, generator=stream())
    assert (reached[held] >= margin(model(alone.x_adv), y)[held] - 1e-5).all()


def test_score_attack_breaks_what_gradients_cannot_and_the_doubts_say_so():
    model, x, y = models.trained()

    class Rounded(torch.nn.Module):
        """Zero gradient everywhere: the input is rounded."""

        def forward(self, z):
            return model((z * 32).round() / 32) + 0 * z.sum()

    run = StandardEnsemble(Linf(0.1), "cheap").run(Rounded().eval(), x[:60], y[:60], generator=stream())
    by_scores = int((run.broken_by == 2).sum())
    assert by_scores > 0
    assert symptoms.black_box_beats(by_scores, 60) is not None
    assert symptoms.black_box_beats(0, 60) is None


def test_versions_goals_and_empty_batches():
    model, x, y = models.trained()
    with pytest.raises(InputError, match="unknown ensemble version"):
        StandardEnsemble(Linf(0.1), version="huge")
    assert StandardEnsemble(L0(2), "cheap").names == ("PGD", "APGD-T")
    assert StandardEnsemble(Linf(0.1))(model, x[:0], y[:0]).shape == (0, 1, 8, 8)
    goal = Targeted((y + 1) % 10)
    run = StandardEnsemble(Linf(0.3), "cheap").run(
        model, x[:40], y[:40], generator=stream(), goal=Targeted(goal.target[:40])
    )
    assert run.success.any()
    assert torch.equal(model(run.x_adv).argmax(1)[run.success], goal.target[:40][run.success])


def test_symptoms_fire_when_they_should_and_only_then():
    model, x, _ = models.trained()
    noise = stream()
    assert symptoms.probabilities(model(x)) is None
    assert symptoms.probabilities(model(x).softmax(1)) is not None
    assert symptoms.randomness(model, x) is None
    assert symptoms.randomness(lambda z: model(z + 0.1 * torch.randn(z.shape, generator=noise)), x) is not None
    assert symptoms.zero_gradients(0, 10) is None
    assert "3 of 10" in symptoms.zero_gradients(3, 10).sentence
    assert symptoms.noise_beats(2, 2, 10, "FGSM") is None
    assert "FGSM" in symptoms.noise_beats(3, 2, 10, "FGSM").sentence
    assert symptoms.transfer_beats(2, 2, 10) is None
    assert symptoms.transfer_beats(3, 2, 10) is not None
    assert symptoms.does_not_fall(0.05, 0.1, "radius 1") is None
    assert symptoms.does_not_fall(0.5, 0.1, "radius 1") is not None
    assert symptoms.loss_not_rising(0, 10) is None
    assert symptoms.loss_not_rising(5, 10) is not None


def test_standard_is_never_weaker_than_cheap_and_runs_its_members_in_order():
    model, x, y = models.trained()
    x, y, threat = x[:6], y[:6], Linf(0.05)
    standard, cheap, adaptive = (StandardEnsemble(threat, version) for version in ("standard", "cheap", "adaptive"))
    assert standard.names == ("APGD-CE", "APGD-T", "FAB-T", "Square")
    strong, weak, quick = (ensemble.run(model, x, y, generator=stream()) for ensemble in (standard, cheap, adaptive))
    assert strong.success.sum() >= weak.success.sum()
    assert torch.equal(quick.success, strong.success)
    assert quick.queries.sum() < strong.queries.sum() / 2
    assert threat.contains(strong.x_adv, x, (0, 1)).all()


@pytest.mark.parametrize(
    ("threat", "version", "names"),
    [
        (L1(1.0), "standard", ("APGD-CE", "APGD-T", "FAB-T", "Square")),
        (L0(2), "standard", ("APGD-CE", "APGD-T")),
        (Linf(torch.tensor([0.1])), "standard", ("APGD-CE", "APGD-T", "Square")),
        (L2(1.0), "plus", ("APGD-CE", "APGD-DLR", "FAB", "Square", "APGD-T", "FAB-T")),
        (Linf(0.1), "rand", ("APGD-CE", "APGD-DLR")),
    ],
)
def test_each_version_holds_the_attacks_that_its_threat_has(threat, version, names):
    assert StandardEnsemble(threat, version).names == names


def test_rand_breaks_a_model_that_answers_at_random():
    model, x, y = models.trained()
    noise = stream(5)

    class Jittered(torch.nn.Module):
        """Adds noise to its input on every pass."""

        def forward(self, z):
            return model(z + 0.05 * torch.randn(z.shape, generator=noise))

    run = StandardEnsemble(Linf(0.2), version="rand").run(Jittered().eval(), x[:20], y[:20], generator=stream())
    still = APGD(Linf(0.2)).run(model, x[:20], y[:20], generator=stream())
    assert still.success.float().mean() >= 0.5
    assert run.success.float().mean() >= still.success.float().mean() - 0.1
