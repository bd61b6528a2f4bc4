"""Does the model know when an input does not belong?

Every test example is scored beside inputs that do not belong: foreign ones made from the example itself (see
`foreign_inputs`) and, where the user brings one, taken from another data set; and, where the model gives gradients,
attacked copies of the example (see `attacked_inputs`).  A score is good when test examples get the higher value.

The score that counts is declared beforehand, the energy log sum exp of the logits (maximum softmax where the model only
gives probabilities, whose energy is zero by construction); the others stand in a table beside it.  Its AUROC is the
chance that a test example outscores a foreign input made from *another* example, so disjoint pairs of examples give
independent values in [0, 1] and the interval is valid whenever the audit stops.  Against attacked inputs the score
that counts is the combination of layers fitted on one-step attacks, where it can be fitted.

Energy: Liu et al., 2020.  Max softmax: Hendrycks and Gimpel, 2017.  Mahalanobis and layers: Lee et al., 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from holdfast.audit.pictures import picture
from holdfast.audit.probe import Batch, Evidence, Needs, Rows, Settings
from holdfast.audit.probes.attacked_inputs import ATTACKED_KINDS
from holdfast.audit.probes.detection_scores import CONFIDENT, State, prepare_scores, scored
from holdfast.audit.probes.foreign_inputs import foreign_inputs
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Bars, Cell, Exhibit, Gallery, Histogram, Table
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.core.seeds import numpy_generator
from holdfast.core.sequences import anytime_mean
from holdfast.inputs.detection.metrics import auroc, fpr_at_tpr
from holdfast.subject.data import Data
from holdfast.subject.subject import Access, Subject


@dataclass(frozen=True)
class DetectionProbe:
    """See the module."""

    name: str = "detection"
    question: str = "Does the model know when an input does not belong?"
    perturbs: str = "inputs"
    needs: Needs = field(default_factory=lambda: Needs(access=Access.SCORES))
    shard_size: int = 256

    def prepare(self, subject: Subject, settings: Settings) -> State:
        """Look at typical values of the inputs, choose the declared scores, fit the detectors on training data."""
        return prepare_scores(subject, settings)

    def examine(self, subject: Subject, state: State, batch: Batch) -> Rows:
        """Columns: `typical` (n, scores), `foreign` (n, kinds, scores), `sure` (n, kinds): 1 for a confident answer.

        With another data set also `other` (n, scores) and `sure_other` (n,), NaN once its examples are used up; with an
        attacker `attacked` (n, attacks, scores), NaN where the attack failed or the example was wrong already.
        """
        foreign, sure = [], []
        for kind in state.kinds:
            made = foreign_inputs(kind, subject, state.reference, batch)
            scores, confident = scored(subject, state, made)
            foreign.append(scores)
            sure.append(confident)
        rows = {
            "typical": scored(subject, state, batch.x)[0],
            "foreign": np.stack(foreign, axis=1),
            "sure": np.stack(sure, axis=1),
        }
        if subject.other is not None:
            rows["other"] = np.full((len(batch), len(state.scores)), np.nan)
            rows["sure_other"] = np.full(len(batch), np.nan)
            mine = batch.index < len(subject.other)  # every foreign example at most once, so that pairs are independent
            if mine.any():
                x = subject.tensor(subject.other.inputs.take(batch.index[mine]))
                rows["other"][mine], rows["sure_other"][mine] = scored(subject, state, x)
        if state.attacker is not None:
            x, success = state.attacker.inputs(subject, batch)
            scores = scored(subject, state, x.flatten(0, 1))[0].reshape(*success.shape, -1)
            rows["attacked"] = np.where(success[..., None], scores, np.nan)
        return rows

    def headline(self, state: State, evidence: Evidence, settings: Settings) -> Estimate | None:
        """AUROC of the declared score against the other data set, if there is one, else the mean over what we made."""
        lead = state.scores.index(state.lead)
        typical = evidence["typical"][:, lead]
        if "other" in evidence.columns:
            return _anytime_auroc(typical, evidence["other"][:, None, lead], settings.level)
        return _anytime_auroc(typical, evidence["foreign"][:, :, lead], settings.level)

    def conclude(self, subject: Subject, state: State, evidence: Evidence, settings: Settings) -> Section:
        """Findings of the declared score, a table of all scores, the histogram of the declared one."""
        sets = _foreign_sets(state, evidence)
        findings = _findings(state, evidence, settings)
        told = next((finding for finding in findings if finding.headline), None)
        return Section(
            probe=self.name,
            question=self.question,
            answer="Too few examples were examined to say." if told is None else told.sentence,
            findings=tuple(findings),
            exhibits=_exhibits(subject, state, evidence, sets, settings),
            doubts=tuple(_doubts(state, evidence, sets, settings)),
            method=_method(state, subject),
            advice="Let the model abstain below a threshold of the score: holdfast.inputs.detection.Guard sets one on "
            "held-out data with a guaranteed rate of false alarms. Try it on the kind of foreign input you expect, "
            "since a score that knows noise may not know a near miss; and whoever knows the score can attack it too.",
            examined=len(evidence),
            available=len(subject.test),
        )


def _findings(state: State, evidence: Evidence, settings: Settings) -> list[Finding]:
    lead = state.scores.index(state.lead)
    typical, foreign = evidence["typical"][:, lead], evidence["foreign"][:, :, lead]
    has_other = "other" in evidence.columns
    findings = []
    made = _anytime_auroc(typical, foreign, settings.level)
    if made is not None:
        sentence = (
            f"Its {state.lead} score is higher for a test example than for an input that does not belong in "
            f"{made.value:.1%} of pairs (average over {', '.join(state.kinds)}; 50% would be blind)."
        )
        findings.append(Finding("detection", "auroc", made, sentence, unit="AUROC", headline=not has_other))
    if has_other and (other := _anytime_auroc(typical, evidence["other"][:, None, lead], settings.level)) is not None:
        sentence = (
            f"Its {state.lead} score is higher for a test example than for an example of the other data set in "
            f"{other.value:.1%} of pairs (50% would be blind)."
        )
        findings.append(Finding("detection", "auroc_other", other, sentence, unit="AUROC", headline=True))
    if (attacked := _attacked(state, evidence, settings)) is not None:
        sentence = (
            f"A test example looks more typical than an attacked one in {attacked.value:.1%} of pairs "
            f"(score: {state.lead_attacked}; 50% would be blind; the attack does not know of the score)."
        )
        findings.append(Finding("detection", "auroc_attacked", attacked, sentence, unit="AUROC"))
    passed = _mean_false_positive_rate(typical, foreign, settings)
    findings.append(
        Finding(
            "detection",
            "fpr95",
            passed,
            f"A threshold that 95% of test examples pass lets {passed.value:.1%} of the foreign inputs through.",
            direction="lower is better",
        )
    )
    sure = anytime_mean(evidence["sure"].mean(axis=1), level=settings.level)
    findings.append(
        Finding(
            "detection",
            "confident",
            sure,
            f"On {sure.value:.1%} of inputs that have no answer the model is at least {CONFIDENT:.0%} sure of one.",
            direction="lower is better",
            column="sure",
        )
    )
    return findings


def _attacked(state: State, evidence: Evidence, settings: Settings) -> Estimate | None:
    """AUROC of the score declared for attacked inputs, on those of the attack that goes on for all its steps."""
    if "attacked" not in evidence.columns:
        return None
    lead, kind = state.scores.index(state.lead_attacked), ATTACKED_KINDS.index("attacked, all steps")
    return _anytime_auroc(evidence["typical"][:, lead], evidence["attacked"][:, kind, lead, None], settings.level)


def _anytime_auroc(
    typical: Float[np.ndarray, " n"], foreign: Float[np.ndarray, "n kinds"], level: float
) -> Estimate | None:
    """Mean over kinds of P(typical > foreign), from disjoint pairs of examples; None without a pair."""
    known = np.isfinite(foreign).all(axis=1)
    typical, foreign = typical[known], foreign[known]
    pairs = len(typical) // 2
    if pairs == 0:
        return None
    first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    wins = _win(typical[first, None], foreign[second]) + _win(typical[second, None], foreign[first])
    return anytime_mean((wins / 2).mean(axis=1), level=level)


def _win(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a > b) + 0.5 * (a == b)


def _mean_false_positive_rate(typical: np.ndarray, foreign: np.ndarray, settings: Settings) -> Estimate:
    kinds = foreign.shape[1]
    parts = [
        fpr_at_tpr(typical, foreign[:, k], level=settings.level, generator=numpy_generator(settings.seed, "fpr95", k))
        for k in range(kinds)
    ]
    low, value, high = (float(np.mean([getattr(part, name) for part in parts])) for name in ("low", "value", "high"))
    return Estimate(value, low, high, settings.level, len(typical), parts[0].method)


def _foreign_sets(state: State, evidence: Evidence) -> dict[str, np.ndarray]:
    sets = {kind: evidence["foreign"][:, k] for k, kind in enumerate(state.kinds)}
    if "other" in evidence.columns and np.isfinite(evidence["other"]).any():
        sets["other data set"] = evidence["other"][np.isfinite(evidence["other"]).all(axis=1)]
    for k, kind in enumerate(ATTACKED_KINDS if "attacked" in evidence.columns else ()):
        found = evidence["attacked"][:, k]
        if (broken := np.isfinite(found).all(axis=1)).any():
            sets[kind] = found[broken]
    return sets


def _exhibits(
    subject: Subject, state: State, evidence: Evidence, sets: dict[str, np.ndarray], settings: Settings
) -> tuple[Exhibit, ...]:
    areas = {
        (score, name): auroc(evidence["typical"][:, s], values[:, s], level=settings.level)
        for s, score in enumerate(state.scores)
        for name, values in sets.items()
    }
    rows: list[tuple[Cell, ...]] = [(name, *(areas[score, name] for score in state.scores)) for name in sets]
    rows.append(("worst", *(min(areas[score, name].value for name in sets) for score in state.scores)))
    table = Table(
        "AUROC of every score on every kind of input that does not belong",
        ("kind of input", *state.scores),
        tuple(rows),
        caption=f"The declared score is {state.lead}, against attacked inputs {state.lead_attacked}; the others are "
        "shown, not chosen from.  These intervals (DeLong) are for a run of fixed length.",
    )
    bars = Bars(
        "How well the declared score tells each kind apart",
        "AUROC",
        tuple(sets),
        tuple(areas[state.declared(name), name] for name in sets),
        reference=0.5,
        limits=(0.0, 1.0),
        caption="0.5 is blind; below 0.5 the model finds such inputs more typical than the test data.",
    )
    attacked = {kind: values for kind, values in sets.items() if kind in ATTACKED_KINDS}
    foreign = {kind: values for kind, values in sets.items() if kind not in ATTACKED_KINDS}
    shown: list[Exhibit] = [_histogram(state, evidence, foreign, state.lead)]
    if attacked:
        shown.append(_histogram(state, evidence, attacked, state.lead_attacked))
    shown += [bars, table]
    if subject.other is not None and "other" in evidence.columns:
        shown.append(_gallery(subject, subject.other, evidence, state.scores.index(state.lead)))
    return tuple(shown)


def _histogram(state: State, evidence: Evidence, sets: dict[str, np.ndarray], name: str) -> Histogram:
    score = state.scores.index(name)
    groups = {"test data": evidence["typical"][:, score], **{kind: values[:, score] for kind, values in sets.items()}}
    low, high = np.quantile(np.concatenate(list(groups.values())), [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1.0, 31)
    counted = tuple(
        (kind, tuple(map(float, np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0])))
        for kind, values in groups.items()
    )
    return Histogram(
        f"Scores of test data beside {', '.join(sets)}",
        f"{name} score (higher: more typical)",
        tuple(map(float, edges)),
        counted,
        caption="The less the test data overlap with the rest, the better a threshold works.",
    )


def _gallery(subject: Subject, other: Data, evidence: Evidence, lead: int) -> Gallery:
    scores = np.nan_to_num(evidence["other"][:, lead], nan=-np.inf)
    most = [row for row in np.argsort(-scores, kind="stable")[:8] if np.isfinite(scores[row])]
    images = other.inputs.take(evidence.clean["index"][np.array(most, dtype=np.int64)])
    return Gallery(
        "Foreign examples that the model finds most typical",
        tuple(
            picture(f"score {scores[row]:.2f}", image, modality=subject.modality, valid=subject.valid)
            for row, image in zip(most, images, strict=True)
        ),
    )


def _doubts(state: State, evidence: Evidence, sets: dict[str, np.ndarray], settings: Settings) -> list[Doubt]:
    typical = evidence["typical"][:, state.scores.index(state.lead)]
    inverted: dict[str, list[str]] = {}
    for name, values in sets.items():
        score = state.scores.index(state.declared(name))
        if auroc(evidence["typical"][:, score], values[:, score], level=settings.level).high < 0.5:
            inverted.setdefault(state.declared(name), []).append(name)
    doubts = [
        Doubt(
            "score upside down",
            f"The {score} score is higher on {' and '.join(names)} than on the test data, so a threshold on it would "
            "let these inputs in and keep test examples out.",
            touches=("detection.auroc", "detection.auroc_attacked", "detection.fpr95"),
            advice="Do not threshold this score for such inputs; another score may do better (see the table).",
        )
        for score, names in inverted.items()
    ]
    if np.ptp(typical) == 0:
        doubts.append(
            Doubt(
                "constant score",
                f"The {state.lead} score is the same for every test example, so it can tell nothing apart.",
                touches=("detection.auroc", "detection.auroc_other", "detection.fpr95"),
                advice="Check that the model returns logits, not labels.",
            )
        )
    return doubts


def _method(state: State, subject: Subject) -> str:
    place = f"layer {state.layer!r}" if state.layer else "the model, which is one layer,"
    detector = (
        f"The Mahalanobis detector was fitted on what enters {place} for training examples, each feature "
        "scaled to unit spread, covariance by Ledoit and Wolf."
        if state.detector is not None
        else f"No feature detector: {state.without_features}."
    )
    foreign = "another data set and " if subject.other is not None else ""
    if state.attacker is None:
        attacks = f"No attacked inputs: {state.without_attacks}."
    else:
        combined = (
            "Their declared score combines layers, with weights learnt on one-step attacks of training examples."
            if state.layers is not None
            else f"No combination of layers was fitted: {state.without_layers}."
        )
        attacks = (
            f"Attacked inputs: {state.attacker.words}, by projected gradient steps that stop at the first success or "
            f"go on for all; only examples turned from right to wrong count.  {combined}"
        )
    return (
        f"Compared with {foreign}inputs made from the test examples: {', '.join(state.kinds)}.  Declared score: "
        f"{state.lead}.  AUROC from disjoint pairs of examples, valid whenever the audit stops; the share let through "
        f"at 95% is bootstrapped for the examples seen.  {detector}  {attacks}"
    )
