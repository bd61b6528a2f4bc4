"""Auto-PGD: exact on linear models, never outside, at least as strong as PGD and as the reference."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.inputs.attack.apgd import APGD, FEWER, sparse_sign
from holdfast.inputs.attack.gradient import PGD
from holdfast.threats import L0, L1, L2, Box, Linf, Patch

spec = importlib.util.spec_from_file_location("attack_models", Path(__file__).with_name("models.py"))
models = importlib.util.module_from_spec(spec)
sys.modules["attack_models"] = models
spec.loader.exec_module(models)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("dual", "threat"), [(1, Linf), (2, L2), (float("inf"), L1)])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_exact_on_a_linear_model(dual, threat, loss):
    model, x, y = models.linear(classes=2)
    normal = model.weight[0] - model.weight[1]
    reach = ((model(x)[:, 0] - model(x)[:, 1]).abs() / normal.norm(p=dual)).detach()
    radius = float(reach.sort().values[15:17].mean())
    run = APGD(threat(radius), loss=loss).run(model, x, y, valid=(-20, 20), generator=stream())
    assert torch.equal(run.success, reach < radius)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.8), L1(3.0), L0(6), Box(-0.05, 0.1), Patch(3, 3)], ids=repr)
def test_never_outside_and_never_counting_what_was_wrong(threat):
    model = models.convolutional()
    x, y = models.images(model)
    run = APGD(threat, steps=12, targets=2).run(model, x, y, generator=stream())
    assert threat.contains(run.x_adv, x, (0, 1)).all()
    wrong = model(x).argmax(1) != y
    assert torch.equal(run.success, ~wrong & (model(run.x_adv).argmax(1) != y))
    assert torch.equal(run.x_adv[wrong], x[wrong])
    assert (run.queries[wrong] == 0).all()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_targets_are_clipped_to_the_classes_there_are(classes):
    model, x, y = models.linear(classes=classes)
    assert APGD(Linf(2.0), steps=20, targets=9).run(model, x, y, valid=(-9, 9), generator=stream()).success.all()


@pytest.mark.parametrize(("threat", "norm"), [(Linf(0.06), "Linf"), (L2(0.4), "L2")], ids=["linf", "l2"])
def test_at_least_as_strong_as_pgd_and_the_reference(threat, norm):
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = models.trained()
    ours = APGD(threat, steps=30).run(model, x, y, generator=stream()).success.sum()
    assert ours >= PGD(threat, steps=30, random_start=False).run(model, x, y).success.sum()
    peer = torchattacks.APGD(model, norm=norm, eps=threat.radius, steps=30, seed=0)(x, y)
    right = model(x).argmax(1) == y
    assert 0 < ours < right.sum()
    assert ours >= (right & (model(peer).argmax(1) != y)).sum() - 1


def test_averaged_gradients_see_through_noise():
    class Noisy(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.stream = inner, stream(3)

        def forward(self, x):
            return self.inner(x + 0.3 * torch.randn(x.shape, generator=self.stream, dtype=x.dtype))

    model, x, y = models.linear(classes=2)
    noisy = Noisy(model).eval()
    run = APGD(Linf(0.8), steps=10, eot=4).run(noisy, x, y, valid=(-9, 9), generator=stream())
    assert (run.queries[run.queries > 0] >= 5).all()
    assert run.success.any()


def test_sparse_sign_moves_a_share_of_the_coordinates_by_one_in_all():
    grad = torch.tensor([[0.1, -5.0, 3.0, 0.2, -0.3, 1.0, 0.0, 0.0, 0.0, 0.0]])
    assert sparse_sign(grad, torch.tensor([0.2])).tolist()[0][:3] == [0.0, -0.5, 0.5]
    assert sparse_sign(grad, torch.tensor([0.2])).abs().sum() == 1
    assert torch.equal(sparse_sign(torch.zeros(1, 4), torch.tensor([0.5])), torch.zeros(1, 4))


def test_sparse_steps_narrow_to_one_of_few_coordinates():
    grad = torch.tensor([[3.0, 2.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0]])
    for share, moved in ((3 / 8 / FEWER, 2), (2 / 8 / FEWER, 1), (1 / 8 / FEWER, 1), (0.0, 1)):
        assert int((sparse_sign(grad, torch.tensor([share])) != 0).sum()) == moved


def test_bad_configuration():
    with pytest.raises(InputError, match="steps=0"):
        APGD(Linf(0.1), steps=0)
