"""Certified losses: what they equal, what they bound, what normalisation does in them, and what they refuse."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError, UnsupportedError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.bounds import Region, bounds, capture, certify, margin_spec, training
from holdfast.inputs.bounds.margins import fused_log_sum, interval_margins
from holdfast.inputs.bounds.operator import Box
from holdfast.inputs.bounds.schedule import Ramp
from holdfast.inputs.bounds.training import CertifiedLoss, FusedCertifiedLoss, SmallBoxLoss, View
from holdfast.papers.datasets import digits
from holdfast.threats import L1, L2, Linf

from .networks import NAMES, captured, drawn

VALID = (0.0, 1.0)


def batch(n: int = 5, classes: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch_generator(0, "tests", "batch")
    x = torch.rand(n, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, classes, (n,), generator=generator)


def view(name: str, x: Tensor) -> View:
    graph = captured(name)
    return View(graph.bind(x.dtype, x.device), graph.output, None)


def losses(eps: float, **options: object) -> dict[str, training.BoundLoss]:
    return {
        "ibp": CertifiedLoss("ibp", eps=eps, **options),
        "crown-ibp": CertifiedLoss("crown-ibp", eps=eps, **options),
        "mixed": CertifiedLoss("crown-ibp", eps=eps, beta=0.3, **options),
        "fused": FusedCertifiedLoss(eps=eps, **options),
        "fused, mixed": FusedCertifiedLoss(eps=eps, beta=0.3, **options),
    }


def test_ramps():
    line = Ramp(0.0, 0.4, 10, 20)
    assert [line(step) for step in (0, 10, 15, 20, 99)] == pytest.approx([0, 0, 0.2, 0.4, 0.4])
    smooth = Ramp(1.0, 0.0, 0, 1000, "smooth")
    values = np.array([smooth(step) for step in range(1001)])
    assert (values[0], values[-1]) == (1, 0)
    assert (np.diff(values) <= 0).all()
    assert np.abs(np.diff(values, 2)).max() < 2e-4  # no kink
    assert 1 - values[100] < 0.01 < 0.1 - (1 - values[100])  # gentler than the line at first
    with pytest.raises(InputError, match="must end after it begins"):
        Ramp(0, 1, 5, 5)
    with pytest.raises(InputError, match="finite ends"):
        Ramp(0, float("nan"), 0, 5)


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.3), L1(0.5)])
@pytest.mark.parametrize("name", NAMES)
def test_interval_margins_are_those_of_bounds(name, threat):
    x, y = batch(dtype=torch.float64)
    seen, region = view(name, x), Region(x, threat, VALID)
    margins = interval_margins(seen.boxes(region), seen.output, y)
    expected = bounds(captured(name), region, method="ibp", spec=margin_spec(y, captured(name).outputs))
    torch.testing.assert_close(-training.without_own(margins.upper, y), expected.lower, rtol=0, atol=1e-9)
    torch.testing.assert_close(-training.without_own(margins.lower, y), expected.upper, rtol=0, atol=1e-9)
    assert (margins.upper.gather(1, y[:, None]).abs() < 1e-12).all()


def test_an_affine_network_on_a_ball_has_its_exact_margins():
    model = drawn(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), 1)
    x, y = batch()
    lower = CertifiedLoss(eps=0.3, threat=L2(1.0), valid=None).margins(model, x, y)
    rows = margin_spec(y, 4).float() @ model[1].weight
    expected = (margin_spec(y, 4).float() @ model(x)[..., None]).squeeze(-1) - 0.3 * rows.norm(dim=2)
    torch.testing.assert_close(lower, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_cross_entropy_of_worst_case_logits(name):
    graph, (x, y) = captured(name), batch()
    spec, region = margin_spec(y, captured(name).outputs), Region(x, Linf(0.05), VALID)
    found = {
        method: bounds(graph, region, method=method, spec=spec, intersect=False).lower
        for method in ("ibp", "crown-ibp")
    }
    found["mixed"] = 0.3 * found["crown-ibp"] + 0.7 * found["ibp"]
    clean = F.cross_entropy(graph.model(x), y)
    for method, lower in found.items():
        worst = torch.log1p((-lower).exp().sum(1)).mean()
        torch.testing.assert_close(losses(0.05)[method](graph, x, y), worst, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            losses(0.05, kappa=0.25)[method](graph, x, y), 0.25 * clean + 0.75 * worst, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("threat", [Linf(1.0), L2(1.0)])
@pytest.mark.parametrize("name", NAMES)
def test_no_point_of_the_set_has_a_larger_loss(name, threat):
    graph, (x, y), eps = captured(name), batch(), 0.04 if isinstance(threat, Linf) else 0.3
    worst = {key: loss(graph, x, y).item() for key, loss in losses(eps, threat=threat).items()}
    generator, ball = torch_generator(0, "tests", "points"), threat.scaled(eps)
    point = ball.random_start(x, VALID, generator=generator)
    for step in range(15):
        point = point.detach().requires_grad_(True)
        value = F.cross_entropy(graph.model(point), y)
        assert all(value.item() <= bound + 1e-4 for bound in worst.values())
        (slope,) = torch.autograd.grad(value, point)
        point = ball.project(point + ball.steepest(slope) * 2 * eps / (1 + step), x, VALID)


@pytest.mark.parametrize("name", NAMES)
def test_fusion_is_never_looser_than_separate_bounds_with_the_same_margins(name):
    x, y = batch(dtype=torch.float64)
    graph, region = captured(name), Region(x, Linf(0.03), VALID)
    seen = view(name, x)
    state = seen.boxes(region)
    separate = bounds(graph, region, method="crown-ibp", spec=-margin_spec(y, graph.outputs), intersect=False)
    rival = torch.arange(graph.outputs) != y[:, None]
    zero = torch.zeros(len(x), graph.outputs, dtype=torch.float64)
    box = Box(zero.masked_scatter(rival, separate.lower), zero.masked_scatter(rival, separate.upper))
    together = torch.log1p(separate.upper.exp().sum(1))
    fused = fused_log_sum(state, seen.output, y, box)
    assert (fused <= together + 1e-9).all()
    assert (fused < together - 1e-6).any()  # and it is worth something
    assert (fused >= torch.logsumexp(graph.model.double()(x), 1) - graph.model(x).gather(1, y[:, None])[:, 0]).all()
    graph.model.float()


def test_fusion_survives_margins_that_overflow():
    model = drawn(nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 4)), 0, scale=100.0)
    x, y = batch()
    loss = FusedCertifiedLoss(eps=0.2)(model, x, y)
    assert loss.item() > 200  # exp(200) has no float32
    loss.backward()
    assert torch.isfinite(model[1].weight.grad).all()


@pytest.mark.parametrize("key", [*losses(0.1), "small box"])
def test_gradients_are_those_of_finite_differences(key):
    model = drawn(nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4)), 2).double()
    x, y = batch(3, dtype=torch.float64)
    if key == "small box":  # the centre is not differentiated, so it must not move
        loss = SmallBoxLoss(0.05, 1.0, kappa=0.5)
    else:
        loss = losses(0.05, kappa=0.5)[key]

    def value(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(Held(model, loss), {"model.0.weight": weight, "model.3.bias": bias}, (x, y))

    assert torch.autograd.gradcheck(value, (model[0].weight, model[3].bias), eps=1e-7, atol=1e-5)


class Held(nn.Module):
    """Model and loss in one module, whose parameters can be replaced together."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.model, x, y)


@pytest.mark.parametrize("key", losses(0.1))
def test_without_radius_or_bounds_it_is_cross_entropy(key):
    graph, (x, y) = captured("pooled"), batch()
    clean = F.cross_entropy(graph.model(x), y)
    assert losses(0.1, kappa=1.0)[key](graph, x, y) == clean
    assert losses(0.0)[key](graph, x, y) == clean


def test_the_present_parameters_count_and_the_model_is_traced_once(monkeypatch):
    traced = []
    real = training.capture
    monkeypatch.setattr(training, "capture", lambda *given: traced.append(1) or real(*given))
    model = drawn(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)), 0)
    loss, (x, y) = CertifiedLoss(eps=0.1), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = []
    for _ in range(4):
        optimizer.zero_grad()
        value = loss(model, x, y)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]
    assert len(traced) == 1
    assert loss(model, x, y).item() == CertifiedLoss(eps=0.1)(model, x, y).item()


def test_schedules_follow_advance_and_are_saved():
    graph, (x, y) = captured("multilayer"), batch()
    loss = CertifiedLoss(eps=Ramp(0.0, 0.1, 0, 2), kappa=Ramp(1.0, 0.0, 0, 2))
    values = []
    for _ in range(3):
        values.append(loss(graph, x, y).item())
        loss.advance()
    assert values[0] == F.cross_entropy(graph.model(x), y).item()
    assert values[2] == CertifiedLoss(eps=0.1)(graph, x, y).item()
    resumed = CertifiedLoss(eps=Ramp(0.0, 0.1, 0, 2), kappa=Ramp(1.0, 0.0, 0, 2))
    resumed.load_state_dict(loss.state_dict())
    for again in (resumed, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert again(graph, x, y).item() == values[2]


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(27, 4)
    )


def test_normalisation_in_training_is_bounded_with_the_statistics_of_the_clean_batch():
    model, (x, y) = drawn(normalised(), 0), batch(8)
    frozen = copy.deepcopy(model)
    inner = model[0](x).detach()
    frozen[1].running_mean, frozen[1].running_var = inner.mean((0, 2, 3)), inner.var((0, 2, 3), unbiased=False)
    model.train()
    before = model[1].running_mean.clone()
    loss = CertifiedLoss(eps=0.05)
    value = loss(model, x, y)
    torch.testing.assert_close(value, CertifiedLoss(eps=0.05)(frozen, x, y))
    assert model[1].num_batches_tracked == 1
    torch.testing.assert_close(model[1].running_mean, 0.9 * before + 0.1 * inner.mean((0, 2, 3)))
    assert model.training
    assert model[3].training
    model.eval()
    assert loss(model, x, y) != value  # now with the stored statistics
    assert model[1].num_batches_tracked == 1


def test_gradients_pass_through_the_statistics():
    model = drawn(normalised(), 0).double().train()
    model[3].eval()
    x, y = batch(4, dtype=torch.float64)
    loss = CertifiedLoss(eps=0.02)

    def value(weight: Tensor) -> Tensor:
        return torch.func.functional_call(Held(model, loss), {"model.0.weight": weight}, (x, y))

    assert torch.autograd.gradcheck(value, (model[0].weight,), eps=1e-7, atol=1e-5)
    value(model[0].weight).backward()
    # Normalisation undoes the scale of what comes in, up to its epsilon, so the slope along the weights vanishes.
    along = (model[0].weight.grad * model[0].weight).sum() + (model[0].bias.grad * model[0].bias).sum()
    assert abs(along.item()) < 1e-3 * model[0].weight.grad.norm() * model[0].weight.norm()


def test_a_small_box_of_full_size_is_the_whole_box():
    graph, (x, y) = captured("residual"), batch()
    whole = CertifiedLoss(eps=0.05)(graph, x, y)
    assert SmallBoxLoss(0.05, 1.0)(graph, x, y) == whole
    loss = [
        SmallBoxLoss(0.05, lam, generator=torch_generator(0, "tests"))(graph, x, y).item() for lam in (0.9, 0.4, 1e-6)
    ]
    assert whole.item() > loss[0] > loss[1] > loss[2]
    assert loss[2] > F.cross_entropy(graph.model(x), y).item()  # what is left is an attack


def test_the_small_box_stays_inside_the_set(monkeypatch):
    graph, (x, y) = captured("pooled"), batch()
    regions = []
    real = View.boxes
    monkeypatch.setattr(View, "boxes", lambda self, region: regions.append(region) or real(self, region))
    SmallBoxLoss(0.3, 0.25, generator=torch_generator(0, "tests"))(graph, x, y)
    lower, upper = regions[0].interval()
    outer_lower, outer_upper = Region(x, Linf(0.3), VALID).interval()
    assert (lower >= outer_lower - 1e-6).all()
    assert (upper <= outer_upper + 1e-6).all()
    assert (regions[0].x - x).abs().max() > 0.2  # the centre moved
    assert float((upper - lower).max()) == pytest.approx(0.15, abs=1e-5)


def test_a_small_box_without_a_generator_has_a_stream_of_its_own():
    graph, (x, y) = captured("pooled"), batch()

    def losses(loss: SmallBoxLoss) -> list[float]:
        return [loss(graph, x, y).item() for _ in range(3)]

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = losses(SmallBoxLoss(0.3, 0.25, steps=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert losses(SmallBoxLoss(0.3, 0.25, steps=1)) == first
    assert len(set(first)) == 3  # every batch starts elsewhere
    assert losses(SmallBoxLoss(0.3, 0.25, steps=1, generator=torch_generator(0, "small box"))) == first
    used = SmallBoxLoss(0.3, 0.25, steps=1)
    assert used(graph, x, y).item() == first[0]
    assert [losses(copy.deepcopy(used))[:2], losses(pickle.loads(pickle.dumps(used)))[:2]] == [first[1:]] * 2


def test_the_attack_leaves_running_statistics_alone():
    model, (x, y) = drawn(normalised(), 0).train(), batch(8)
    SmallBoxLoss(0.1, 0.4, generator=torch_generator(0, "tests"))(model, x, y).backward()
    assert model[1].num_batches_tracked == 1


def test_a_network_trained_to_be_certifiable_keeps_its_promise():
    images, labels = (torch.from_numpy(part) for part in digits())
    train, test, eps = slice(0, 1200), slice(1200, 1500), 0.08
    model = drawn(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)), 0)
    loss = CertifiedLoss(eps=Ramp(0.0, eps, 10, 60), kappa=Ramp(1.0, 0.3, 10, 60))
    optimizer, order = torch.optim.Adam(model.parameters(), lr=5e-3), torch_generator(0, "tests", "order")
    x, y = images[test], labels[test]
    graph = capture(model.eval(), x)
    before = certify(graph, x, y, Linf(eps), VALID, "ibp").certified.double().mean()
    model.train()
    for _ in range(8):
        for index in torch.randperm(1200, generator=order).split(100):
            optimizer.zero_grad()
            loss(graph, images[train][index], labels[train][index]).backward()
            optimizer.step()
            loss.advance()
    model.eval()
    promised = loss.margins(graph, x, y).amin(1)
    proven = certify(graph, x, y, Linf(eps), VALID, "ibp")
    torch.testing.assert_close(promised.double(), proven.margin, rtol=0, atol=1e-4)
    assert (proven.certified == (promised > 0))[promised.abs() > 1e-4].all()
    assert proven.certified.double().mean() > 0.5 > before + 0.3
    assert (certify(graph, x, y, Linf(eps), VALID, "crown").certified >= proven.certified).all()


class Shared(nn.Module):
    """One normalisation layer, two uses."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.relu(self.norm(x))).flatten(1))


class Odd(nn.Module):
    """An operator without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x.flatten(1), 1)[0]


def test_bad_input_is_refused():
    graph, (x, y) = captured("pooled"), batch()
    for options, words in (
        ({"eps": -0.1}, "eps must be finite and not negative"),
        ({"eps": float("inf")}, "eps must be finite"),
        ({"eps": 0.1, "kappa": 1.5}, r"kappa must be in \[0, 1\]"),
        ({"eps": 0.1, "beta": 0.5}, "'ibp' has none of"),
        ({"eps": 0.1, "method": "crown-ibp", "beta": Ramp(1, -1, 0, 1)}, r"beta must be in \[0, 1\]"),
    ):
        with pytest.raises(InputError, match=words):
            CertifiedLoss(**options)
    with pytest.raises(InputError, match="lam is the share"):
        SmallBoxLoss(0.1, 0.0)
    with pytest.raises(InputError, match="at least one step"):
        SmallBoxLoss(0.1, 0.5, steps=0)
    loss = CertifiedLoss(eps=0.1)
    with pytest.raises(InputError, match=r"labels must lie in 0\.\.4"):
        loss(graph, x, torch.full_like(y, 5))
    with pytest.raises(InputError, match="at least one input"):
        loss(graph, x[:0], y[:0])
    with pytest.raises(InputError, match="outside the valid range"):
        loss(graph, x + 1, y)
    with pytest.raises(InputError, match="norm is used more than once"):
        loss(drawn(Shared(), 0).train(), x, y)
    with pytest.raises(UnsupportedError, match="cummax"):
        loss(Odd(), x, y)


def test_a_view_computes_what_the_network_does():
    x, _ = batch()
    torch.testing.assert_close(view("residual", x).forward(x), captured("residual").model(x))
