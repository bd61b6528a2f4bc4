"""Can a perturbation that keeps within the threat change the model's answer?

Every correctly classified example is attacked at rising radii, each time by several attacks in turn, and counts as
held at a radius only when all of them failed there (worst case per example).  What is broken at a small radius is not
attacked again.  The accuracy under attack is an upper bound of the true worst case; the doubts say when it should not
be trusted even as that.

The smallest breaking radius of an example is the size of the perturbation found, shortened by bisection along its
line for as long as it fools; it bounds the distance to the decision boundary from above.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from holdfast.audit.pictures import picture
from holdfast.audit.probe import Batch, Evidence, Needs, Rows, Settings
from holdfast.audit.probes.attack_plan import Plan, make_plan
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Exhibit, Gallery, Series, Table
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.core.seeds import torch_generator
from holdfast.core.sequences import anytime_mean
from holdfast.inputs.attack import symptoms
from holdfast.inputs.attack.ensemble import in_turn
from holdfast.inputs.attack.gradient import FGSM, PGD
from holdfast.inputs.attack.loop import AttackRun, ascend, forward
from holdfast.inputs.attack.losses import Aim
from holdfast.inputs.attack.noise import RandomNoise
from holdfast.subject.subject import Access, Subject
from holdfast.threats import L1, L2, Box, Linf
from holdfast.threats.base import per_example
from holdfast.threats.wording import number

FEW = 50
SHOWN = 8
BISECTIONS = 8
NOISE_DRAWS = 5
SYMPTOM_EXAMPLES = 32
#: Attacks too simple to count on, run to see whether the others are misled; what they break is broken all the same.
CHECKS = ("random noise", "one gradient step", "ten plain steps")
#: Relative loss of loss from one step to ten that is more than rounding.
RUGGED = 1e-3


@dataclass(frozen=True)
class State:
    """The attacks by radius, and what was seen of the model before any example was attacked."""

    plan: Plan
    doubts: tuple[Doubt, ...]
    first_order: bool


@dataclass(frozen=True)
class AdversarialProbe:
    """See the module."""

    name: str = "adversarial"
    question: str = "Does the answer survive someone who may change the input a little?"
    perturbs: str = "inputs"
    needs: Needs = field(default_factory=lambda: Needs(access=Access.LABELS))
    shard_size: int = 128

    def prepare(self, subject: Subject, settings: Settings) -> State:
        """Choose threat and attacks; look for outputs that are random or probabilities."""
        x = subject.tensor(subject.test.inputs.take(np.arange(min(SYMPTOM_EXAMPLES, len(subject.test)))))
        seen = [symptoms.randomness(subject.model, x)]
        plan = make_plan(subject, settings.threat, randomised=seen[0] is not None)
        if subject.access == Access.GRADIENTS:
            seen.append(symptoms.probabilities(subject.logits(x)))
        first_order = subject.access == Access.GRADIENTS and isinstance(plan.threat, (Linf, Box, L2, L1))
        return State(plan, tuple(doubt for doubt in seen if doubt is not None), first_order)

    def examine(self, subject: Subject, state: State, batch: Batch) -> Rows:
        """Columns, one row an example.

        `held` (n, radii) bool: right, and not broken within that radius; `robust` (n,) bool: the same at the chosen
        radius; `lost` (n,) bool: right but broken at the chosen radius; `radius` (n,): size of the smallest
        perturbation found, inf when none was, NaN where the clean answer is wrong; `broken_by` (n,) int8: attack at
        the chosen radius or below, -1 none, -2 wrong already; `queries` (n,); `noise`, `fgsm`, `flat`, `falling`
        (n,) bool: fooled by noise, by one step; zero gradient; ten steps reach less loss than one.
        """
        plan, examples = state.plan, len(batch)
        sanity, checks = self._sanity(subject, state, batch)
        right = batch.correct
        standing = right.clone()
        held = torch.zeros(examples, len(plan.stages), dtype=torch.bool)
        radius = torch.where(right, torch.inf, torch.nan).double()
        broken_by = torch.where(right, -1, -2).to(torch.int8)
        queries = torch.zeros_like(batch.y)
        for place, stage in enumerate(plan.stages):
            rows = standing.nonzero().squeeze(1)
            if len(rows):
                run = in_turn(
                    stage.attacks,
                    stage.threat,
                    subject.model,
                    batch.x[rows],
                    batch.y[rows],
                    subject.valid,
                    batch.generator,
                    clean_logits=batch.logits[rows],
                )
                queries[rows] += run.queries
                broken = rows[run.success]
                radius[broken] = self._shortest(subject, state, batch, broken, run.x_adv[run.success])
                if state.first_order and len(broken):
                    # Straight up from the input: a random start fools from aside, which is further than need be.
                    given: dict[str, Any] = {"valid": subject.valid, "clean_logits": batch.logits[broken]}
                    climb = PGD(stage.threat, steps=10, loss="margin", random_start=False)
                    again = climb.run(subject.model, batch.x[broken], batch.y[broken], **given)
                    won = broken[again.success]
                    direct = self._shortest(subject, state, batch, won, again.x_adv[again.success])
                    radius[won] = torch.minimum(radius[won], direct)
                if place <= plan.chosen:
                    names = attack_names(plan)
                    code = torch.tensor([names.index(name) for name, _ in stage.attacks], dtype=torch.int8)
                    broken_by[broken] = code[run.broken_by[run.success].cpu()].to(broken_by.device)
                standing[broken] = False
            if place == plan.chosen:
                # What a check of the attack broke is broken, whatever the attack itself found.
                for number_of_check, check in enumerate(checks):
                    late = (standing & check.success).nonzero().squeeze(1)
                    radius[late] = self._shortest(subject, state, batch, late, check.x_adv[late])
                    broken_by[late] = len(attack_names(plan)) - len(CHECKS) + number_of_check
                    standing[late] = False
            held[:, place] = standing.cpu()
        robust = held[:, plan.chosen]
        rows_out = {
            "held": held,
            "robust": robust,
            "lost": right.cpu() & ~robust,
            "radius": radius,
            "broken_by": broken_by,
            "queries": queries,
            **sanity,
        }
        return {name: column.cpu().numpy() for name, column in rows_out.items()}

    def _shortest(self, subject: Subject, state: State, batch: Batch, rows: Tensor, x_adv: Tensor) -> Tensor:
        """Size of each perturbation, shortened along its line while it still fools."""
        threat, x = state.plan.threat, batch.x[rows]
        high = torch.ones(len(rows), dtype=x.dtype, device=x.device)
        if isinstance(threat, (Linf, Box, L2, L1)) and len(rows):
            low = torch.zeros_like(high)
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                logits = forward(subject.model, x + per_example(middle, x) * (x_adv - x))
                fooled = (logits.argmax(1) != batch.y[rows]) & torch.isfinite(logits).all(1)
                high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)
        return threat.norm(per_example(high, x) * (x_adv - x)).double()

    def _sanity(self, subject: Subject, state: State, batch: Batch) -> tuple[dict[str, Tensor], tuple[AttackRun, ...]]:
        """What the doubts need, and the runs of `CHECKS` at the chosen radius."""
        threat, x, y = state.plan.threat, batch.x, batch.y
        given: dict[str, Any] = {"valid": subject.valid, "generator": batch.generator, "clean_logits": batch.logits}
        noise = RandomNoise(threat, draws=NOISE_DRAWS).run(subject.model, x, y, **given)
        nothing = torch.zeros_like(noise.success)
        if not state.first_order:
            return {"noise": noise.success, "fgsm": nothing, "flat": nothing, "falling": nothing}, (noise,)
        fgsm = FGSM(threat).run(subject.model, x, y, **given)
        steps = PGD(threat, steps=10, random_start=False).run(subject.model, x, y, **given)
        _, _, grad = ascend(subject.model, x, Aim("margin", y))
        after_one = Aim("ce", y).value(forward(subject.model, fgsm.x_adv))
        lower = after_one - steps.best_loss > RUGGED * after_one.abs()
        told = {
            "noise": noise.success,
            "fgsm": fgsm.success,
            "flat": grad.flatten(1).abs().amax(1) == 0,
            "falling": batch.correct & ~steps.success & lower,
        }
        return told, (noise, fgsm, steps)

    def headline(self, state: State, evidence: Evidence, settings: Settings) -> Estimate | None:
        """Accuracy under attack at the chosen radius."""
        return anytime_mean(evidence["robust"].astype(bool), level=settings.level) if len(evidence) else None

    def conclude(self, subject: Subject, state: State, evidence: Evidence, settings: Settings) -> Section:
        """Accuracy under attack, what was lost, the median breaking radius; curve, table, gallery, doubts."""
        findings = conclusions(state, evidence, settings) if len(evidence) else ()
        return Section(
            probe=self.name,
            question=self.question,
            answer=findings[0].sentence if findings else "No example was examined.",
            findings=findings,
            exhibits=exhibits(subject, state, evidence, settings) if len(evidence) else (),
            doubts=tuple(doubts(subject, state, evidence, settings)) if len(evidence) else state.doubts,
            method=method(subject, state),
            advice="Train on perturbed inputs (adversarial training) or bound what inputs can do with a certificate; "
            "an attack can only show that a model breaks, never that it holds.",
            examined=len(evidence),
            available=len(subject.test),
        )


def attack_names(plan: Plan) -> list[str]:
    """Every attack of the plan once, in order of first use, then the checks; `broken_by` counts them from 0."""
    return [*dict.fromkeys(name for stage in plan.stages for name, _ in stage.attacks), *CHECKS]


def conclusions(state: State, evidence: Evidence, settings: Settings) -> tuple[Finding, ...]:
    """The three findings; the median only where some example was right."""
    words = state.plan.threat.describe()
    robust = anytime_mean(evidence["robust"].astype(bool), level=settings.level)
    lost = anytime_mean(evidence["lost"].astype(bool), level=settings.level)
    findings = [
        Finding(
            "adversarial",
            "accuracy",
            robust,
            f"With {words}, the model still answers {robust.value:.0%} of examples correctly; the rest was wrong "
            "already or was broken by an attack.",
            headline=True,
            column="robust",
        ),
        Finding(
            "adversarial",
            "drop",
            lost,
            f"Attacks turn {lost.value:.0%} of all examples from right to wrong.",
            direction="lower is better",
            column="lost",
        ),
    ]
    radius = evidence["radius"][~np.isnan(evidence["radius"])]
    if len(radius):
        middle = median_radius(radius, state.plan.radii[-1], settings.level)
        findings.append(
            Finding(
                "adversarial",
                "median_radius",
                middle,
                f"Half of the examples it gets right break within a radius of {number(middle.value)} "
                f"(chosen: {number(state.plan.threat.radius)}).",
                unit="radius",
            )
        )
    return tuple(findings)


def median_radius(radius: Float[np.ndarray, " n"], largest: float, level: float) -> Estimate:
    """Median of the smallest breaking radii, `largest` standing for those never broken.

    The interval holds every r at which the share broken within r may still be one half, so it is valid at every look.
    """
    ordered = np.unique(np.minimum(radius, largest))

    def share(r: float, strictly: bool) -> Estimate:
        return anytime_mean((radius < r) if strictly else (radius <= r), level=level)

    low = _first(ordered, lambda r: share(r, False).high >= 0.5, largest)
    high = _first(ordered, lambda r: share(r, False).low > 0.5, largest)
    value = float(np.median(np.minimum(radius, largest)))
    return Estimate(value, min(low, value), max(high, value), level, len(radius), "inverted anytime interval")


def _first(ordered: Float[np.ndarray, " values"], true_from: object, otherwise: float) -> float:
    """Smallest value at which a monotone condition holds."""
    assert callable(true_from)
    left, right = 0, len(ordered)
    while left < right:
        middle = (left + right) // 2
        if true_from(float(ordered[middle])):
            right = middle
        else:
            left = middle + 1
    return float(ordered[left]) if left < len(ordered) else otherwise


def exhibits(subject: Subject, state: State, evidence: Evidence, settings: Settings) -> tuple[Exhibit, ...]:
    """The radius-accuracy curve, which attack broke how many, the smallest successful perturbations."""
    plan = state.plan
    right = evidence["broken_by"] != -2
    points = [anytime_mean(right.astype(bool), level=settings.level)]
    points += [anytime_mean(evidence["held"][:, k].astype(bool), level=settings.level) for k in range(len(plan.stages))]
    curve = Curve(
        "Accuracy by radius",
        "radius of the threat",
        "accuracy under attack",
        (
            Series(
                "worst case of all attacks",
                (0.0, *plan.radii),
                tuple(point.value for point in points),
                tuple(point.low for point in points),
                tuple(point.high for point in points),
            ),
        ),
        f"The chosen radius is {number(plan.threat.radius)}. At the last one nearly anything is allowed, so the curve "
        "should end near zero.",
        y_limits=(0.0, 1.0),
    )
    names = attack_names(plan)
    broken = [(name, int((evidence["broken_by"] == code).sum())) for code, name in enumerate(names)]
    table = Table(
        "What broke the examples, at the chosen radius or a smaller one",
        ("attack", "examples"),
        (*((name, count) for name, count in broken if count), ("nothing", int((evidence["broken_by"] == -1).sum()))),
        "Attacks run in this order, each on what the ones before left standing.",
    )
    return (curve, table, *gallery(subject, state, evidence, settings))


def gallery(subject: Subject, state: State, evidence: Evidence, settings: Settings) -> tuple[Gallery, ...]:
    """The smallest successful perturbations, found again from the evidence's radii."""
    radius = np.where(np.isnan(evidence["radius"]), np.inf, evidence["radius"])
    smallest = np.argsort(radius, kind="stable")[:SHOWN]
    smallest = smallest[np.isfinite(radius[smallest])]
    pictures = []
    for place in smallest:
        found = shown_again(subject, state, evidence, int(place), settings)
        if found is None:
            continue
        before, after, predicted, size = found
        label, names = int(evidence.clean["label"][place]), subject.class_names
        told = [names[k] if k < len(names) else str(k) for k in (label, predicted)]
        pictures.append(
            picture(
                f"{told[0]} → {told[1]}",
                after,
                modality=subject.modality,
                valid=subject.valid if subject.valid is not None else (0.0, 1.0),
                before=before,
                names=subject.test.feature_names,
                text=f"size {number(size)}",
            )
        )
    if not pictures:
        return ()
    return (Gallery("The smallest changes that fooled the model", tuple(pictures), "Right before, wrong after."),)


def shown_again(
    subject: Subject, state: State, evidence: Evidence, place: int, settings: Settings
) -> tuple[np.ndarray, np.ndarray, int, float] | None:
    """(before, after, new prediction, size) of one broken example, attacked at the smallest planned radius that broke
    it.
    """
    index = evidence.clean["index"][place : place + 1]
    inputs, labels = subject.test.take(index)
    x = subject.tensor(inputs)
    y = torch.from_numpy(labels.astype(np.int64)).to(x.device)
    stage = state.plan.stages[int(np.argmin(evidence["held"][place]))]
    generator = torch_generator(settings.seed, "adversarial gallery", int(index[0]))
    run = in_turn(stage.attacks, stage.threat, subject.model, x, y, subject.valid, generator)
    if not bool(run.success[0]):
        return None
    after = run.x_adv
    if isinstance(stage.threat, (Linf, Box, L2, L1)):
        after = shortened(subject, x, y, after)
    predicted = int(forward(subject.model, after).argmax(1)[0])
    return x[0].cpu().numpy(), after[0].cpu().numpy(), predicted, float(stage.threat.norm(after - x)[0])


def shortened(subject: Subject, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """The adversarial point pulled towards the input for as long as it fools."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fooled = bool((forward(subject.model, x + middle * (x_adv - x)).argmax(1) != y)[0])
        low, high = (low, middle) if fooled else (middle, high)
    return x + high * (x_adv - x)


def doubts(subject: Subject, state: State, evidence: Evidence, settings: Settings) -> list[Doubt]:
    """Why the accuracy under attack may be too high."""
    plan = state.plan
    right: Bool[np.ndarray, " n"] = evidence["broken_by"] != -2
    examples = int(right.sum())
    names = attack_names(plan)
    by_attack = evidence["broken_by"] < len(names) - len(CHECKS)
    broken = int((evidence["lost"] & by_attack).sum())
    noise = int(evidence["noise"].sum())
    found: list[Doubt | None] = list(state.doubts)
    if state.first_order:
        found.append(symptoms.zero_gradients(int((evidence["flat"] & right).sum()), examples))
        found.append(symptoms.noise_beats(noise, int(evidence["fgsm"].sum()), examples, "one gradient step"))
        found.append(symptoms.loss_not_rising(int(evidence["falling"].sum()), examples))
        if "Square" in names:
            by_scores = int((evidence["broken_by"] == names.index("Square")).sum())
            found.append(symptoms.black_box_beats(by_scores, len(evidence)))
    found.append(symptoms.noise_beats(noise, broken, examples, "the whole attack"))
    if plan.stages[-1].everything:
        last = anytime_mean(evidence["held"][:, -1].astype(bool), level=settings.level)
        chance = 1 / max(subject.classes, 2)
        found.append(symptoms.does_not_fall(last.low, chance, f"radius {number(plan.radii[-1])}"))
    if 0 < examples < FEW:
        found.append(
            Doubt(
                "few attacked examples",
                f"Only {examples} examples were right to begin with and could be attacked, so the interval is wide.",
                symptoms.TOUCHES,
                "Bring more test examples.",
            )
        )
    return [doubt for doubt in found if doubt is not None]


def method(subject: Subject, state: State) -> str:
    """How it was measured, in plain words."""
    plan = state.plan
    sees = {
        Access.GRADIENTS: "the model's gradients",
        Access.SCORES: "only the model's scores",
        Access.LABELS: "only the predicted labels",
    }[subject.access]
    attacks = ", ".join(name for name, _ in plan.stages[plan.chosen].attacks)
    lighter = {", ".join(name for name, _ in stage.attacks) for stage in plan.stages if not stage.chosen} - {attacks}
    if lighter:
        attacks += f" (at the other radii {' or '.join(sorted(lighter))})"
    radii = ", ".join(number(radius) for radius in plan.radii)
    told = (
        f"The perturbation: {plan.threat.describe()}.",
        f"The attacks see {sees} and run in turn on what is still standing: {attacks}.",
        "An example counts as correct under attack only when every one failed, and random noise and a few plain "
        "gradient steps as well.",
        f"Radii tried, in rising order: {radii}; each is attacked only where the smaller ones failed.",
        "Accuracy under attack is an upper bound: a stronger attack could find more.",
    )
    return " ".join((plan.words, *told) if plan.words else told)
