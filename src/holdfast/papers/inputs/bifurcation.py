"""Check of `bifurcation`: what a battery's controller costs when its observations are attacked in different ways."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.analysis.two_sample import mmd_test
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Series, Table
from holdfast.core.intervals import paired_difference
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.inputs.attack.policy import ObservationAttack, Policy, regret
from holdfast.papers.battery import ATTACKABLE, STEPS, Days, trained
from holdfast.papers.paper import Criterion, Outcome, Paper, Scale
from holdfast.threats.balls import Linf

PAPER = Paper(
    key="bifurcation",
    group="inputs",
    title=(
        "A Novel Bifurcation Method for Observation Perturbation Attacks on Reinforcement Learning Agents: Load "
        "Altering Attacks on a Cyber Physical Power System"
    ),
    builds=(
        "holdfast.inputs.attack.policy.GroupedDifferenceLogits",
        "holdfast.inputs.attack.policy.BifurcationLayer",
        "holdfast.inputs.attack.policy.ObservationAttack",
        "holdfast.inputs.attack.policy.PerturbedPolicy",
        "holdfast.inputs.attack.policy.regret",
        "holdfast.analysis.two_sample.mmd_test",
    ),
    claim=(
        "Pushing the actions of a controller across a threshold by small changes of what it observes harms far more "
        "than untargeted attacks of the same size and needs smaller changes than attacks towards the worst action; "
        "robust training reduces the harm."
    ),
)

RADII = (0.05, 0.1, 0.2)
WIDE = (0.25, 0.3, 0.4)  # for the radius at which half the worst policy's harm is done
SEEDS = (0, 1, 2)
RANDOM, ROBUST = "random", "bifurcate, robust policy"
Kind = Literal["bifurcate", "untargeted", "targeted", "random"]
KINDS: tuple[Kind, ...] = ("bifurcate", "untargeted", "targeted", "random")


@dataclass(frozen=True)
class _Noise(ObservationAttack):
    """Random points of the threat: what any attack must beat."""

    def __call__(self, policy: Policy, obs: Tensor, *, valid=None, generator=None) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.where(self._free(obs), self.threat.random_start(obs, valid, generator=generator), obs)


@dataclass(frozen=True)
class _Run:
    """Cost of every day without and under an attack, and what was observed: (days, STEPS, features)."""

    clean: np.ndarray
    attacked: np.ndarray
    seen: np.ndarray
    shown: np.ndarray

    @property
    def harm(self) -> np.ndarray:
        return self.attacked - self.clean

    @property
    def regret(self) -> Estimate:
        return paired_difference(self.clean, self.attacked)


def check(scale: Scale) -> Outcome:
    """Regret of every attack at every radius and seed, its size and stealth, robust training, and a gymnasium loop."""
    if scale is Scale.SMOKE:
        return _smoke()
    runs: dict[tuple[str, float, int], _Run] = {}
    worst: dict[int, float] = {}
    for seed in SEEDS:
        policy, harmful = trained(seed, PAPER.key, "policy"), trained(seed, PAPER.key, "adversary", harm=True)
        days = Days.drawn(256, torch_generator(seed, PAPER.key, "test"))
        worst[seed] = float((days.cost(harmful) - days.cost(policy)).mean())
        for radius in RADII + WIDE:
            for kind in KINDS if radius in RADII else ("bifurcate", "targeted"):
                runs[kind, radius, seed] = _attacked(days, policy, _attack(kind, radius, harmful), seed)
    criteria = [_beats_untargeted(runs), _ratio(runs), _beats_noise(runs), _smaller(runs, worst)]
    robust = _robust_run()
    plain = runs["bifurcate", 0.1, SEEDS[0]]
    criteria.append(_robust(plain, robust))
    notes = (
        "256 held-out days a seed; regret is the paired difference of costs on the same days, the clock is never "
        "touched, and actions are the policy's mean.  Robust training is 120 batches under the one-step bifurcation "
        f"at 0.1: under attack a day costs {robust.attacked.mean():.2f} instead of {plain.attacked.mean():.2f}, on "
        f"clean days {robust.clean.mean():.2f} instead of {plain.clean.mean():.2f}.  The paper's own environment "
        "and its agents are larger; learnt adversaries in alternation (ATLA) are not tried here."
    )
    if importlib.util.find_spec("gymnasium") is None:
        notes += "  gymnasium was not installed, so its CartPole was left out."
    else:
        criteria.append(_gymnasium())
    return Outcome(
        tuple(criteria),
        ours=plain.regret,
        baseline=runs["untargeted", 0.1, SEEDS[0]].regret,
        exhibits=(_figure(runs), _stealth(runs)),
        seeds=SEEDS,
        notes=notes,
    )


def _smoke() -> Outcome:
    rule = nn.utils.skip_init(nn.Linear, len(ATTACKABLE), 1)
    rule.weight.data.copy_(torch.tensor([[0.0, 0.0, -6.0, 3.0, 3.0, 0.0, 2.0, 0.0]]))
    rule.bias.data.zero_()
    policy = nn.Sequential(rule, nn.Tanh()).eval()
    observed = Days.drawn(20, torch_generator(0, PAPER.key, "test")).features.flatten(0, 1)
    observed = torch.cat([observed, torch.full((len(observed), 1), 0.5)], 1)
    turned = {}
    kinds: tuple[Kind, ...] = ("bifurcate", "untargeted")
    for kind in kinds:
        attack = _attack(kind, 0.1, policy)
        perturbed = attack(policy, observed, generator=torch_generator(0, PAPER.key, "attack"))
        turned[kind] = attack.changed(policy, observed, perturbed).numpy()
    more = paired_difference(turned["untargeted"], turned["bifurcate"])
    statement = (
        "a rule that charges before prices rise: bifurcation turns more actions round than the untargeted attack"
    )
    return Outcome((Criterion(statement, more.low > 0, {"difference": more}),), more, seeds=(0,))


def _attack(kind: Kind, radius: float, harmful: nn.Module) -> ObservationAttack:
    if kind == "random":
        return _Noise(Linf(radius), mask=ATTACKABLE)
    target = harmful if kind == "targeted" else None
    return ObservationAttack(Linf(radius), kind, mask=ATTACKABLE, target_policy=target)


@torch.no_grad()
def _attacked(days: Days, policy: nn.Module, attack: ObservationAttack, seed: int) -> _Run:
    seen, shown = [], []
    generator = torch_generator(seed, PAPER.key, "attack")

    def acting(observed: Tensor) -> Tensor:
        perturbed = attack(policy, observed, generator=generator)
        seen.append(observed)
        shown.append(perturbed)
        return policy(perturbed)

    clean, attacked = days.cost(policy), days.cost(acting)
    parts = (torch.stack(part, 1) for part in (seen, shown))
    return _Run(clean.numpy(), attacked.numpy(), *(part.numpy() for part in parts))


def _differences(runs: dict[tuple[str, float, int], _Run], against: str, share: float) -> dict[str, Estimate]:
    """Paired differences of `share` times the bifurcation's harm and another attack's, at every radius and seed."""
    return {
        f"eps {radius}, seed {seed}": paired_difference(
            runs[against, radius, seed].harm, share * runs["bifurcate", radius, seed].harm
        )
        for radius in RADII
        for seed in SEEDS
    }


def _beats_untargeted(runs: dict[tuple[str, float, int], _Run]) -> Criterion:
    found = _differences(runs, "untargeted", 1.0)
    return Criterion(
        "regret of the bifurcation minus that of the untargeted attack is above 0 at every radius and seed (95% "
        "intervals, paired by day)",
        all(difference.low > 0 for difference in found.values()),
        found,
    )


def _ratio(runs: dict[tuple[str, float, int], _Run]) -> Criterion:
    ratios = {
        f"seed {seed}": float(runs["bifurcate", 0.1, seed].harm.mean() / runs["untargeted", 0.1, seed].harm.mean())
        for seed in SEEDS
    }
    statement = "at radius 0.1 the regret of the bifurcation is at least 1.5 times that of the untargeted attack"
    return Criterion(statement, min(ratios.values()) >= 1.5, ratios)


def _beats_noise(runs: dict[tuple[str, float, int], _Run]) -> Criterion:
    found = _differences(runs, RANDOM, 0.25)
    statement = (
        "random noise of the same radius does at most a quarter of the bifurcation's harm at every radius and seed "
        "(a quarter of the regret minus the noise's, 95% intervals)"
    )
    return Criterion(statement, all(difference.low >= 0 for difference in found.values()), found)


def _smaller(runs: dict[tuple[str, float, int], _Run], worst: dict[int, float]) -> Criterion:
    """Radii at which half the worst policy's regret is reached, by linear interpolation between radii."""
    radii = (0.0, *RADII, *WIDE)
    needed: dict[str, float] = {}
    for seed, harm in worst.items():
        for kind in ("bifurcate", "targeted"):
            curve = [0.0, *(float(runs[kind, radius, seed].harm.mean()) for radius in radii[1:])]
            past = next((k for k, value in enumerate(curve) if value >= harm / 2), None)
            needed[f"{kind}, seed {seed}"] = (
                float(np.interp(harm / 2, curve[past - 1 : past + 1], radii[past - 1 : past + 1])) if past else 1.0
            )
    statement = (
        "half the worst policy's regret is reached at a smaller radius by the bifurcation than by the attack that "
        "aims at the worst policy's actions (1: at no radius tried)"
    )
    smaller = all(needed[f"bifurcate, seed {seed}"] < needed[f"targeted, seed {seed}"] for seed in worst)
    return Criterion(statement, smaller, needed)


def _robust_run() -> _Run:
    one_step = ObservationAttack(Linf(0.1), mask=ATTACKABLE, steps=1, step_size=0.1)
    generator = torch_generator(SEEDS[0], PAPER.key, "robust attack")

    def attacked(model: nn.Module) -> Policy:
        # The perturbation is taken as given; how the day unfolds is differentiated as it is without it.
        return lambda s: model(s + (one_step(model, s, generator=generator) - s).detach())

    policy = trained(SEEDS[0], PAPER.key, "policy", batches=120, change=attacked)
    days = Days.drawn(256, torch_generator(SEEDS[0], PAPER.key, "test"))
    return _attacked(days, policy, ObservationAttack(Linf(0.1), mask=ATTACKABLE), SEEDS[0])


def _robust(plain: _Run, robust: _Run) -> Criterion:
    less = paired_difference(robust.harm, plain.harm)
    return Criterion(
        "training under attack lowers the regret of the bifurcation at radius 0.1 (95% interval, one seed)",
        less.low > 0,
        {
            "regret, plain": plain.regret,
            "regret, robust": robust.regret,
            "difference": less,
            "clean cost, plain": float(plain.clean.mean()),
            "clean cost, robust": float(robust.clean.mean()),
        },
    )


def _gymnasium() -> Criterion:
    """A linear controller that keeps CartPole up, in gymnasium's own loop."""
    import gymnasium

    controller = nn.utils.skip_init(nn.Linear, 4, 2, bias=False)
    gain = torch.tensor([0.3, 0.6, 5.0, 1.5])
    controller.weight.data.copy_(torch.stack([-gain, gain]))
    threat = Linf(torch.tensor([0.2, 0.2, 0.05, 0.2]))
    attack = ObservationAttack(threat, actions="discrete", groups=((0,), (1,)), steps=5)
    noise = _Noise(threat, actions="discrete", groups=((0,), (1,)))
    make = partial(gymnasium.make, "CartPole-v1")
    seeds = tuple(range(10))
    attacked, random = (
        regret(make, controller.eval(), way, seeds, generator=torch_generator(0, PAPER.key, "cart"))
        for way in (attack, noise)
    )
    return Criterion(
        "gymnasium's CartPole under a linear controller: the attack costs return (95% interval), and more than noise",
        attacked.low > max(0.0, random.value),
        {"regret": attacked, "regret, noise": random},
    )


def _figure(runs: dict[tuple[str, float, int], _Run]) -> Curve:
    series = []
    for kind in KINDS:
        means = [np.concatenate([runs[kind, radius, seed].harm for seed in SEEDS]) for radius in RADII]
        found = [paired_difference(np.zeros_like(harm), harm) for harm in means]
        ends = (tuple(getattr(estimate, end) for estimate in found) for end in ("value", "low", "high"))
        series.append(Series(kind, RADII, *ends))
    return Curve(
        "What attacks on observations cost",
        "radius (Linf, all features but the clock)",
        "regret a day",
        tuple(series),
        caption="Pooled over three seeds; the same days with and without the attack.",
    )


def _stealth(runs: dict[tuple[str, float, int], _Run]) -> Table:
    rows = []
    for kind in KINDS:
        run = runs[kind, 0.1, SEEDS[0]]
        moved = np.abs(run.shown - run.seen)
        generator = numpy_generator(SEEDS[0], PAPER.key, "two samples", kind)
        chances = [_detected(run, width, generator) for width in (1, 6)]
        rows.append((kind, float(moved.mean()), float((moved > 0).mean()), *chances, _lag(run.shown[:, :, 2])))
    clean = _lag(runs["random", 0.1, SEEDS[0]].seen[:, :, 2])
    return Table(
        "How visible the attacks are at radius 0.1",
        ("attack", "mean change", "share changed", "p, single steps", "p, windows of 6", "lag-1 correlation of price"),
        tuple(rows),
        caption="p-values of equality (kernel two-sample test) between clean observations of 128 days and attacked "
        f"ones of 128 others, one window a day; prices less their hourly mean correlate by {clean:.2f} unattacked.",
    )


def _detected(run: _Run, width: int, generator: np.random.Generator) -> float:
    """p-value of equality of clean and attacked windows, one a day, from different days."""
    starts = generator.integers(0, STEPS - width + 1, len(run.seen))
    halves = np.array_split(np.arange(len(starts)), 2)
    clean, attacked = (
        np.stack([series[day, starts[day] : starts[day] + width] for day in half])
        for series, half in zip((run.seen, run.shown), halves, strict=True)
    )
    return mmd_test(clean, attacked, generator=generator).p_value


def _lag(series: np.ndarray) -> float:
    rest = series - series.mean(0)
    return float(np.corrcoef(rest[:, :-1].ravel(), rest[:, 1:].ravel())[0, 1])
