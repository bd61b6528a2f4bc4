"""For how many inputs can it be proven that no admissible change moves the answer?

Where the model's operators can be read, its outputs are bounded over the whole threat set, in float64 with rounding
accounted for: by linear bounds on intervals first, and what these leave open by linear bounds throughout (CROWN) and
by ones with optimised slopes (alpha-CROWN), at every radius as far as the work that the model makes of them allows.
An example counts when the bounds show that its right label wins everywhere; one that a few gradient steps break is not
bounded further.  What is not proven may still hold: the certified accuracy is a lower bound of the true worst case, as
accuracy under attack is an upper bound, and the truth lies between the two.

Where they cannot be read (or the threat has no linear bounds), the model is smoothed with Gaussian noise and each
example gets a certificate in Euclidean distance by counting votes, drawn until it is decided whether it reaches half a
noise standard deviation.  That certificate speaks of the smoothed model, not of the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from holdfast.audit.probe import Batch, Evidence, Needs, Rows, Settings
from holdfast.audit.probes.attack_plan import default_threat, feature_spread
from holdfast.audit.probes.proof_plan import (
    PUBLISHED,
    TITLES,
    Provable,
    affordable,
    example,
    hindrance,
    largest_stable,
    widened,
)
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Series, Table
from holdfast.core.finding import Finding, Section
from holdfast.core.sequences import anytime_mean
from holdfast.inputs.bounds import Method, capture, certify
from holdfast.inputs.smoothing.gaussian import Smoothed
from holdfast.inputs.smoothing.stopping import RadiusTarget
from holdfast.subject.subject import Access, Subject
from holdfast.threats.wording import number

#: Radii of the curve, in units of the chosen one, rising.
FRACTIONS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
#: Those with a finding of their own.
REPORTED = FRACTIONS[2:]
#: Noise of the smoothed model, in units of the range of values (images) or of each feature's spread (anything else).
NOISE = 0.25
DRAWS_FOR_LABEL, DRAWS, ERROR = 32, 1000, 1e-3


@dataclass(frozen=True)
class Votes:
    """The model is smoothed: noise of `sigma` in units of `unit`, and why bounds are not to be had."""

    sigma: float
    unit: Tensor
    reason: str

    @property
    def target(self) -> float:
        """The radius every example is asked about, in the same units."""
        return self.sigma / 2


State = Provable | Votes


@dataclass(frozen=True)
class CertifiedProbe:
    """See the module."""

    name: str = "certified"
    question: str = "For how many inputs is it proven that no small change can move the answer?"
    perturbs: str = "inputs"
    needs: Needs = field(default_factory=lambda: Needs(access=Access.LABELS))
    shard_size: int = 16

    def prepare(self, subject: Subject, settings: Settings) -> State:
        """Read the model's operators, or say why it is smoothed instead."""
        threat, words = (settings.threat, "") if settings.threat is not None else default_threat(subject)
        reason = hindrance(subject, threat)
        if reason is not None:
            return Votes(NOISE, _unit(subject), reason)
        graph = capture(subject.model, example(subject))
        threats = [threat if fraction == 1 else threat.scaled(fraction * threat.radius) for fraction in FRACTIONS]
        kept = tuple({t.radius: t for t in threats}.values())  # families counted in pixels round their radius
        chosen = [t.radius for t in kept].index(threat.radius)
        methods = tuple(affordable(subject, graph, t) for t in kept)
        return Provable(graph, kept, chosen, methods, words)

    def examine(self, subject: Subject, state: State, batch: Batch) -> Rows:
        """Columns, one row an example.

        By bounds: `proven` (n, radii) bool: right, and proven at that radius; `certified` (n,) bool: the same at the
        chosen radius; `intervals` (n,) bool: there by intervals alone; `abstained` (n,) bool: the answer, right or
        wrong, is not proven at the chosen radius.
        By smoothing: `certified` (n,) bool: right, with radius at least the target; `radius` (n,), 0 where wrong;
        `abstained` (n,) bool; `draws` (n,).
        """
        if isinstance(state, Votes):
            return self._vote(subject, state, batch)
        valid = widened(subject.valid, batch.x)
        answers = batch.logits.argmax(1)
        right = batch.correct.cpu()
        places = largest_stable(subject.model, state, batch.x, answers, valid, batch.generator)
        stable = places[:, None] >= torch.arange(len(state.threats))
        proven = stable & right[:, None]
        shown = certify(state.graph, batch.x, answers, state.threat, valid, "ibp").certified.cpu() & right
        return {
            "proven": proven.numpy(),
            "certified": proven[:, state.chosen].numpy(),
            "intervals": shown.numpy(),
            "abstained": ~stable[:, state.chosen].numpy(),
        }

    def _vote(self, subject: Subject, state: Votes, batch: Batch) -> Rows:
        unit = state.unit.to(batch.x)
        smoothed = Smoothed(_in_units(subject.model, unit), state.sigma, subject.classes, batch=250)
        found = smoothed.certify(
            batch.x / unit,
            n0=DRAWS_FOR_LABEL,
            n=DRAWS,
            alpha=ERROR,
            stop=RadiusTarget(state.target),
            generator=batch.generator,
        )
        right = (found.label == batch.y.cpu()) & ~found.abstained
        radius = torch.where(right, found.radius, 0.0)
        return {
            "certified": (right & (radius >= state.target)).numpy(),
            "radius": radius.numpy(),
            "abstained": found.abstained.numpy(),
            "draws": found.n_used.numpy(),
        }

    def headline(self, state: State, evidence: Evidence, settings: Settings) -> Estimate | None:
        """Certified accuracy at the chosen radius."""
        return _share(evidence["certified"], settings) if len(evidence) else None

    def conclude(self, subject: Subject, state: State, evidence: Evidence, settings: Settings) -> Section:
        """Certified accuracy, the share provable at smaller radii, and what the proof is worth."""
        if isinstance(state, Votes):
            findings, exhibits = _voted(state, evidence, settings)
            method, advice = (
                _vote_method(state),
                "Train on noisy inputs: a model that has seen the noise votes clearly.",
            )
        else:
            findings, exhibits = _proven(state, evidence, settings)
            method = _bound_method(state)
            advice = (
                "Certified training (minimising the bound during training) raises this number; ordinary training often "
                "leaves it at zero even where attacks find nothing."
            )
        return Section(
            probe=self.name,
            question=self.question,
            answer=findings[0].sentence,
            findings=findings,
            exhibits=exhibits,
            method=method,
            advice=advice,
            examined=len(evidence),
            available=len(subject.test),
        )


def _share(column: np.ndarray, settings: Settings) -> Estimate:
    return anytime_mean(column.astype(bool), level=settings.level)


def _unit(subject: Subject) -> Tensor:
    """Length of one unit of noise along every input value: the range of values, or each feature's spread."""
    if subject.modality == "image" and subject.valid is not None:
        low, high = (torch.as_tensor(end, dtype=torch.float32) for end in subject.valid)
        return (high - low).expand(subject.test.shape)
    spread = feature_spread(subject)
    return torch.where(spread > 0, spread, 1.0)


def _in_units(model: Callable[[Tensor], Tensor], unit: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda scaled: model(scaled * unit)


def _proven(state: Provable, evidence: Evidence, settings: Settings) -> tuple[tuple[Finding, ...], tuple]:
    certified = _share(evidence["certified"], settings)
    shares = [_share(evidence["proven"][:, place], settings) for place in range(len(state.radii))]
    words = state.threat.describe()
    findings = [
        Finding(
            "certified",
            "accuracy",
            certified,
            f"For {certified.value:.0%} of examples it is proven that the answer is right and stays right with "
            f"{words}; for the others nothing is proven, which does not mean that they break.{_half(state, shares)}",
            headline=True,
            column="certified",
        )
    ]
    for place in reversed(range(state.chosen)):
        smaller, share = shares[place], state.radii[place] / state.threat.radius
        if share < REPORTED[0]:
            continue
        findings.append(
            Finding(
                "certified",
                f"accuracy_at_{share:g}",
                smaller,
                f"At {share:g} of that radius ({number(state.radii[place])}) it is proven for {smaller.value:.0%} "
                "of examples.",
            )
        )
    abstained = _share(evidence["abstained"], settings)
    findings.append(
        Finding(
            "certified",
            "abstained",
            abstained,
            f"A system that answers only what it can prove would abstain on {abstained.value:.0%} of examples, right "
            "answers among them.",
            direction="lower is better",
            column="abstained",
        )
    )
    name = TITLES[max(state.methods, key=len)[-1]]
    curve = Curve(
        "Proven accuracy by radius",
        "radius",
        "share proven",
        (
            Series(
                name,
                state.radii,
                tuple(s.value for s in shares),
                tuple(s.low for s in shares),
                tuple(s.high for s in shares),
            ),
        ),
        caption="A point says: at least this share is right against every change of that size. Read it beside the "
        "accuracy under attack, which says: at most this share.",
        x_log=True,
        y_limits=(0.0, 1.0),
    )
    table = Table(
        f"Two ways to prove it, at radius {number(state.threat.radius)}",
        ("bounds", "share proven"),
        (
            ("intervals", _share(evidence["intervals"], settings)),
            (TITLES[state.methods[state.chosen][-1]], certified),
        ),
        caption="Linear bounds follow how the parts of a layer depend on one another; intervals forget it.",
    )
    return tuple(findings), (curve, table)


def _half(state: Provable, shares: Sequence[Estimate]) -> str:
    """Up to which radius at least half of the examples are proven, where that is not the chosen one."""
    places = [place for place, share in enumerate(shares) if share.value >= 0.5]
    if not places or places[-1] >= state.chosen:
        return ""
    return f" At least half are proven up to radius {number(state.radii[places[-1]])}."


def _voted(state: Votes, evidence: Evidence, settings: Settings) -> tuple[tuple[Finding, ...], tuple]:
    certified = _share(evidence["certified"], settings)
    abstained = _share(evidence["abstained"], settings)
    findings = (
        Finding(
            "certified",
            "accuracy",
            certified,
            f"When the model votes over noisy copies of an input, its answer is right and certified within Euclidean "
            f"distance {number(state.target)} (in units of the inputs' spread) for {certified.value:.0%} of examples; "
            "this holds for the vote, not for the single answer.",
            headline=True,
            column="certified",
        ),
        Finding(
            "certified",
            "abstained",
            abstained,
            f"The vote is too close to certify anything for {abstained.value:.0%} of examples.",
            direction="lower is better",
            column="abstained",
        ),
    )
    draws = evidence["draws"]
    table = Table(
        "What the votes cost",
        ("", "noisy copies an example"),
        (("mean", float(draws.mean())), ("most", int(draws.max())), ("allowed", DRAWS_FOR_LABEL + DRAWS)),
        caption="Drawing stops as soon as it is decided whether an example reaches the radius.",
    )
    return findings, (table,)


def _bound_method(state: Provable) -> str:
    every = max(state.methods, key=len)
    names = ", then ".join(f"{TITLES[method]} ({PUBLISHED[method]}{_reach(state, method)})" for method in every)
    more = " on what was still open and no gradient step had broken" if len(every) > 1 else ""
    return (
        f"Every example's outputs were bounded over the whole set ({state.threat.describe()}) by {names}{more}. "
        "All in double precision with rounding charged to the bound. The proof is about the exact arithmetic of the "
        "stored weights; the model's own single-precision rounding comes on top. " + state.words
    ).strip()


def _reach(state: Provable, method: Method) -> str:
    """Up to which radius a method is affordable, where that is not the largest."""
    places = [place for place, methods in enumerate(state.methods) if method in methods]
    return (
        "" if places[-1] == len(state.methods) - 1 else f", affordable up to radius {number(state.radii[places[-1]])}"
    )


def _vote_method(state: Votes) -> str:
    return (
        f"Bounds were not to be had ({state.reason}), so the model was smoothed: Gaussian noise of "
        f"{number(state.sigma)} units (a unit is the range of values for images, a feature's standard deviation "
        f"otherwise), up to {DRAWS} votes an example after {DRAWS_FOR_LABEL} that choose the label, stopped as soon as "
        f"it was decided whether the certified Euclidean distance reaches {number(state.target)}. Each certificate is "
        f"wrong with probability at most {ERROR:g}. The guarantee is about Euclidean distance, whatever threat was "
        "asked for."
    )
