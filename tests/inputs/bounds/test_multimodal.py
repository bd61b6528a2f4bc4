"""Fusion is orthonormal, its radius is what a hand calculation says, and nothing inside a certified radius flips."""

import math

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.core.seeds import torch_generator
from holdfast.inputs.attack.gradient import PGD
from holdfast.inputs.bounds.modality_report import JoinedViews, OneView, modality_report
from holdfast.inputs.bounds.multimodal import (
    CertifiableFusionLoss,
    ConcatenationFusion,
    Fused,
    MultimodalClassifier,
    OrthogonalFusion,
    certified_lipschitz,
    empirical_lipschitz,
    multimodal_radius,
    optimise_integration,
)
from holdfast.threats.balls import L2


def encoder(inputs: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, 8))


def drawn(seed: int = 0, kind: type[ConcatenationFusion] = OrthogonalFusion, dtype=torch.float64, **options):
    """A classifier of two views of 5 and 3 values, four classes, and 12 examples."""
    generator = torch_generator(seed, "tests", "multimodal")
    fusion = kind((8, 8), 4, generator=generator, **options)
    if kind is OrthogonalFusion:
        with torch.no_grad():
            fusion.scales.copy_(torch.rand(2, 4, generator=generator) - 0.2)  # some are negative
            fusion.bias.copy_(0.1 * torch.randn(4, generator=generator))
    model = MultimodalClassifier([encoder(5, seed), encoder(3, seed + 1)], fusion).to(dtype).eval()
    views = [torch.randn(12, size, generator=generator, dtype=dtype) for size in (5, 3)]
    return model, views


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rows_are_centred_and_orthonormal_in_their_group(groups):
    fusion = OrthogonalFusion((9, 7), 4, groups, generator=torch_generator(0)).double()
    for rows in fusion.rows():
        assert rows.sum(1).abs().max() < 1e-12
        size = 4 // groups
        for part in rows.split(size):
            torch.testing.assert_close(part @ part.T, torch.eye(size, dtype=torch.float64))


def test_four_groups_are_centred_unit_rows():
    fusion = OrthogonalFusion((9, 7), 4, 4, generator=torch_generator(0)).double()
    centred = fusion.weights[0] - fusion.weights[0].mean(1, keepdim=True)
    torch.testing.assert_close(fusion.rows()[0], centred / centred.norm(dim=1, keepdim=True))


def test_orthonormal_rows_differentiate_even_where_eigenvalues_coincide():
    fusion = OrthogonalFusion((6, 6), 3, generator=torch_generator(0)).double()
    with torch.no_grad():
        fusion.weights[0].copy_(fusion.rows()[0])  # its Gram matrix is the identity

    def rows(weight):
        return torch.func.functional_call(fusion, {"weights.0": weight}, ([weight, weight],)).logits

    assert torch.autograd.gradcheck(rows, fusion.weights[0].detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(rows, fusion.weights[1].detach().clone().requires_grad_())


def test_logits_are_the_scaled_sum_and_removal_leaves_the_rest():
    model, views = drawn()
    fused = model(views)
    expected = (model.fusion.scales * fused.scores).sum(1) + model.fusion.bias
    torch.testing.assert_close(fused.logits, expected)
    left = model.fusion.scales[0] * fused.scores[:, 0] + model.fusion.bias
    torch.testing.assert_close(model.without(views, 1), left)


def test_one_linear_view_by_hand():
    # h_k = a_k <e_k, x>: the distance to the hyperplane h_0 = h_1 is (a_0 x_0 - a_1 x_1) / ||(a_0, -a_1)||.
    scales, bias = torch.tensor([[2.0, 1.0]], dtype=torch.float64), torch.tensor([0.3, 0.1], dtype=torch.float64)
    x, y = torch.tensor([[1.5, 0.5]], dtype=torch.float64), torch.tensor([0])
    margin, distance = 2 * 1.5 - 0.5 + 0.2, (2 * 1.5 - 0.5 + 0.2) / 5**0.5
    published = multimodal_radius(x[:, None], scales, torch.ones(1, 2, dtype=torch.float64), bias, y)
    assert published.item() == pytest.approx(margin / 3, abs=1e-6)
    rows = scales.T * torch.eye(2, dtype=torch.float64)
    exact = multimodal_radius(x[:, None], scales, torch.cdist(rows, rows)[None], bias, y)
    assert exact.item() == pytest.approx(distance, abs=1e-6)
    assert published.item() <= distance
    assert multimodal_radius(x[:, None], scales, torch.cdist(rows, rows)[None], bias, 1 - y).item() < 0


def test_the_joint_radius_is_below_each_modalitys_and_uses_the_size_of_negative_scales():
    generator = torch_generator(1)
    scores, bias = torch.randn(30, 2, 4, generator=generator), torch.randn(4, generator=generator)
    scales, tau = torch.randn(2, 4, generator=generator), torch.rand(2, 4, generator=generator)
    y = ((scales * scores).sum(1) + bias).argmax(1)
    joint, first, second = (multimodal_radius(scores, scales, tau, bias, y, who) for who in ("joint", 0, 1))
    assert (joint > 0).all()
    assert (joint <= torch.minimum(first, second)).all()
    torch.testing.assert_close(multimodal_radius(-scores, -scales, tau, bias, y), joint)


@pytest.mark.parametrize("kind", [OrthogonalFusion, ConcatenationFusion])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_inside_a_certified_radius_flips(seed, kind):
    model, views = drawn(seed, kind)
    joined = JoinedViews(model, views)
    x = joined.join(views)
    label = joined(x).argmax(1)
    generator = torch_generator(seed, "attack")
    targets = ("joint", 0, 1)
    for target, radius in zip(targets, model.certified_radii(views, None, targets)):
        assert (radius > 0).all()
        for i in range(3):
            ball = L2(float(radius[i]) * (1 - 1e-9))
            threat = ball if target == "joint" else OneView(ball, *joined.places[target])
            start = x[i : i + 1].expand(4, -1)
            attack = PGD(threat, steps=8, loss="margin")
            assert not attack.run(joined, start, label[i].expand(4), valid=None, generator=generator).success.any()


def test_the_attack_would_notice_a_radius_that_is_far_too_large():
    model, views = drawn(3)
    joined = JoinedViews(model, views)
    x = joined.join(views)
    far = L2(float(12 * model.certified_radius(views).max()))
    assert PGD(far, steps=20).run(joined, x, joined(x).argmax(1), valid=None).success.any()


def test_one_linear_layer_is_certified_exactly():
    generator = torch_generator(5)
    fusion = ConcatenationFusion((4, 3), 2, generator=generator).double()
    model = MultimodalClassifier([nn.Identity(), nn.Identity()], fusion).eval()
    with pytest.raises(InputError):  # nothing but the input: there is no layer to bound
        model.certified_radius([torch.zeros(1, 4), torch.zeros(2, 3)])
    layers = [nn.Linear(size, size).double() for size in (4, 3)]
    for layer in layers:
        with torch.no_grad():
            layer.weight.copy_(torch.eye(len(layer.weight)))
            layer.bias.zero_()
    model = MultimodalClassifier(layers, fusion).eval()
    views = [torch.randn(6, size, generator=generator, dtype=torch.float64) for size in (4, 3)]
    whole = torch.cat(fusion.rows(), 1)
    logits = model(views).logits
    distance = (logits[:, 0] - logits[:, 1]).abs() / (whole[0] - whole[1]).norm()
    torch.testing.assert_close(model.certified_radius(views), distance.detach(), rtol=1e-9, atol=0)


def test_certified_constants_lie_above_the_gradients_seen():
    model, views = drawn(2)
    certified, seen = certified_lipschitz(model, views), empirical_lipschitz(model, views)
    assert (seen <= certified).all()
    assert (seen > 0.02 * certified).all()
    scores = model([views[0].requires_grad_(), views[1]]).scores[:, 0, 2]
    (gradient,) = torch.autograd.grad(scores.sum(), views[0])
    torch.testing.assert_close(seen[0, 2], gradient.norm(dim=1).max())


def test_the_loss_by_hand():
    scores = torch.tensor([[[2.0, 1.0], [0.0, 3.0]]])
    logits = torch.tensor([[1.0, 0.0]])
    loss = CertifiableFusionLoss(0.5)(Fused(scores, logits), torch.tensor([0]))
    expected = math.log(1 + math.exp(-1)) + 0.5 * math.log(math.exp(-1) + math.exp(3) + 1e-5)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_integration_raises_the_radius_and_touches_only_scales():
    model, views = drawn(4, dtype=torch.float32)
    y = model(views).logits.argmax(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    history = optimise_integration(model, [(views, y)], epochs=30, learning_rate=3e-3)
    assert len(history) == 31
    assert history[-1] > history[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fusion.scales"}


def test_the_report_counts_what_it_says():
    model, views = drawn(6)
    y = model(views).logits.argmax(1)
    y[0] = (y[0] + 1) % 4
    report = modality_report(model, views, y, eps=0.5)
    assert report.accuracy.value == pytest.approx(11 / 12)
    assert report.joint_attacked.value <= min(row.attacked.value for row in report.rows) <= report.accuracy.value
    for row in report.rows:
        assert row.radius.value >= report.joint_radius.value
        assert row.removed.value == float((model.without(views, row.modality).argmax(1) == y).double().mean())
    estimated = modality_report(model, views, y, eps=0.5, lipschitz="empirical")
    assert "estimate" in estimated.table().columns[4]
    assert estimated.joint_radius.value > report.joint_radius.value
    assert len(report.table().rows) == 3


def test_measuring_and_integrating_leave_the_mode_of_every_part_alone():
    model, views = drawn(7, dtype=torch.float32)
    y = model(views).logits.argmax(1)
    model.train()
    model.encoders[1].eval()
    modes = [module.training for module in model.modules()]
    optimise_integration(model, [(views, y)], epochs=1)
    modality_report(model, views, y, eps=0.1, steps=1)
    assert [module.training for module in model.modules()] == modes


def test_a_missing_view_has_no_radius():
    model, views = drawn()
    y = model(views).logits.argmax(1)
    doors = (
        model.certified_radius,
        lambda v: certified_lipschitz(model, v),
        lambda v: empirical_lipschitz(model, v),
        lambda v: modality_report(model, v, y, eps=0.1),
    )
    for door in doors:
        for missing in (views[:1], [], [*views, views[0]]):
            with pytest.raises(InputError, match="views for 2 encoders"):
                door(missing)


@pytest.mark.parametrize("label", [-1, 4, 7])
def test_labels_that_are_no_class_are_refused(label):
    model, views = drawn()
    y = torch.full((12,), label)
    doors = (
        lambda: model.certified_radius(views, y),
        lambda: CertifiableFusionLoss()(model(views), y),
        lambda: modality_report(model, views, y, eps=0.1),
        lambda: optimise_integration(model, [(views, y)]),
    )
    for door in doors:
        with pytest.raises(InputError, match=r"labels must lie in 0\.\.3"):
            door()
    with pytest.raises(InputError, match="3 labels for 12 examples"):
        model.certified_radius(views, torch.zeros(3, dtype=torch.long))


@pytest.mark.usefixtures("unannotated")
def test_constants_of_another_name_are_refused():
    model, views = drawn()
    y = torch.zeros(12, dtype=torch.long)
    for door in (
        lambda: modality_report(model, views, y, eps=0.1, lipschitz="emprical"),
        lambda: optimise_integration(model, [(views, y)], lipschitz="emprical"),
    ):
        with pytest.raises(InputError, match="empirical or certified, got 'emprical'"):
            door()


def test_a_threat_on_one_view_moves_nothing_else():
    threat = OneView(L2(0.5), 2, 5)
    x = torch.zeros(3, 6)
    for moved in (threat.random_start(x, generator=torch_generator(0)), threat.project(x + 1, x)):
        assert (moved[:, [0, 1, 5]] == 0).all()
        assert (threat.norm(moved) <= 0.5 + 1e-6).all()
        assert (moved[:, 2:5] != 0).any()
    assert threat.norm(torch.eye(6)[:1]).item() == math.inf
    assert threat.scaled(2.0).radius == 2.0


def test_input_errors():
    with pytest.raises(InputError, match="at least two modalities"):
        OrthogonalFusion((5,), 3)
    with pytest.raises(InputError, match="widen the encoder"):
        OrthogonalFusion((5, 3), 3)
    with pytest.raises(InputError, match="groups"):
        OrthogonalFusion((5, 5), 4, groups=3)
    with pytest.raises(InputError, match="rho"):
        CertifiableFusionLoss(-1.0)
    model, views = drawn()
    with pytest.raises(InputError, match="3 views for 2 encoders"):
        model([*views, views[0]])
    broken = [views[0], torch.full_like(views[1], math.nan)]
    for door in (model.certified_radius, lambda v: empirical_lipschitz(model, v)):
        with pytest.raises(InputError, match="view 1 holds NaN"):
            door(broken)
    scores, scales, bias = torch.zeros(1, 2, 4), torch.ones(2, 4), torch.zeros(4)
    with pytest.raises(InputError, match="labels"):
        multimodal_radius(scores, scales, torch.ones(2, 4), bias, torch.tensor([4]))
    with pytest.raises(InputError, match="Lipschitz"):
        multimodal_radius(scores, scales, torch.ones(4), bias, torch.tensor([0]))
    with pytest.raises(InputError, match="negative"):
        multimodal_radius(scores, scales, -torch.ones(2, 4), bias, torch.tensor([0]))
    with pytest.raises(InputError, match="no modality 2"):
        multimodal_radius(scores, scales, torch.ones(2, 4), bias, torch.tensor([0]), 2)
    with pytest.raises(InputError, match="no scales"):
        optimise_integration(drawn(0, ConcatenationFusion)[0], [(views, torch.zeros(12, dtype=torch.long))])
    with pytest.raises(InputError, match="at least one batch"):
        optimise_integration(model, [])
    same = OrthogonalFusion((5, 5), 2)
    with torch.no_grad():
        same.weights[0].copy_(torch.ones(2, 5))
    with pytest.raises(InputError, match="dependent"):
        same([torch.zeros(1, 5), torch.zeros(1, 5)])
