"""Can a patch make a system that answers only what it can prove fall silent?

Such a system certifies its prediction against the threat and abstains where it cannot.  Training data may teach a model
a patch under which it keeps no margin (Lorenz, Kwiatkowska & Fritz, 2023), and any model has patches that cost it some.
Before the audit looks at test examples, one patch for all inputs is searched for on training images, at the largest
radius (a fraction of the threat's) where the model's predictions are still certified for at least half of them; test
examples then say how often the system abstains without it, with it, and with random patches of the same size.

Training labels that contradict a near-duplicate, which is what such poison looks like, are counted as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from holdfast.audit.pictures import picture
from holdfast.audit.probe import Batch, Evidence, Needs, Rows, Settings
from holdfast.audit.probes.attack_plan import default_threat
from holdfast.audit.probes.proof_plan import hindrance, widened
from holdfast.core.errors import UnsupportedError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Exhibit, Gallery, Table
from holdfast.core.finding import Finding, Section
from holdfast.core.seeds import numpy_generator, torch_generator
from holdfast.core.sequences import anytime_mean
from holdfast.inputs.attack.availability import PatchTrigger, label_conflicts
from holdfast.inputs.attack.certifiers import BoundCertifier, certified
from holdfast.inputs.attack.loop import forward
from holdfast.inputs.attack.trigger_search import find_abstain_trigger
from holdfast.subject.subject import Access, Subject
from holdfast.threats.base import Threat
from holdfast.threats.places import Patch
from holdfast.threats.wording import number

#: Training images for the search (half of them choose, half judge), and steps and images a step of it.
SEARCHED, STEPS, STARTS, TOGETHER = 256, 20, 2, 64
#: The patch's sides as a share of the image's, and in pixels at least.
SIDE, LEAST = 1 / 7, 2
#: Only the share of places where images vary least is tried: a patch that hides the object silences any model.
QUIETEST = 0.1
#: Radii that are tried, in units of the threat's, falling; and the share that must be certified.
FRACTIONS = tuple(2.0**-k for k in range(9))
ENOUGH = 0.5
#: Training examples among which contradicting labels are looked for, and pictures shown.
COMPARED, SHOWN = 5000, 4


@dataclass(frozen=True)
class State:
    """The worst patch, the radius it was searched at, and what the search found; `trigger` None: nothing is certified.

    `conflicts` of `compared` training examples contradict a near-duplicate.
    """

    trigger: PatchTrigger | None
    threat: Threat
    patch: Patch
    found: float
    conflicts: int
    compared: int
    words: str


@dataclass(frozen=True)
class AvailabilityProbe:
    """See the module."""

    name: str = "availability"
    question: str = "Can one small patch make a system that answers only what it can prove fall silent?"
    perturbs: str = "inputs, and the training set"
    needs: Needs = field(
        default_factory=lambda: Needs(access=Access.GRADIENTS, train=True, modality=frozenset({"image"}))
    )
    shard_size: int = 128

    def prepare(self, subject: Subject, settings: Settings) -> State:
        """Choose the radius and search the patch.  UnsupportedError where the model cannot be bounded."""
        threat, words = (settings.threat, "") if settings.threat is not None else default_threat(subject)
        reason = hindrance(subject, threat)
        if reason is not None or subject.valid is None:
            raise UnsupportedError(reason or "the range of the inputs is not known, so a patch has no extreme values")
        assert subject.train is not None
        order = numpy_generator(settings.seed, "availability").permutation(len(subject.train))
        x = subject.tensor(subject.train.inputs.take(np.sort(order[:SEARCHED])))
        patch = _patch(subject)
        conflicts, compared = _conflicts(subject, np.sort(order[:COMPARED]))
        radius = _certifiable(subject, x, threat)
        if radius is None:
            return State(None, threat, patch, 0.0, conflicts, compared, words)
        found = find_abstain_trigger(
            subject.model,
            _certifier(subject, radius),
            x,
            (patch.height, patch.width),
            STEPS,
            starts=STARTS,
            quiet=_quiet(x, patch),
            batch=TOGETHER,
            valid=subject.valid,
            generator=torch_generator(settings.seed, "availability"),
        )
        return State(found.trigger, radius, patch, found.searched, conflicts, compared, words)

    def examine(self, subject: Subject, state: State, batch: Batch) -> Rows:
        """Columns (n,) bool: `clean`, `patched`, `scattered`, whether the system abstains without a patch, with the
        worst one, with a random one; `moved`, whether the worst patch changes the prediction.  All true for a model
        that certifies nothing.
        """
        if state.trigger is None:
            silent = np.ones(len(batch), dtype=bool)
            return {"clean": silent, "patched": silent, "scattered": silent, "moved": ~silent}
        certifier = _certifier(subject, state.threat)
        random = state.patch.random_start(batch.x, subject.valid, generator=batch.generator)
        answers, abstained = [], []
        for inputs in (batch.x, state.trigger(batch.x), random):
            answers.append(forward(subject.model, inputs).argmax(1))
            abstained.append((~certified(certifier, inputs, answers[-1])).cpu().numpy())
        moved = (answers[0] != answers[1]).cpu().numpy()
        return {"clean": abstained[0], "patched": abstained[1], "scattered": abstained[2], "moved": moved}

    def headline(self, state: State, evidence: Evidence, settings: Settings) -> Estimate | None:
        """How often the system abstains under the worst patch."""
        return anytime_mean(evidence["patched"], level=settings.level) if len(evidence) else None

    def conclude(self, subject: Subject, state: State, evidence: Evidence, settings: Settings) -> Section:
        """Abstentions without a patch, with the worst one, with random ones; labels that contradict one another."""
        findings = _findings(state, evidence, settings)
        return Section(
            probe=self.name,
            question=self.question,
            answer=findings[0].sentence,
            findings=findings,
            exhibits=tuple(_exhibits(subject, state, evidence, settings)),
            method=_method(state),
            advice="Certify a sample of inputs with patches before trusting the abstentions, keep the radius of the "
            "certificate above the size of the changes an adversary can make to a patch, and look at training examples "
            "whose labels contradict a near-duplicate: that is what the poison behind such a patch looks like.",
            examined=len(evidence),
            available=len(subject.test),
        )


def _patch(subject: Subject) -> Patch:
    height, width = subject.test.shape[-2:]
    return Patch(*(min(side, max(LEAST, round(SIDE * side))) for side in (height, width)))


def _quiet(x: torch.Tensor, patch: Patch) -> float:
    """The share of the largest variance under the patch that a tenth of all places stay below."""
    varying = patch.window_sums(x.double().var(0).sum(0)[None]).flatten()
    share = varying.quantile(QUIETEST) / varying.max().clamp(min=torch.finfo(varying.dtype).tiny)
    return float(share.clamp(0.01, 1.0)) * (1 - 1e-9) + 1e-9


def _certifier(subject: Subject, threat: Threat) -> BoundCertifier:
    x = subject.tensor(subject.test.inputs.take(np.arange(min(64, len(subject.test)))))
    valid = widened(subject.valid, x)
    assert valid is not None
    return BoundCertifier(subject.model, threat, valid, "crown-ibp")


def _certifiable(subject: Subject, x: torch.Tensor, threat: Threat) -> Threat | None:
    """The threat at the largest radius where enough predictions are certified; None where there is none."""
    sample = x[:TOGETHER]
    answers = forward(subject.model, sample).argmax(1)
    for fraction in FRACTIONS:
        smaller = threat if fraction == 1 else threat.scaled(fraction * threat.radius)
        if float(certified(_certifier(subject, smaller), sample, answers).float().mean()) >= ENOUGH:
            return smaller
    return None


def _conflicts(subject: Subject, rows: np.ndarray) -> tuple[int, int]:
    """How many of some training examples contradict a near-duplicate, and of how many."""
    assert subject.train is not None
    inputs, labels = subject.train.take(rows)
    if len(rows) <= 21:
        return 0, 0
    return int(label_conflicts(np.asarray(inputs).reshape(len(rows), -1), labels).flagged.sum()), len(rows)


def _findings(state: State, evidence: Evidence, settings: Settings) -> tuple[Finding, ...]:
    name, level = "availability", settings.level
    worst, clean = (anytime_mean(evidence[column], level=level) for column in ("patched", "clean"))
    if state.trigger is None:
        sentence = (
            f"Bounds certify hardly any prediction even at {FRACTIONS[-1]:.4g} of the radius, so a system that answers "
            "only what it can prove is silent without any patch."
        )
        return (Finding(name, "abstained_with_patch", worst, sentence, direction="lower is better", headline=True),)
    rises = evidence["patched"].astype(float) - evidence["clean"]
    rise = anytime_mean(rises, level=level, bounds=(-1.0, 1.0))
    moved = anytime_mean(evidence["moved"], level=level)
    size = f"{state.patch.height}x{state.patch.width}"
    return (
        Finding(
            name,
            "abstained_with_patch",
            worst,
            f"With the worst {size} patch that was found, a system that certifies its answers with "
            f"{state.threat.describe()} abstains on {worst.value:.0%} of inputs, against {clean.value:.0%} without it.",
            direction="lower is better",
            headline=True,
            column="patched",
        ),
        Finding(
            name,
            "rise",
            rise,
            f"The patch itself accounts for {100 * rise.value:+.0f} points of that.",
            direction="lower is better",
        ),
        Finding(
            name,
            "moved",
            moved,
            f"It changes the answer on {moved.value:.0%} of inputs; on the others the attack is on the certificate "
            "alone, and accuracy would not show it.",
            direction="lower is better",
            column="moved",
        ),
    )


def _exhibits(subject: Subject, state: State, evidence: Evidence, settings: Settings) -> list[Exhibit]:
    poison = ("training labels that contradict a near-duplicate", f"{state.conflicts} of {state.compared}")
    if state.trigger is None:
        return [Table("What the search saw", ("", "value"), (poison,))]
    rows = [
        (title, anytime_mean(evidence[column], level=settings.level))
        for title, column in (("no patch", "clean"), ("a random patch", "scattered"), ("the worst patch", "patched"))
    ]
    table = Table(
        "How often the system abstains",
        ("on inputs with", "share of inputs"),
        tuple(rows),
        caption="A random patch has random place and pixels. A model that nobody attacked abstains more under its "
        "worst patch, too: compare models, not with zero.",
    )
    counts = Table("What the search saw", ("", "value"), (("abstained, on the images searched", state.found), poison))
    index = evidence.clean["index"][:SHOWN]
    inputs, _ = subject.test.take(index)
    x = subject.tensor(inputs)
    after = state.trigger(x)
    shown = tuple(
        picture(
            f"{'silent' if evidence['patched'][k] else 'answers'} with it, "
            f"{'silent' if evidence['clean'][k] else 'answers'} without",
            after[k],
            modality=subject.modality,
            valid=subject.valid,
            before=x[k],
        )
        for k in range(len(x))
    )
    return [table, Gallery("The worst patch", shown, "Without it and with it."), counts]


def _method(state: State) -> str:
    if state.trigger is None:
        return f"The model was bounded (CROWN-IBP) at radii down to {FRACTIONS[-1]:.4g} of the threat's. {state.words}"
    return (
        f"One patch for all inputs was searched for on {SEARCHED // 2} training images: places where images vary "
        f"least, bright, dark and gradient-made fills, then {STEPS} signed gradient steps through the certifier "
        f"(CROWN-IBP bounds at radius {number(state.threat.radius)}, the largest of a falling list where at least "
        f"{ENOUGH:.0%} of predictions were certified). Test examples took no part in it. The search may miss a worse "
        f"patch, so the rate is a lower bound of the worst. {state.words}"
    ).strip()
