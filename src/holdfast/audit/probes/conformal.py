"""Prediction sets: how many classes one must name to hold the truth with 90%, and whether the promise is kept.

A random part of the test data calibrates the thresholds (`prepare`), the rest is evaluated: per example whether its set
holds the truth and how many classes the set has, for one threshold for all (LAC: smallest sets) and for one per class.
Sets always hold the likeliest class: where the model is right more often than promised, an answer is still wanted.
The examples that calibrated carry NaN: they say nothing about fresh ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import softmax

from holdfast.analysis.conformal import ConformalClassifier
from holdfast.audit.probe import Batch, Evidence, Needs, Rows, Settings
from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Bars, Exhibit, Histogram, Table
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.core.seeds import numpy_generator
from holdfast.core.sequences import anytime_mean
from holdfast.core.shares import Shares, shares
from holdfast.subject.subject import Access, Subject

ALPHA = 0.1
MOST_CALIBRATION = 2000
SHOWN_CLASSES = 30
MARGINAL, CLASSWISE = "", "_classwise"


@dataclass(frozen=True)
class State:
    """The two calibrated predictors, where they were calibrated, and the number of classes."""

    calibration: np.ndarray  # (n,) sorted positions in the test data
    marginal: ConformalClassifier
    classwise: ConformalClassifier
    classes: int


@dataclass(frozen=True)
class ConformalProbe:
    """See the module."""

    name: str = "conformal"
    question: str = "How many answers must it give to be right nine times out of ten?"
    perturbs: str = "nothing"
    needs: Needs = field(default_factory=lambda: Needs(access=Access.SCORES))
    shard_size: int = 1024

    def prepare(self, subject: Subject, settings: Settings) -> State:
        """Calibrate on a random half of the test data, at most 2000 examples.  Raises InputError when there is one."""
        size = min(MOST_CALIBRATION, len(subject.test) // 2)
        if size < 1:
            raise InputError("conformal needs at least 2 test examples: some to calibrate on and some to evaluate")
        drawn = numpy_generator(settings.seed, self.name, "calibration").permutation(len(subject.test))[:size]
        positions = np.sort(drawn)
        inputs, labels = subject.test.take(positions)
        probabilities = softmax(subject.logits(subject.tensor(inputs)).double().cpu().numpy(), axis=1)
        return State(
            positions,
            ConformalClassifier(ALPHA, "lac", allow_empty=False).fit(probabilities, labels),
            ConformalClassifier(ALPHA, "lac", class_conditional=True, allow_empty=False).fit(probabilities, labels),
            probabilities.shape[1],
        )

    def examine(self, subject: Subject, state: State, batch: Batch) -> Rows:
        """Columns `covered`, `size` and both with `_classwise` (n,) float64; NaN where the example calibrated."""
        probabilities = softmax(batch.logits.double().cpu().numpy(), axis=1)
        labels = batch.y.cpu().numpy()
        used = np.isin(batch.index, state.calibration)
        rows = {}
        for suffix, predictor in ((MARGINAL, state.marginal), (CLASSWISE, state.classwise)):
            sets = predictor.predict(probabilities)
            rows[f"covered{suffix}"] = np.where(used, np.nan, sets[np.arange(len(labels)), labels])
            rows[f"size{suffix}"] = np.where(used, np.nan, sets.sum(axis=1))
        return rows

    def headline(self, state: State, evidence: Evidence, settings: Settings) -> Estimate | None:
        """Coverage with one threshold."""
        fresh = ~np.isnan(evidence["covered"])
        return anytime_mean(evidence["covered"][fresh] > 0, level=settings.level) if fresh.any() else None

    def conclude(self, subject: Subject, state: State, evidence: Evidence, settings: Settings) -> Section:
        """Coverage and size, overall and per class."""
        fresh = ~np.isnan(evidence["covered"])
        if not fresh.any():
            return self._nothing(subject, state, evidence)
        labels = evidence.clean["label"][fresh]
        sides = {suffix: _side(state, evidence, fresh, labels, settings, suffix) for suffix in (MARGINAL, CLASSWISE)}
        one, each = sides[MARGINAL], sides[CLASSWISE]
        worst = int(one.by_class.groups[one.by_class.worst])
        sentence = (
            f"Sets of {one.size.value:.2f} classes on average hold the truth for {one.coverage.value:.1%} of examples "
            f"(at least 90% was promised)."
        )
        worst_sentence = (
            f"For examples of {_name(subject, worst)} the sets hold the truth {one.worst.value:.1%} of the time."
        )
        return Section(
            probe=self.name,
            question=self.question,
            answer=f"{sentence} {worst_sentence}",
            findings=(
                Finding(self.name, "coverage", one.coverage, sentence, headline=True, column="covered"),
                Finding(
                    self.name,
                    "set_size",
                    one.size,
                    f"A set that holds the truth nine times out of ten has {one.size.value:.2f} classes on average.",
                    unit="classes",
                    direction="lower is better",
                    column="size",
                ),
                Finding(self.name, "worst_class_coverage", one.worst, worst_sentence),
                Finding(
                    self.name,
                    "worst_class_coverage_classwise",
                    each.worst,
                    f"With one threshold per class the worst class is covered {each.worst.value:.1%} of the time, by "
                    f"sets of {each.size.value:.2f} classes on average.",
                ),
                Finding(
                    self.name,
                    "set_size_classwise",
                    each.size,
                    f"With one threshold per class a set has {each.size.value:.2f} classes on average.",
                    unit="classes",
                    direction="lower is better",
                    column="size_classwise",
                ),
            ),
            exhibits=tuple(_exhibits(subject, evidence, fresh, one, each)),
            doubts=tuple(_doubts(subject, state, each.by_class)),
            method="Split conformal prediction (LAC scores, the likeliest class always kept) calibrated on "
            f"{len(state.calibration)} random test "
            f"examples and evaluated on {int(fresh.sum())} others. Intervals hold at every look, for the sets as they "
            "were calibrated here; those of the classes hold for all classes together.",
            advice="Give sets instead of single answers where a wrong answer costs more than a second look; use one "
            "threshold per class when every class must be covered.",
            examined=len(evidence),
            available=len(subject.test),
        )

    def _nothing(self, subject: Subject, state: State, evidence: Evidence) -> Section:
        answer = (
            f"Nothing can be said yet: all {len(evidence)} examples that were examined are among the "
            f"{len(state.calibration)} that calibrated the sets. Examine more."
        )
        return Section(
            self.name, self.question, answer, (), status="partial", examined=len(evidence), available=len(subject.test)
        )


@dataclass(frozen=True)
class _Side:
    """What one way to calibrate achieved."""

    coverage: Estimate
    size: Estimate
    by_class: Shares
    worst: Estimate


def _side(
    state: State, evidence: Evidence, fresh: np.ndarray, labels: np.ndarray, settings: Settings, suffix: str
) -> _Side:
    covered = evidence[f"covered{suffix}"][fresh] > 0
    # The likeliest class is always kept, so no set is smaller than one.
    size = anytime_mean(evidence[f"size{suffix}"][fresh], level=settings.level, bounds=(1.0, float(state.classes)))
    by_class = shares(covered, labels, settings.level, of=state.classes)
    return _Side(anytime_mean(covered, level=settings.level), size, by_class, by_class.worst_share)


def _name(subject: Subject, label: int) -> str:
    return subject.class_names[label] if label < len(subject.class_names) else str(label)


def _exhibits(subject: Subject, evidence: Evidence, fresh: np.ndarray, one: _Side, each: _Side) -> list[Exhibit]:
    most = int(max(evidence["size"][fresh].max(), evidence["size_classwise"][fresh].max()))
    edges = np.arange(1, most + 2) - 0.5
    counts = {
        name: tuple(float(n) for n in np.histogram(evidence[f"size{suffix}"][fresh], edges)[0])
        for name, suffix in (("one threshold", MARGINAL), ("one per class", CLASSWISE))
    }
    order = sorted(range(len(one.by_class.groups)), key=lambda k: one.by_class.estimates[k].value)[:SHOWN_CLASSES]
    return [
        Table(
            "Sets that promise 90%",
            ("calibration", "coverage", "worst class", "mean size"),
            (
                ("one threshold", one.coverage, one.worst, one.size),
                ("one threshold per class", each.coverage, each.worst, each.size),
            ),
        ),
        Histogram("How many classes a set has", "classes in the set", tuple(map(float, edges)), tuple(counts.items())),
        Bars(
            "Coverage per class, one threshold",
            "share of sets that hold the truth",
            tuple(f"{_name(subject, int(one.by_class.groups[k]))} ({one.by_class.counts[k]})" for k in order),
            tuple(one.by_class.estimates[k] for k in order),
            caption="The line is the promise. One threshold for all keeps it on average, not for every class.",
            reference=1 - ALPHA,
            limits=(0.0, 1.0),
        ),
    ]


def _doubts(subject: Subject, state: State, by_class: Shares) -> list[Doubt]:
    doubts = []
    if np.isinf(state.marginal.thresholds_[0]):
        doubts.append(
            Doubt(
                "too few examples to calibrate",
                f"{len(state.calibration)} examples cannot support a promise of 90%, so every set holds every class.",
                ("conformal.coverage", "conformal.set_size"),
                "Bring at least 18 test examples, better 1,000.",
            )
        )
    rare = [_name(subject, k) for k in range(state.classes) if np.isinf(state.classwise.thresholds_[k])]
    if rare:
        named = ", ".join(rare[:5]) + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
        doubts.append(
            Doubt(
                "classes too rare to calibrate",
                f"Fewer than 9 calibration examples of {named}: with one threshold per class they are in every set, "
                "which makes those sets large.",
                ("conformal.set_size_classwise", "conformal.worst_class_coverage_classwise"),
                "Bring at least 20 test examples of every class.",
            )
        )
    return doubts
