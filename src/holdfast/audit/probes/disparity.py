"""Whether everyone is served alike: the gap in accuracy between groups, on clean inputs and under attack.

Groups are those the data names (`Data.groups`), the classes otherwise.  Per example: whether it is right, and, when
gradients are there, whether it is still right after a short gradient attack (10 steps of PGD).  The attack
is weak on purpose and the same for every group: it compares groups, `adversarial` measures how robust the model is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from holdfast.audit.probe import Batch, Evidence, Needs, Rows, Settings
from holdfast.audit.probes.attack_plan import default_threat
from holdfast.core.errors import UnsupportedError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Bars, Exhibit, Table
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.core.shares import Shares
from holdfast.inputs.attack.disparity import DisparityReport
from holdfast.inputs.attack.gradient import PGD
from holdfast.subject.subject import Access, Subject
from holdfast.threats.base import Threat

STEPS = 10
SHOWN = 30
FEW = 30


@dataclass(frozen=True)
class State:
    """The threat of the attack (None: clean only), what the groups are and how many there are.  `why` says why there is
    no attack, or how its threat was chosen."""

    threat: Threat | None
    why: str
    kind: str
    groups: np.ndarray | None  # (examples,) of the test data; None: classes
    count: int


@dataclass(frozen=True)
class DisparityProbe:
    """See the module."""

    name: str = "disparity"
    question: str = "Does it serve every group and class alike?"
    perturbs: str = "nothing, and inputs"
    needs: Needs = field(default_factory=Needs)
    shard_size: int = 256

    def prepare(self, subject: Subject, settings: Settings) -> State:
        """Decide on groups, and whether the attack can be run."""
        threat, why = _attackable(subject, settings)
        groups = subject.test.groups
        if groups is None or len(np.unique(groups)) < 2:
            return State(threat, why, "class", None, subject.classes)
        return State(threat, why, "group", np.asarray(groups), len(np.unique(groups)))

    def examine(self, subject: Subject, state: State, batch: Batch) -> Rows:
        """Columns `correct` (n,) bool and, under a threat, `held` (n,) bool: right before and after the attack."""
        correct = batch.correct
        rows = {"correct": correct.cpu().numpy()}
        if state.threat is not None:
            held = correct.clone()
            if correct.any():
                x, y = batch.x[correct], batch.y[correct]
                attack = PGD(state.threat, steps=STEPS)
                x_adv = attack(subject.model, x, y, valid=subject.valid, generator=batch.generator)
                held[correct] = subject.logits(x_adv).argmax(1) == y
            rows["held"] = held.cpu().numpy()
        return rows

    def headline(self, state: State, evidence: Evidence, settings: Settings) -> Estimate | None:
        """Gap between the best and the worst served group on clean inputs; None until two groups were seen."""
        report = _report(state, evidence, settings)
        return report.gap if len(report.clean.groups) > 1 else None

    def conclude(self, subject: Subject, state: State, evidence: Evidence, settings: Settings) -> Section:
        """Gaps and worst groups, clean and under attack."""
        report = _report(state, evidence, settings)
        sides = {"clean": report.clean} | ({} if report.attacked is None else {"attack": report.attacked})
        if len(report.clean.groups) < 2:
            answer = f"Only one {state.kind} was seen so far, so there is nothing to compare."
            return Section(
                self.name, self.question, answer, (), status="partial",
                examined=len(evidence), available=len(subject.test),
            )  # fmt: skip
        findings = [
            finding for side, found in sides.items() for finding in _findings(self.name, subject, state, side, found)
        ]
        return Section(
            probe=self.name,
            question=self.question,
            answer=" ".join(finding.sentence for finding in findings if finding.name in ("gap", "gap_under_attack")),
            findings=tuple(findings),
            exhibits=tuple(_exhibits(subject, state, sides)),
            doubts=tuple(_doubts(self.name, subject, state, sides["clean"])),
            method=f"Accuracy per {state.kind}; intervals hold for all together and at every look. {_how(state)}",
            advice=f"Collect more examples of the worst {state.kind}, or weigh them up in training; then look at the "
            "gap again, since repairs often move the error elsewhere.",
            examined=len(evidence),
            available=len(subject.test),
        )


def _attackable(subject: Subject, settings: Settings) -> tuple[Threat | None, str]:
    if subject.access < Access.GRADIENTS:
        return None, "the model gives no gradients"
    threat, words = (settings.threat, "") if settings.threat is not None else default_threat(subject)
    # The steps of the attack one by one: on an example that is wrong already the attack itself would ask for none.
    x = subject.tensor(subject.test.take(np.arange(1))[0])
    try:
        threat.stride(subject.valid)
        threat.project(x + threat.steepest(torch.ones_like(x)), x, subject.valid)
    except UnsupportedError as error:
        return None, f"the attack does not cover this threat ({error})"
    return threat, words


def _how(state: State) -> str:
    if state.threat is None:
        return f"Not attacked: {state.why}."
    return f"Attack: {STEPS} steps of projected gradient ascent, {state.threat.describe()}. {state.why}".rstrip()


def _report(state: State, evidence: Evidence, settings: Settings) -> DisparityReport:
    groups = evidence.clean["label"] if state.groups is None else state.groups[evidence.clean["index"]]
    held = None if state.threat is None else evidence["held"]
    return DisparityReport.of(evidence["correct"], groups, held, level=settings.level, count=state.count)


def _name(subject: Subject, state: State, group: str | int) -> str:
    if state.groups is None and int(group) < len(subject.class_names):
        return subject.class_names[int(group)]
    return str(group)


def _findings(probe: str, subject: Subject, state: State, side: str, found: Shares) -> list[Finding]:
    suffix = "" if side == "clean" else "_under_attack"
    where = "On clean inputs" if side == "clean" else "Under attack"
    worst, best = (_name(subject, state, found.groups[k]) for k in (found.worst, found.best))
    gap, low = found.gap, found.worst_share
    sure = "" if gap.low > 0 else ", which may still be chance"
    compared = f"{where} it is right on {low.value:.1%} of every {state.kind} seen."
    if gap.value > 0:
        compared = (
            f"{where} it is right on {found.estimates[found.best].value:.1%} of {best} and on {low.value:.1%} of "
            f"{worst}: a gap of {100 * gap.value:.1f} points{sure}."
        )
    return [
        Finding(
            probe,
            f"gap{suffix}",
            gap,
            compared,
            direction="lower is better",
            headline=side == "clean",
        ),
        Finding(
            probe,
            f"worst{suffix}",
            low,
            f"{where} the worst served {state.kind}, {worst}, gets {low.value:.1%} right.",
        ),
    ]


def _exhibits(subject: Subject, state: State, sides: dict[str, Shares]) -> list[Exhibit]:
    clean, attack = sides["clean"], sides.get("attack")
    order = sorted(range(len(clean.groups)), key=lambda k: clean.estimates[k].value)[:SHOWN]
    names = [_name(subject, state, clean.groups[k]) for k in order]
    exhibits: list[Exhibit] = [
        Table(
            f"Accuracy per {state.kind}",
            (state.kind, "examples", "clean", *(() if attack is None else ("under attack",))),
            tuple(
                (name, clean.counts[k], clean.estimates[k], *(() if attack is None else (attack.estimates[k],)))
                for name, k in zip(names, order)
            ),
        )
    ]
    for title, side in (("on clean inputs", clean), ("under attack", attack)):
        if side is not None:
            exhibits.append(
                Bars(
                    f"Accuracy per {state.kind}, {title}",
                    "share right",
                    tuple(names),
                    tuple(side.estimates[k] for k in order),
                    limits=(0.0, 1.0),
                )
            )
    return exhibits


def _doubts(probe: str, subject: Subject, state: State, clean: Shares) -> list[Doubt]:
    small = [_name(subject, state, group) for group, count in zip(clean.groups, clean.counts) if count < FEW]
    if not small:
        return []
    named = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
    return [
        Doubt(
            "small groups",
            f"Fewer than {FEW} examples of {named}: the gap between extremes of small groups is mostly chance.",
            (f"{probe}.gap",),
            f"Bring at least {FEW} examples of every {state.kind}, better 200.",
        )
    ]
