"""Mixing two classifiers: what the formula says, what the certificates promise, and that attacks see all of it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.attack.gradient import PGD
from holdfast.inputs.smoothing.mean import SmoothedProbabilities
from holdfast.inputs.smoothing.mixture import (
    MixedClassifier,
    MixingLoss,
    MixingPolicy,
    _least_gaps,
    mixing_curve,
    published_radius,
    smoothed_radius,
    train_policy,
)
from holdfast.threats.balls import L2, Linf


def network(seed, inputs=6, classes=4, hidden=16):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    for parameter in model.parameters():
        nn.init.normal_(parameter.data, std=0.7, generator=generator)
    return model.eval()


class Constant(nn.Module):
    """The same logits for every input."""

    def __init__(self, probabilities):
        super().__init__()
        self.register_buffer("logits", torch.tensor(probabilities).log())

    def forward(self, x):
        return self.logits.expand(len(x), -1) + 0 * x.flatten(1).sum(1, keepdim=True)


def points(n=20, inputs=6, seed=9):
    return torch.rand(n, inputs, generator=torch.Generator().manual_seed(seed))


def test_probabilities_are_mixed_not_logits():
    g, h = Constant([0.7, 0.2, 0.1]), Constant([0.1, 0.6, 0.3])
    mixed = MixedClassifier(g, h, alpha=0.75)(torch.zeros(1, 2)).exp()
    torch.testing.assert_close(mixed, torch.tensor([[0.25, 0.5, 0.25]]))


def test_scales_sharpen_each_part():
    g, h = network(0), network(1)
    x = points()
    mixed = MixedClassifier(g, h, 0.6, scale_standard=2, scale_robust=3)(x).exp()
    wanted = 0.4 * torch.softmax(2 * g(x), 1) + 0.6 * torch.softmax(3 * h(x), 1)
    torch.testing.assert_close(mixed, wanted)


@pytest.mark.parametrize(("alpha", "part"), [(0, 0), (1, 1)])
def test_the_ends_are_the_parts_also_in_their_gradients(alpha, part):
    models, x = (network(0), network(1)), points().requires_grad_()
    mixed = MixedClassifier(*models, alpha=alpha)(x)
    alone = torch.log_softmax(models[part](x), 1)
    torch.testing.assert_close(mixed, alone)
    (ours,), (theirs,) = (torch.autograd.grad(out[:, 0].sum(), x) for out in (mixed, alone))
    torch.testing.assert_close(ours, theirs)


shares = st.floats(1e-9, 1 - 1e-9)


@given(shares, shares, st.floats(0.5, 1.0), st.floats(0.05, 3.0))
def test_our_smoothed_radius_is_never_below_the_published_one(p_label, share, alpha, sigma):
    p_rival = share * (1 - p_label)
    arguments = (np.array([p_label]), np.array([p_rival]), np.array([alpha]), sigma)
    # The normal quantile multiplies the rounding of a probability of 1 - 1e-9 by 1.6e8: radii are known to 2e-8 there.
    assert smoothed_radius(*arguments)[0] >= published_radius(*arguments)[0] - 1e-7 * sigma


@given(shares, shares, st.floats(0.5, 1.0))
def test_at_the_smoothed_radius_the_gap_is_what_the_mixture_needs(p_label, share, alpha):
    p_rival = share * (1 - p_label)
    radius = smoothed_radius(np.array([p_label]), np.array([p_rival]), np.array([alpha]), 1.0)[0]
    if radius > 0:
        lost = ndtr(radius - ndtri(p_label)) + ndtr(radius + ndtri(p_rival))
        assert lost <= (2 * alpha - 1) / alpha
        beyond = radius * (1 + 1e-6) + 1e-9
        assert ndtr(beyond - ndtri(p_label)) + ndtr(beyond + ndtri(p_rival)) > (2 * alpha - 1) / alpha * (1 - 1e-12)


def test_with_all_the_weight_the_radius_is_the_usual_one_of_smoothing():
    p, q = np.array([0.9, 0.7, 0.4]), np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(smoothed_radius(p, q, np.ones(3), 0.5), 0.25 * (ndtri(p) - ndtri(q)), atol=1e-12)


def test_with_half_the_weight_nothing_is_certified_even_where_floating_point_sees_no_doubt():
    p = np.array([0.9, 1 - 1e-16])
    assert (smoothed_radius(p, 1 - p, np.full(2, 0.5), 1.0) == 0).all()


def test_a_certain_answer_has_no_limit():
    assert smoothed_radius(np.ones(1), np.zeros(1), np.array([0.6]), 1.0)[0] == np.inf


def test_an_impossible_rival_leaves_the_loss_of_the_label():
    """With no rival at all the answer holds until its own probability is down to (1 - a)/a."""
    radius = smoothed_radius(np.array([0.9]), np.array([0.0]), np.array([0.8]), 2.0)[0]
    assert radius == pytest.approx(2 * (ndtri(0.9) - ndtri(0.25)))


def test_the_smoothed_radius_is_exact_for_a_half_space():
    """h smoothed from the side of a half-space, g all on the other side: the mixture turns exactly at the radius."""
    for p, alpha in [(0.95, 0.8), (0.99, 0.55), (0.8, 1.0)]:
        radius = smoothed_radius(np.array([p]), np.array([1 - p]), np.array([alpha]), 1.0)[0]
        for share, wins in [(0.999, True), (1.001, False)]:
            own = ndtr(ndtri(p) - share * radius)
            assert (alpha * own > alpha * (1 - own) + 1 - alpha) == wins


def test_lipschitz_radius_of_hand_made_numbers():
    h = Constant([0.7, 0.2, 0.1])
    found = MixedClassifier(network(0, 2, 3), h, alpha=0.8).certify_lipschitz(
        torch.zeros(1, 2), torch.tensor([0.5, 0.25, 2.0])
    )
    assert found.label.item() == 0
    wanted = min((0.8 * 0.5 - 0.2) / (0.8 * 0.75), (0.8 * 0.6 - 0.2) / (0.8 * 2.5))
    assert found.radius.item() == pytest.approx(wanted)


def test_no_attack_within_a_lipschitz_radius_succeeds():
    h = nn.Linear(6, 3).eval()
    nn.init.normal_(h.weight, generator=torch.Generator().manual_seed(4))
    mixed = MixedClassifier(network(2, 6, 3), h, alpha=0.9, scale_robust=2).eval()
    x = points(200)
    logits = 2 * float(torch.linalg.matrix_norm(h.weight.detach().double(), 2))
    found = mixed.certify_lipschitz(x, logits * 2**0.5 / 4)
    some = found.radius > 0
    assert some.sum() > 20
    for row in some.nonzero().squeeze(1)[:25]:
        threat = L2(float(found.radius[row]))
        run = PGD(threat, steps=20).run(mixed, x[row : row + 1], found.label[row : row + 1], valid=None)
        assert not bool(run.success)
        assert mixed(x[row : row + 1]).argmax() == found.label[row]


def test_no_attack_within_bounds_succeeds_and_certificates_grow_with_the_weight():
    g, h, x = network(5), network(6), points(40)
    threat, counts = Linf(0.02), []
    for alpha in (0.5, 0.75, 0.95):
        mixed = MixedClassifier(g, h, alpha, scale_robust=3).eval()
        found = mixed.certify_bounds(x, threat)
        counts.append(int(found.certified.sum()))
        label = h(x).argmax(1)
        run = PGD(threat, steps=20).run(mixed, x, label, valid=None)
        assert not bool((run.success & found.certified).any())
        gap = mixed(run.x_adv).exp().double()
        gap = gap.gather(1, label[:, None]) - gap.scatter(1, label[:, None], -1).amax(1, keepdim=True)
        assert bool((gap.squeeze(1) >= found.margin - 1e-6).all())
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] > 10


@given(margins=st.lists(st.floats(-40, 40), min_size=1, max_size=6), shares=st.data())
def test_no_probabilities_with_these_margins_have_a_smaller_gap(margins, shares):
    lower = torch.tensor([margins], dtype=torch.float64)
    above = torch.tensor([[shares.draw(st.floats(0, 60)) for _ in margins]], dtype=torch.float64)
    h = torch.softmax(torch.cat([torch.zeros(1, 1), -(lower + above)], 1), 1)
    assert bool((h[:, :1] - h[:, 1:] >= _least_gaps(lower) - 1e-12).all())


def test_the_smallest_gap_is_attained_in_the_limit():
    lower = torch.tensor([[0.3, 1.0, -0.5]], dtype=torch.float64)
    for i in range(3):
        others = torch.full_like(lower, 60.0) if lower[0, i] < 0 else lower.clone()
        others[0, i] = lower[0, i]
        h = torch.softmax(torch.cat([torch.zeros(1, 1), -others], 1), 1)
        assert float(h[0, 0] - h[0, 1 + i]) == pytest.approx(float(_least_gaps(lower)[0, i]), abs=1e-12)


def test_the_margin_of_bounds_holds_where_a_rival_may_overtake():
    """Many classes, one slightly ahead: the worst input sinks all the others, and one rival overtakes."""
    mixed = MixedClassifier(network(0, 10, 10), nn.Identity(), 0.9).eval()
    x = torch.zeros(1, 10)
    x[0, 0] = 0.01
    found = mixed.certify_bounds(x, Linf(0.5))
    corner = torch.full((1, 10), -0.5)
    corner[0, :2] = torch.tensor([-0.49, 0.5])
    samples = x + torch.rand(2000, 10, generator=torch.Generator().manual_seed(0)) - 0.5
    h = torch.softmax(torch.cat([corner, samples]).double(), 1)
    attained = 0.9 * (h[:, :1] - h[:, 1:]).amin(1) - 0.1
    assert attained.min() == attained[0]
    assert float(attained[0]) == pytest.approx(-0.2311, abs=1e-4)
    assert bool((found.margin <= attained + 1e-7).all())
    assert float(found.margin) > -0.6  # and is not thrown away


def test_smoothed_certificates_from_draws_and_the_attack_on_the_mixture():
    base = network(7, hidden=32)
    h = SmoothedProbabilities(base, sigma=0.3, copies=200, scale=4.0).eval()
    mixed = MixedClassifier(network(8), h, alpha=0.9).eval()
    x = points(12)
    lower, upper = h.interval(x, n=3000)
    found = mixed.certify_smoothed(x, 0.3, lower, upper)
    rows = (found.radius > 0).nonzero().squeeze(1)
    assert len(rows) >= 4
    for row in rows:
        attack = PGD(L2(float(found.radius[row])), steps=15)
        assert not bool(attack.run(mixed, x[row : row + 1], found.label[row : row + 1], valid=None).success)


def test_means_lie_within_their_bounds_and_passes_repeat():
    h = SmoothedProbabilities(network(3), sigma=0.5, copies=4000, batch=700).eval()
    x = points(3)
    lower, upper = h.interval(x, n=2000, generator=torch.Generator().manual_seed(1))
    mean = h(x).exp().detach()
    assert torch.equal(mean, h(x).exp())
    assert bool(((lower - 0.01 <= mean) & (mean <= upper + 0.01)).all())
    assert bool((upper - lower < 0.1).all())
    torch.testing.assert_close(mean.sum(1), torch.ones(3))
    torch.testing.assert_close(h(x[1:2]).exp(), mean[1:2])


def test_means_of_a_linear_gate_are_exact_in_the_limit():
    """sigmoid(c z) of Gaussian z tends to Phi for large c."""
    base = nn.Linear(1, 2, bias=False)
    nn.init.constant_(base.weight, 0.0)
    base.weight.data[0, 0] = 1000.0
    h = SmoothedProbabilities(base, sigma=2.0)
    lower, upper = h.interval(torch.tensor([[1.0]]), n=20_000)
    assert lower[0, 0] <= ndtr(0.5) <= upper[0, 0]
    assert upper[0, 0] - lower[0, 0] < 0.04


def test_choose_alpha_takes_the_largest_weight_that_reaches_the_target():
    g, h = network(10), network(11)
    x = points(300)
    y = torch.where(torch.arange(300) < 240, g(x).argmax(1), h(x).argmax(1))
    mixed = MixedClassifier(g, h)
    target = 0.9 * float((MixedClassifier(g, h, 0.5)(x).argmax(1) == y).double().mean())
    choice = mixed.choose_alpha(x, y, target)
    assert mixed.alpha == choice.alpha
    reached = [share.value >= target for share in choice.accuracy]
    assert choice.alpha == max(alpha for alpha, fine in zip(choice.alphas, reached, strict=True) if fine)
    assert float((mixed(x).argmax(1) == y).double().mean()) >= target
    # The smallest would say nothing: clean accuracy falls with the weight of the robust model.
    assert 0.5 == min(alpha for alpha, fine in zip(choice.alphas, reached, strict=True) if fine) < choice.alpha < 1
    with pytest.raises(InputError, match="the best is"):
        mixed.choose_alpha(x, y, 1.0)


def test_the_curve_attacks_every_mixture():
    g, h, x = network(10), network(11), points(60)
    curve = mixing_curve(MixedClassifier(g, h), x, g(x).argmax(1), PGD(Linf(0.1), steps=5), (0.0, 1.0))
    clean, attacked = curve.series
    assert clean.y[0] == 1.0
    assert all(under <= above for under, above in zip(attacked.y, clean.y, strict=True))
    assert attacked.y[0] < 1.0


def policy_mixture(slope=2.0):
    g, h = network(12), network(13)
    policy = MixingPolicy.between(g, h, ("0",), ("0",), points(2), least=0.6, most=0.95, slope=slope)
    return MixedClassifier(g, h, policy=policy).eval()


def test_the_policy_weighs_within_its_range_and_passes_gradients():
    mixed, x = policy_mixture(), points(50).requires_grad_()
    mixture = mixed.mix(x)
    assert bool(((mixture.alpha >= 0.6) & (mixture.alpha <= 0.95)).all())
    assert float(mixture.alpha.detach().std()) > 0.01
    (through,) = torch.autograd.grad(mixture.alpha.sum(), x, retain_graph=True)
    assert float(through.abs().sum()) > 0
    frozen = MixedClassifier(mixed.standard, mixed.robust).eval()
    log = torch.logaddexp(
        torch.log1p(-mixture.alpha.detach())[:, None] + torch.log_softmax(frozen.standard(x), 1),
        mixture.alpha.detach().log()[:, None] + torch.log_softmax(frozen.robust(x), 1),
    )
    (blind,) = torch.autograd.grad(log[:, 0].sum(), x)
    (whole,) = torch.autograd.grad(mixture.log_probabilities[:, 0].sum(), x)
    assert not torch.allclose(blind, whole)


def test_a_policy_is_certified_at_its_floor():
    mixed, x = policy_mixture(), points(30)
    fixed = MixedClassifier(mixed.standard, mixed.robust, alpha=0.6)
    assert torch.equal(mixed.certify_lipschitz(x, 0.1).radius, fixed.certify_lipschitz(x, 0.1).radius)


def test_training_teaches_the_policy_to_tell_attacked_inputs_apart():
    mixed, x = policy_mixture(), points(192)
    y = mixed(x).argmax(1)
    before = [parameter.clone() for parameter in mixed.standard.parameters()]
    attack = PGD(Linf(0.3), steps=5)
    losses = train_policy(mixed, x, y, attack, epochs=6, batch=64, step=1e-2)
    assert losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, mixed.standard.parameters(), strict=True))
    attacked = attack(mixed, x, y)
    moved = (attacked != x).any(1)
    assert float((mixed.mix(attacked[moved]).alpha - mixed.mix(x[moved]).alpha).mean().detach()) > 0.02


def test_the_loss_of_hand_made_numbers():
    log = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    gamma, y = torch.tensor([0.0, 0.0]), torch.tensor([0, 1])
    bce, ce = np.log(2), np.array([np.log(4), np.log(2)])
    wanted = np.mean(2 * bce + 0.5 * ce + 0.1 * bce * ce)
    assert float(MixingLoss((2.0, 0.5, 0.1))(log, gamma, y, torch.tensor([True, False]))) == pytest.approx(wanted)


def test_refusals():
    g, h, x = network(0), network(1), points(3)
    with pytest.raises(InputError, match=r"\[0, 1\], got 1\.5"):
        MixedClassifier(g, h, alpha=1.5)
    with pytest.raises(InputError, match="scale_robust must be positive"):
        MixedClassifier(g, h, scale_robust=0)
    with pytest.raises(InputError, match="same classes"):
        MixedClassifier(g, network(1, classes=3))(x)
    with pytest.raises(InputError, match=r"\[0\.5, 1\], got 0\.4"):
        MixedClassifier(g, h, alpha=0.4).certify_lipschitz(x, 1.0)
    with pytest.raises(InputError, match="positive and finite"):
        MixedClassifier(g, h).certify_lipschitz(x, 0)
    half = torch.full((3, 4), 0.5, dtype=torch.float64)
    with pytest.raises(InputError, match="scale the logits inside the mean"):
        MixedClassifier(g, h, scale_robust=2).certify_smoothed(x, 1, 0 * half, half)
    with pytest.raises(InputError, match="p_lower <= p_upper"):
        MixedClassifier(g, h).certify_smoothed(x, 1, half, 0 * half)
    with pytest.raises(InputError, match="sum to one"):
        MixedClassifier(g, h).certify_smoothed(x, 1, half, half)
    with pytest.raises(InputError, match="0 <= least < most < 1"):
        MixingPolicy(("0",), ("0",), 4, least=0.9, most=0.8)
    with pytest.raises(InputError, match="inputs to certify must be finite"):
        MixedClassifier(g, h).certify_lipschitz(x * np.nan, 1.0)
    broken = network(1)
    broken[2].bias.data[0] = np.nan
    with pytest.raises(InputError, match="robust model gives NaN"):
        MixedClassifier(g, broken).certify_lipschitz(x, 1.0)
    with pytest.raises(InputError, match="no policy to train"):
        train_policy(MixedClassifier(g, h), x, torch.zeros(3, dtype=torch.int64), PGD(Linf(0.1)))


def test_nothing_is_certified_in_training_mode():
    x, half = points(3), torch.full((3, 4), 0.25, dtype=torch.float64)
    norm = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    before = norm[1].running_mean.clone()
    mixed = MixedClassifier(network(0), norm, 0.9).train()
    for certify in (
        lambda: mixed.certify_lipschitz(x, 1.0),
        lambda: mixed.certify_smoothed(x, 1.0, half, half),
        lambda: mixed.certify_bounds(x, Linf(0.1)),
        lambda: mixed.choose_alpha(x, torch.zeros(3, dtype=torch.long), 0.5),
    ):
        with pytest.raises(InputError, match=r"BatchNorm1d 'robust\.1' in training mode.*model\.eval\(\)"):
            certify()
    assert torch.equal(norm[1].running_mean, before)
    assert mixed.eval().certify_lipschitz(x, 1.0).radius.shape == (3,)
    MixedClassifier(network(0), network(1), 0.9).train().certify_lipschitz(x, 1.0)  # nothing acts apart


def test_a_policy_below_its_own_floor_is_refused():
    mixed = policy_mixture()
    mixed.policy.weight = lambda gamma: 0.1 + 0 * gamma
    with pytest.raises(InputError, match="its own floor"):
        mixed(points(3))
