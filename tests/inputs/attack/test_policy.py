"""Observation attacks: the grouped difference, the bifurcation layer, what the ascent returns, and regret."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from holdfast.core.errors import InputError
from holdfast.inputs.attack.losses import margin
from holdfast.inputs.attack.policy import (
    BifurcationLayer,
    GroupedDifferenceLogits,
    ObservationAttack,
    PerturbedPolicy,
    act,
    regret,
)
from holdfast.threats.balls import L2, Linf


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(inputs=5, outputs=2, squash=True, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs)]
    return nn.Sequential(*layers, *([nn.Tanh()] if squash else [])).eval()


class Line:
    """An environment that pays the action on the line +1, -1, ...: gymnasium's interface without gymnasium."""

    def __init__(self):
        self.left = 4

    def reset(self, *, seed=None):
        self.sign = 1.0 if np.random.default_rng(seed).random() < 0.5 else -1.0
        return np.array([self.sign, 0.0]), {}

    def step(self, action):
        self.left -= 1
        return np.array([self.sign, 0.0]), self.sign * float(np.asarray(action).sum()), False, self.left == 0, {}


def test_groups_of_one_are_the_margin_and_a_target_against_the_rest_is_the_targeted_one():
    z = torch.randn((30, 4), generator=generator())
    action = z.argmax(1)
    torch.testing.assert_close(GroupedDifferenceLogits([[0], [1], [2], [3]])(z, action), margin(z, action))
    rest = z.argmax(1) != 2
    target = torch.full_like(action, 2)
    against = GroupedDifferenceLogits([[2], [0, 1, 3]])(z, action)
    torch.testing.assert_close(against[rest], margin(z, action, target)[rest])


@given(st.lists(st.integers(0, 2), min_size=3, max_size=7).filter(lambda g: len(set(g)) == 3), st.integers(0, 99))
def test_it_is_positive_exactly_when_another_group_is_preferred(group, seed):
    groups = [[a for a, g in enumerate(group) if g == k] for k in range(3)]
    z = torch.randn((20, len(group)), generator=generator(seed))
    chosen = torch.randint(len(group), (20,), generator=generator(seed + 1))
    value = GroupedDifferenceLogits(groups)(z, chosen)
    place = torch.tensor(group)
    assert torch.equal(value > 0, place[z.argmax(1)] != place[chosen])


def test_the_layer_makes_two_logits_of_an_action_before_its_squashing():
    policy, s = network(), torch.randn((6, 5), generator=generator())
    logits = BifurcationLayer(policy, 0.3)(s)
    before = policy[:-1](s) - np.arctanh(0.3)
    torch.testing.assert_close(logits, torch.stack([before, -before], -1))
    assert torch.equal(logits[..., 0] > 0, policy(s) > 0.3)
    plain = BifurcationLayer(lambda x: policy(x), 0.3)(s)
    torch.testing.assert_close(plain[..., 0], policy(s) - 0.3)


def test_a_saturated_action_can_still_be_pushed():
    policy = nn.Sequential(nn.Linear(1, 1), nn.Tanh()).eval()
    with torch.no_grad():
        policy[0].weight.fill_(100.0)
        policy[0].bias.fill_(0.0)
    s = torch.tensor([[0.5]])
    moved = ObservationAttack(Linf(0.6))(policy, s, generator=generator())
    assert policy(moved).item() == pytest.approx(-1)
    hidden = ObservationAttack(Linf(0.6))(lambda x: policy(x), s, generator=generator())
    assert policy(hidden).item() == pytest.approx(1)  # the gradient is zero in float32


@pytest.mark.parametrize("goal", ["bifurcate", "untargeted", "targeted"])
@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.3), Linf(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.1]))])
@pytest.mark.parametrize("actions", ["continuous", "discrete"])
def test_points_stay_within_threat_mask_and_never_below_the_clean_loss(goal, threat, actions):
    policy = network(outputs=3, squash=actions == "continuous")
    s = torch.rand((12, 5), generator=generator())
    mask = torch.tensor([True, False, True, True, False])
    attack = ObservationAttack(
        threat,
        goal,
        actions,
        groups=[[0, 2], [1]] if (goal, actions) == ("bifurcate", "discrete") else None,
        mask=mask,
        target_policy=network(outputs=3, seed=1) if goal == "targeted" else None,
    )
    found = attack(policy, s, valid=(0, 1), generator=generator())
    assert threat.contains(found, s, (0, 1)).all()
    assert torch.equal(found[:, ~mask], s[:, ~mask])
    objective = attack._objective(policy, s, policy(s).detach())
    assert (objective(found) >= objective(s)).all()
    assert (objective(found) > objective(s)).any()


def test_on_a_linear_policy_the_bifurcation_finds_the_best_corner():
    policy = nn.Linear(4, 1).eval()
    s = torch.randn((50, 4), generator=generator())
    found = ObservationAttack(Linf(0.1))(policy, s, generator=generator())
    corner = s - policy(s).sign() * 0.1 * policy.weight.sign()
    torch.testing.assert_close(found, corner)


def test_only_changes_leaves_the_others_clean():
    policy, s = network(), torch.randn((200, 5), generator=generator())
    attack = ObservationAttack(Linf(0.1), only_changes=True)
    found = attack(policy, s, generator=generator())
    changed = attack.changed(policy, s, found)
    assert 0 < changed.sum() < len(s)
    assert torch.equal(found[~changed], s[~changed])
    everywhere = ObservationAttack(Linf(0.1))(policy, s, generator=generator())
    assert torch.equal(found[changed], everywhere[changed])


def test_worst_counts_the_dimensions_nearest_to_turning():
    policy, s = network(outputs=4), torch.randn((300, 5), generator=generator())
    turned = []
    for worst in (None, 1):
        attack = ObservationAttack(Linf(0.1), worst=worst)
        turned.append(int(attack.changed(policy, s, attack(policy, s, generator=generator())).sum()))
    assert turned[1] > turned[0]


def test_a_target_is_approached():
    policy, aim, s = network(), network(seed=3), torch.randn((40, 5), generator=generator())
    found = ObservationAttack(Linf(0.3), "targeted", target_policy=aim)(policy, s, generator=generator())
    before, after = ((policy(x) - aim(s)).square().mean(1) for x in (s, found))
    assert (after <= before).all()
    assert after.mean() < 0.7 * before.mean()


def test_regret_of_a_controller_that_follows_its_observation():
    policy = nn.Sequential(nn.Linear(2, 1, bias=False)).eval()
    with torch.no_grad():
        policy[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
    attack = ObservationAttack(Linf(0.25))
    found = regret(Line, policy, attack, seeds=range(6), generator=generator())
    assert found.value == pytest.approx(4 * 0.25)  # every action is pulled towards the other side by the radius
    assert found.n == 6
    twice = regret(Line, policy, ObservationAttack(Linf(0.5)), seeds=range(6), generator=generator())
    assert twice.value == pytest.approx(2 * found.value)


def test_discrete_actions_are_numbers_in_a_loop():
    policy = nn.Linear(2, 3).eval()
    attack = ObservationAttack(Linf(0.1), "untargeted", "discrete")
    action = PerturbedPolicy(policy, attack, generator()).act(np.array([0.1, 0.2]))
    assert isinstance(action, int)
    continuous = PerturbedPolicy(network(2), ObservationAttack(Linf(0.1)), generator()).act(np.zeros(2))
    assert isinstance(continuous, np.ndarray)
    assert continuous.shape == (2,)


def test_cartpole_of_gymnasium_falls():
    gymnasium = pytest.importorskip("gymnasium")
    controller = nn.Linear(4, 2, bias=False).eval()
    gain = torch.tensor([0.3, 0.6, 5.0, 1.5])
    with torch.no_grad():
        controller.weight.copy_(torch.stack([-gain, gain]))
    attack = ObservationAttack(Linf(torch.tensor([0.2, 0.2, 0.05, 0.2])), "untargeted", "discrete", steps=3)
    found = regret(lambda: gymnasium.make("CartPole-v1"), controller, attack, seeds=(0, 1), generator=generator())
    assert found.value > 100


def test_bad_input_is_told():
    policy, s = network(), torch.zeros(2, 5)
    with pytest.raises(InputError, match=r"\(batch, m\)"):
        ObservationAttack(Linf(0.1))(lambda x: x[:, 0], s)
    with pytest.raises(InputError, match="mask"):
        ObservationAttack(Linf(0.1), mask=torch.tensor([True, False]))(policy, s)
    with pytest.raises(InputError, match="eps"):
        ObservationAttack(Linf(0.0))
    with pytest.raises(InputError, match="finite"):
        ObservationAttack(Linf(0.1))(policy, torch.full((2, 5), torch.nan))
    for groups in ([[0, 1]], [[0], [0, 1]], [[0], [2]], [[0, 1], []]):
        with pytest.raises(InputError, match="exactly once"):
            GroupedDifferenceLogits(groups)
    with pytest.raises(InputError, match="the groups cover 2"):
        GroupedDifferenceLogits([[0], [1]])(torch.zeros(1, 3), torch.tensor([0]))
    with pytest.raises(InputError, match="target_policy"):
        ObservationAttack(Linf(0.1), "targeted")
    with pytest.raises(InputError, match="groups"):
        ObservationAttack(Linf(0.1), actions="discrete")
    with pytest.raises(InputError, match="unknown goal"):
        ObservationAttack(Linf(0.1), "worst")
    with pytest.raises(InputError, match="act alike"):
        ObservationAttack(Linf(0.1), "targeted", target_policy=network(outputs=3))(policy, s)
    with pytest.raises(InputError, match="no gradient"):
        ObservationAttack(Linf(0.1))(lambda x: policy(x.detach()).detach(), s)
    with pytest.raises(InputError, match="cannot be split"):
        BifurcationLayer(policy, 1.0)
    with pytest.raises(InputError, match="seed"):
        regret(Line, policy, ObservationAttack(Linf(0.1)), seeds=())
    with pytest.raises(InputError, match="step"):
        ObservationAttack(Linf(0.1), steps=0)


def test_observations_take_the_type_of_the_policy():
    double = network(2, 1).double()
    attack = ObservationAttack(Linf(0.05), steps=2)
    action = PerturbedPolicy(double, attack, generator()).act(np.array([0.1, 0.2]))
    assert action.dtype == np.float64
    single = regret(Line, network(2, 1), attack, [0, 1, 2], generator=generator())
    found = regret(Line, double, attack, [0, 1, 2], generator=generator())
    np.testing.assert_allclose(found.value, single.value, atol=1e-3)
    assert act(lambda s: s.double().sum(1, keepdim=True), np.zeros(2, dtype=np.float32)).dtype == np.float64
