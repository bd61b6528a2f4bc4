"""Attacks on what a control policy observes: push the action out of its group, away from itself, or to a worse one.

A policy maps observations (batch, *shape) to actions (batch, m), or to one logit or value an action (batch, actions).
Actions are put in groups; the grouped difference of logits z for the clean action a in group G(a) is

    GDL(z, a) = max_{j not in G(a)} z_j - max_{i in G(a)} z_i,

which is raised until an action of another group is chosen.  Groups of one give the untargeted margin.  A continuous
action has no logits; a *bifurcation layer* makes two of every action dimension by a threshold c,

    b(s) = (u(s) - c', c' - u(s)),     u the action before the squashing, c' = squash^-1(c),

so that the difference is -2 sgn(u(s) - c') (u(s') - c'): charge instead of discharge, left instead of right.

    goal          the attack raises
    bifurcate     the grouped difference, over groups of actions or over both sides of the threshold
    untargeted    ||pi(s') - pi(s)||^2 / m, or the margin of discrete actions
    targeted      -||pi(s') - target(s)||^2 / m, or the target's margin; `target` may be a policy trained to do harm

It perturbs the observation, not the state: the environment goes on from where it is.
"A Novel Bifurcation Method for Observation Perturbation Attacks on Reinforcement Learning Agents" (see `bifurcation` in
the catalogue).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import paired_difference
from holdfast.inputs.attack.losses import margin
from holdfast.inputs.features import placement
from holdfast.threats.base import Threat, Valid

Policy = Callable[[Tensor], Tensor]
Groups = Sequence[Sequence[int]]


class GroupedDifferenceLogits(nn.Module):
    """Largest logit outside the chosen action's group minus the largest inside it.

    `groups` lists the actions of every group.  Raises InputError unless they are two or more and every action
    0 .. K-1 is in exactly one.
    """

    group: Tensor

    def __init__(self, groups: Groups) -> None:
        super().__init__()
        members = sorted(action for group in groups for action in group)
        if len(groups) < 2 or not all(groups) or members != list(range(len(members))):
            raise InputError(
                f"groups must be at least two and hold every action 0 .. {len(members) - 1} exactly once, got {groups}"
            )
        place = torch.empty(len(members), dtype=torch.int64)
        for index, group in enumerate(groups):
            place[list(group)] = index
        self.register_buffer("group", place)

    def forward(
        self, logits: Float[Tensor, "*batch actions"], action: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """The difference for each row; above 0 an action of another group is preferred."""
        self._check(logits)
        group = self.group.to(logits.device)
        inside = group == group[action][..., None]
        return logits.masked_fill(inside, -torch.inf).amax(-1) - logits.masked_fill(~inside, -torch.inf).amax(-1)

    def _check(self, logits: Tensor) -> None:
        if logits.shape[-1] != len(self.group):
            raise InputError(
                f"the groups cover {len(self.group)} actions, but the policy has {logits.shape[-1]}; "
                "every action must be in exactly one group"
            )


class BifurcationLayer(nn.Module):
    """Two logits an action dimension, "above" and "below" the threshold: (batch, *shape) to (batch, m, 2).

    `policy` maps to actions (batch, m).  Where it is an `nn.Sequential` that ends in Tanh or Sigmoid, that last module
    is left out and the threshold is mapped back through it, so that saturated actions still have a gradient.
    Raises InputError when the threshold is not an action that the squashing can give.
    """

    def __init__(self, policy: Policy, threshold: float = 0.0) -> None:
        super().__init__()
        self.policy, self.threshold = _unsquashed(policy, threshold)

    def forward(self, obs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch m 2"]:
        above = _actions(self.policy, obs) - self.threshold
        return torch.stack([above, -above], -1)


def _unsquashed(policy: Policy, threshold: float) -> tuple[Policy, float]:
    last = policy[-1] if isinstance(policy, nn.Sequential) and len(policy) > 1 else None
    if not isinstance(last, (nn.Tanh, nn.Sigmoid)):
        return policy, float(threshold)
    low = -1.0 if isinstance(last, nn.Tanh) else 0.0
    if not low < threshold < 1:
        raise InputError(f"actions lie strictly between {low:g} and 1, so they cannot be split at {threshold}")
    assert isinstance(policy, nn.Sequential)
    squash = math.atanh(threshold) if isinstance(last, nn.Tanh) else math.log(threshold / (1 - threshold))
    return policy[:-1], squash


def _actions(policy: Policy, obs: Tensor) -> Tensor:
    answer = policy(obs)
    if answer.ndim != 2 or len(answer) != len(obs) or answer.shape[1] < 1:
        raise InputError(
            f"the policy maps {len(obs)} observations to shape {tuple(answer.shape)}; (batch, m) was wanted: "
            "one row an observation"
        )
    return answer


@dataclass(frozen=True, eq=False)
class ObservationAttack:
    """Projected gradient ascent on observations: `attack(policy, obs)` gives observations like `obs`, within `threat`.

    Parameters
    ----------
    threat : what one observation may undergo; give features of different units their own `Linf` allowance.
    goal : see the module.
    actions : whether the policy's outputs are the action itself or one logit or value for each of several actions.
    groups : for `bifurcate` on discrete actions, the actions of every group.
    threshold : for continuous actions, what splits every dimension in two groups.
    mask : (*shape) True where a feature may be perturbed; others (a clock, say) stay.  None: all.
    steps, step_size : of the ascent; the size defaults to 2.5 radii over `steps`.
    target_policy : for `targeted`, maps observations to the actions (or logits) that are aimed at.
    worst : for `bifurcate` with several action dimensions, only the so many that are nearest to changing sides count.
    only_changes : give back the clean observation wherever no action left its group, so that fewer are touched.

    The ascent starts at random within the threat and returns the point of highest loss, which is never below that of
    the clean observation.  Raises InputError for a goal, groups, target or steps that do not fit together, and when
    called on observations, a mask or a policy that do not.
    """

    threat: Threat
    goal: str = "bifurcate"
    actions: str = "continuous"
    groups: Groups | None = None
    threshold: float = 0.0
    mask: Bool[Tensor, "*shape"] | None = None
    steps: int = 20
    step_size: float | None = None
    target_policy: Policy | None = None
    worst: int | None = None
    only_changes: bool = False

    def __post_init__(self) -> None:
        if self.goal not in ("bifurcate", "untargeted", "targeted") or self.actions not in ("continuous", "discrete"):
            raise InputError(
                f"unknown goal {self.goal!r} or kind of actions {self.actions!r}; goals are bifurcate, untargeted and "
                "targeted, actions continuous or discrete"
            )
        if self.steps < 1 or (self.step_size is not None and not self.step_size > 0):
            raise InputError(f"at least one step of a positive size is wanted, got {self.steps} of {self.step_size}")
        if (self.goal == "targeted") != (self.target_policy is not None):
            raise InputError("the goal 'targeted', and no other, needs a target_policy that says which action is meant")
        if (self.goal == "bifurcate" and self.actions == "discrete") != (self.groups is not None):
            raise InputError("groups of actions are needed by the goal 'bifurcate' on discrete actions, and only there")
        if self.groups is not None:
            GroupedDifferenceLogits(self.groups)
        if self.worst is not None and (self.worst < 1 or self.goal != "bifurcate" or self.actions == "discrete"):
            raise InputError(f"worst counts action dimensions that a bifurcation is to change, got {self.worst}")

    def __call__(
        self,
        policy: Policy,
        obs: Float[Tensor, "batch *shape"],
        *,
        valid: Valid = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Perturbed observations; `valid` is the range that observations may take."""
        free = self._free(obs)
        obs = obs.detach()
        with torch.no_grad():
            clean = _actions(policy, obs)
            objective = self._objective(policy, obs, clean)
            best, best_loss = obs.clone(), objective(obs)
        step = self.step_size or 2.5 * self.threat.stride(valid) / self.steps
        point = torch.where(free, self.threat.random_start(obs, valid, generator=generator), obs)
        for count in range(self.steps + 1):
            with torch.enable_grad():
                leaf = point.requires_grad_(True)
                loss = objective(leaf)
                if not loss.requires_grad:
                    raise InputError("the policy gives no gradient with respect to its observation")
                (grad,) = torch.autograd.grad(loss.sum(), leaf)
            point, loss = leaf.detach(), loss.detach()
            better = loss > best_loss
            best[better], best_loss = point[better], torch.maximum(loss, best_loss)
            if count < self.steps:
                ascent = self.threat.steepest(torch.where(free, grad, 0.0))
                moved = self.threat.project(point + step * ascent, obs, valid)
                point = torch.where(free, moved, obs)
        if self.only_changes:
            stayed = ~self.changed(policy, obs, best)
            best[stayed] = obs[stayed]
        return best

    @torch.no_grad()
    def changed(
        self, policy: Policy, obs: Float[Tensor, "batch *shape"], perturbed: Float[Tensor, "batch *shape"]
    ) -> Bool[Tensor, " batch"]:
        """Whether any action left its group: another side of the threshold, or another group of discrete actions."""
        before, after = _actions(policy, obs), _actions(policy, perturbed)
        if self.actions == "continuous":
            return ((before >= self.threshold) != (after >= self.threshold)).any(1)
        return self._grouped(before.shape[1])(after, before.argmax(1)) > 0

    def _grouped(self, actions: int) -> GroupedDifferenceLogits:
        return GroupedDifferenceLogits(self.groups or [[action] for action in range(actions)])

    def _free(self, obs: Tensor) -> Tensor:
        if not obs.is_floating_point() or not bool(torch.isfinite(obs).all()):
            raise InputError(
                f"observations must be finite floating-point numbers, got {obs.dtype}; repair or drop them"
            )
        if self.mask is None:
            return torch.ones(obs.shape[1:], dtype=torch.bool, device=obs.device)
        if self.mask.shape != obs.shape[1:]:
            raise InputError(
                f"the mask has shape {tuple(self.mask.shape)}, but an observation {tuple(obs.shape[1:])}; "
                "give one True or False a feature"
            )
        return self.mask.to(obs.device)

    def _objective(self, policy: Policy, obs: Tensor, clean: Tensor) -> Callable[[Tensor], Tensor]:
        """The loss of every perturbed observation, as a function of it."""
        if self.goal == "targeted":
            assert self.target_policy is not None
            target = _actions(self.target_policy, obs)
            if target.shape != clean.shape:
                raise InputError(
                    f"the policy gives {tuple(clean.shape)} and the target policy {tuple(target.shape)}; "
                    "both must act alike"
                )
            if self.actions == "discrete":
                return lambda s: margin(policy(s), clean.argmax(1), target.argmax(1))
            return lambda s: -(policy(s) - target).square().mean(1)
        if self.actions == "discrete":
            difference, chosen = self._grouped(clean.shape[1]), clean.argmax(1)
            return lambda s: difference(policy(s), chosen)
        if self.goal == "untargeted":
            return lambda s: (policy(s) - clean).square().mean(1)
        return partial(self._bifurcated, BifurcationLayer(policy, self.threshold), clean)

    def _bifurcated(self, layer: BifurcationLayer, clean: Tensor, perturbed: Tensor) -> Tensor:
        side = (clean < self.threshold).long()  # 0: above, as the layer orders them
        loss = GroupedDifferenceLogits([[0], [1]])(layer(perturbed), side)
        return (loss if self.worst is None else loss.topk(min(self.worst, loss.shape[1]), 1).values).mean(1)


class PerturbedPolicy(nn.Module):
    """A policy that acts on attacked observations: `forward` on tensors, `act` on one observation of a gymnasium loop.

    The random start of the attack is drawn from `generator`.
    """

    def __init__(self, policy: Policy, attack: ObservationAttack, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.policy, self.attack, self.generator = policy, attack, generator

    def forward(self, obs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch m"]:
        """What the policy answers to the attacked observations."""
        return self.policy(self.attack(self.policy, obs, generator=self.generator))

    def act(self, observation: np.ndarray) -> np.ndarray | int:
        """The action for one observation: an array, or the number of a discrete action."""
        return act(self, observation, self.attack.actions)


@torch.no_grad()
def act(policy: Policy, observation: np.ndarray, actions: str = "continuous") -> np.ndarray | int:
    """The (mean) action of a policy for one observation, in the form that an environment's `step` takes.

    The observation goes to the device and the floating type of a policy that is a module, else to float32 on the CPU.
    """
    dtype, device = placement(policy)
    answer = _actions(policy, torch.as_tensor(observation, dtype=dtype, device=device)[None])[0]
    if actions == "discrete":
        return int(answer.argmax())
    return (answer.float() if answer.dtype == torch.bfloat16 else answer).cpu().numpy()


@runtime_checkable
class Environment(Protocol):
    """What is used of `gymnasium.Env`."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...


def regret(
    env_fn: Callable[[], Environment],
    policy: Policy,
    attack: ObservationAttack,
    seeds: Sequence[int],
    *,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Clean minus attacked return (undiscounted), averaged over episodes that start alike: one a seed.

    `env_fn` makes a `gymnasium.Env`, or anything with its `reset` and `step`.  An episode ends when the environment
    says so.  Raises InputError without seeds.
    """
    if not seeds:
        raise InputError("at least one seed is wanted: every seed is one episode")
    attacked = PerturbedPolicy(policy, attack, generator)
    clean = [episode_return(env_fn(), partial(act, policy, actions=attack.actions), seed) for seed in seeds]
    worse = [episode_return(env_fn(), attacked.act, seed) for seed in seeds]
    return paired_difference(np.array(worse), np.array(clean), level)


def episode_return(env: Environment, act: Callable[[np.ndarray], Any], seed: int) -> float:
    """Sum of rewards of the episode that starts from `seed`."""
    observation, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(act(observation))
        total += float(reward)
        over = bool(terminated or truncated)
    return total
