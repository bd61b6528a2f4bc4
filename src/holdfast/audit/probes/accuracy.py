"""How often the model is right: overall, for every class, and which classes it takes for which.

Per example: whether the most likely class is the label.  All intervals hold at every look; those of the classes hold
for all classes together, so that the worst class may be picked after looking.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from holdfast.audit.probe import Batch, Evidence, Needs, Rows, Settings
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Bars, Exhibit, Heatmap, Table
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.core.sequences import anytime_mean
from holdfast.core.shares import Shares, shares
from holdfast.subject.subject import Subject

SHOWN_CLASSES = 30  # bars; of more classes the worst are shown
SHOWN_PAIRS = 10
MATRIX_CLASSES = 20
FEW = 30


@dataclass(frozen=True)
class AccuracyProbe:
    """See the module."""

    name: str = "accuracy"
    question: str = "How often is it right?"
    perturbs: str = "nothing"
    needs: Needs = field(default_factory=Needs)
    shard_size: int = 1024

    def prepare(self, subject: Subject, settings: Settings) -> None:
        return None

    def examine(self, subject: Subject, state: None, batch: Batch) -> Rows:
        """Column `correct` (n,) bool."""
        return {"correct": batch.correct.cpu().numpy()}

    def headline(self, state: None, evidence: Evidence, settings: Settings) -> Estimate | None:
        """Accuracy."""
        return anytime_mean(evidence["correct"], level=settings.level)

    def conclude(self, subject: Subject, state: None, evidence: Evidence, settings: Settings) -> Section:
        """Accuracy, the worst class, and who is taken for whom."""
        correct, labels = evidence["correct"], evidence.clean["label"]
        accuracy = anytime_mean(correct, level=settings.level)
        by_class = shares(correct, labels, settings.level, of=subject.classes)
        worst = _name(subject, int(by_class.groups[by_class.worst]))
        answer = (
            f"It is right on {accuracy.value:.1%} of examples like these (between {accuracy.low:.1%} and "
            f"{accuracy.high:.1%})."
        )
        worst_share = by_class.worst_share
        differ = by_class.gap.value > 0
        said = f" It does worst on {worst}: {worst_share.value:.1%}." if differ else ""
        if differ:
            worst_sentence = f"Of its classes it does worst on {worst}, where it is right on {worst_share.value:.1%}."
        else:
            worst_sentence = f"It is right on {worst_share.value:.1%} of every class that was seen."
        return Section(
            probe=self.name,
            question=self.question,
            answer=f"{answer}{said}",
            findings=(
                Finding(self.name, "accuracy", accuracy, answer, headline=True, column="correct"),
                Finding(
                    self.name,
                    "worst_class",
                    worst_share,
                    worst_sentence,
                ),
            ),
            exhibits=tuple(_exhibits(subject, evidence, by_class, accuracy)),
            doubts=tuple(_doubts(subject, labels, by_class, accuracy)),
            method="The most likely class against the label, examples in random order. Intervals hold at every look "
            "and speak of fresh examples of the same kind; those of the classes hold for all classes together.",
            advice=_advice(worst, differ) if not correct.all() else "",
            examined=len(evidence),
            available=len(subject.test),
        )


def _advice(worst: str, differ: bool) -> str:
    begin = f"Collect more examples of {worst}, and look" if differ else "Look"
    return f"{begin} at the pairs it confuses."


def _name(subject: Subject, label: int) -> str:
    return subject.class_names[label] if label < len(subject.class_names) else str(label)


def _exhibits(subject: Subject, evidence: Evidence, by_class: Shares, accuracy: Estimate) -> list[Exhibit]:
    worst_first = sorted(range(len(by_class.groups)), key=lambda k: by_class.estimates[k].value)[:SHOWN_CLASSES]
    names = [_name(subject, int(group)) for group in by_class.groups]
    shown = "" if len(names) <= SHOWN_CLASSES else f"The {SHOWN_CLASSES} worst of {len(names)} classes. "
    exhibits: list[Exhibit] = [
        Bars(
            "Accuracy per class",
            "share of examples of the class that are recognised",
            tuple(f"{names[k]} ({by_class.counts[k]})" for k in worst_first),
            tuple(by_class.estimates[k] for k in worst_first),
            caption=f"{shown}In brackets: examples seen. The line is the accuracy over all classes.",
            reference=accuracy.value,
            limits=(0.0, 1.0),
        )
    ]
    classes = max(subject.classes, int(evidence.clean["label"].max()) + 1, int(evidence.clean["prediction"].max()) + 1)
    pairs = evidence.clean["label"].astype(np.int64) * classes + evidence.clean["prediction"]
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    if classes <= MATRIX_CLASSES:
        rows = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
        labels = tuple(_name(subject, k) for k in range(classes))
        exhibits.append(
            Heatmap(
                "What is taken for what",
                labels,
                labels,
                tuple(tuple(float(value) for value in row) for row in rows),
                caption="Rows: the truth. Columns: what the model says. Each row adds up to one.",
                value_label="share of the row",
                limits=(0.0, 1.0),
                low_is_bad=False,
            )
        )
    mistakes = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:SHOWN_PAIRS]
    found = [(int(k) // classes, int(k) % classes) for k in order if mistakes.flat[k]]
    if found:
        table = tuple(
            (_name(subject, a), _name(subject, b), int(mistakes[a, b]), float(mistakes[a, b] / confusion[a].sum()))
            for a, b in found
        )
        exhibits.append(Table("Most frequent mistakes", ("truth", "model says", "times", "share of the class"), table))
    return exhibits


def _doubts(subject: Subject, labels: np.ndarray, by_class: Shares, accuracy: Estimate) -> list[Doubt]:
    doubts = []
    common = int(np.bincount(labels).argmax())
    share = float(np.mean(labels == common))
    if len(by_class.groups) > 1 and accuracy.low <= share:
        doubts.append(
            Doubt(
                "no better than a constant answer",
                f"Always answering {_name(subject, common)} would be right on {share:.1%}; the accuracy of "
                f"{accuracy.value:.1%} is not clearly above that.",
                ("accuracy.accuracy",),
                "Look at the accuracy of every class, and check that labels and outputs count classes in one order.",
            )
        )
    worst = by_class.worst
    if by_class.counts[worst] < FEW:
        doubts.append(
            Doubt(
                "few examples of the worst class",
                f"The worst class, {_name(subject, int(by_class.groups[worst]))}, was seen only "
                f"{by_class.counts[worst]} times, so chance may have made it the worst.",
                ("accuracy.worst_class",),
                f"Bring at least {FEW} examples of every class.",
            )
        )
    return doubts
