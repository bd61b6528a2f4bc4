"""Are the answers in the test set right?

Confident learning (`holdfast.labels.confident`): with thresholds t_j, the mean probability of class j among the
examples given label j, an example is suspicious when the model is confident (p_j >= t_j) of a class j other than the
given one and does not put the given one first.  The thresholds come from this test set and are fixed before the first
example is examined; given the test set, being suspicious is then a property of one example, and examples come in random
order, so the share of *its* labels that are suspicious has an anytime-valid interval, which closes when all were seen.
The test set was not trained on, so the model's own probabilities are out of sample there.

Training labels, where there are any, are judged by logistic regression on what enters the model's last linear layer (on
the inputs or the logits, when it has none), cross-validated over a sample: labels the model has memorised look right to
it, so that share is a lower one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import softmax

from holdfast.audit.pictures import picture
from holdfast.audit.probe import Batch, Evidence, Needs, Rows, Settings
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Cell, Exhibit, Gallery, Heatmap, Table
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.core.intervals import clopper_pearson
from holdfast.core.seeds import derive_seed, numpy_generator
from holdfast.core.sequences import anytime_mean
from holdfast.inputs.features import Features, last_linear
from holdfast.labels.confident import LabelIssues, confident_classes, find_label_issues
from holdfast.labels.out_of_sample import cross_validated_probabilities
from holdfast.labels.quality import class_thresholds, self_confidence
from holdfast.subject.data import Data
from holdfast.subject.subject import Access, Subject

THRESHOLD_SAMPLE = 5000
TRAIN_SAMPLE = 3000
FOLDS = 3
MOST_INPUTS = 2000
SHOWN = 24
SHOWN_CLASSES = 16
TRUSTED_ACCURACY = 0.7
FEW_PER_CLASS = 10


@dataclass(frozen=True)
class TrainLabels:
    """What cross-validation says about a sample of the training labels."""

    positions: np.ndarray  # (sample,) in the training data
    issues: LabelIssues
    probabilities: np.ndarray  # (sample, classes)
    accuracy: float
    source: str


@dataclass(frozen=True)
class State:
    """Thresholds (classes,) fixed beforehand, the size of the test set, and the training labels' part."""

    thresholds: np.ndarray
    examples: int
    train: TrainLabels | None = None

    def share(self, suspicious: np.ndarray, level: float) -> Estimate:
        """Share of the test set's labels that are suspicious, from the marks (n,) of the examples seen so far."""
        return anytime_mean(suspicious, level=level, population=self.examples)


@dataclass(frozen=True)
class LabelsProbe:
    """See the module."""

    name: str = "labels"
    question: str = "Are the answers in the test set right?"
    perturbs: str = "labels"
    needs: Needs = field(default_factory=lambda: Needs(access=Access.SCORES))
    shard_size: int = 1024

    def prepare(self, subject: Subject, settings: Settings) -> State:
        """Fix the thresholds from a sample of test predictions; judge a sample of the training labels."""
        rng = numpy_generator(settings.seed, self.name, "thresholds")
        positions = _sample(rng, len(subject.test), THRESHOLD_SAMPLE)
        inputs, labels = subject.test.take(positions)
        probabilities = softmax(subject.logits(subject.tensor(inputs)).double().cpu().numpy(), axis=1)
        thresholds = class_thresholds(labels, self_confidence(labels, probabilities), probabilities.shape[1])
        return State(np.asarray(thresholds, dtype=np.float64), len(subject.test), _train_labels(subject, settings))

    def examine(self, subject: Subject, state: State, batch: Batch) -> Rows:
        """Columns: `confident` (n,) the class the model is confident of (-1: none), `suspicious` (n,) bool."""
        probabilities = softmax(batch.logits.double().cpu().numpy(), axis=1)
        labels = batch.y.cpu().numpy()
        confident = confident_classes(probabilities, state.thresholds)
        suspicious = (confident >= 0) & (confident != labels) & (probabilities.argmax(axis=1) != labels)
        return {"confident": confident.astype(np.int64), "suspicious": suspicious}

    def headline(self, state: State, evidence: Evidence, settings: Settings) -> Estimate | None:
        """Share of suspicious labels."""
        return state.share(evidence["suspicious"], settings.level)

    def conclude(self, subject: Subject, state: State, evidence: Evidence, settings: Settings) -> Section:
        """The share, who is confused with whom, and the most suspicious examples."""
        labels, probabilities = evidence.clean["label"], softmax(evidence.clean["logits"].astype(np.float64), axis=1)
        suspicious = evidence["suspicious"]
        issues = find_label_issues(labels, probabilities, "both", "normalised-margin")
        share = state.share(suspicious, settings.level)
        sentence = (
            f"An estimated {share.value:.1%} of the test labels look wrong ({int(suspicious.sum())} of "
            f"{len(evidence)}): the model confidently gives another answer."
        )
        findings = [Finding(self.name, "wrong_share", share, sentence, direction="lower is better", headline=True)]
        exhibits = [
            _summary(evidence, issues, share, settings),
            *_heatmap(subject, issues.joint, "test"),
            *_test_gallery(subject, evidence, probabilities, issues),
        ]
        if state.train is not None:
            findings.append(_train_finding(self.name, state.train, settings))
            exhibits += _train_exhibits(subject, state.train)
        return Section(
            probe=self.name,
            question=self.question,
            answer=sentence,
            findings=tuple(findings),
            exhibits=tuple(exhibits),
            doubts=tuple(_doubts(self.name, evidence, probabilities)),
            method="Confident learning (Northcutt et al., 2021) with the model's own probabilities, which are out of "
            "sample on data it was not trained on. The interval is about this test set's labels not yet "
            "examined and closes with the last: whether a flagged label is wrong takes a person to say.",
            advice="Look at the examples shown, correct what is wrong, and measure accuracy again: with wrong labels "
            "the better model can have the lower score.",
            examined=len(evidence),
            available=len(subject.test),
        )


def _sample(rng: np.random.Generator, examples: int, most: int) -> np.ndarray:
    return np.sort(rng.choice(examples, min(examples, most), replace=False))


def _train_labels(subject: Subject, settings: Settings) -> TrainLabels | None:
    if subject.train is None:
        return None
    rng = numpy_generator(settings.seed, "labels", "train")
    positions = _sample(rng, len(subject.train), TRAIN_SAMPLE)
    inputs, labels = subject.train.take(positions)
    if len(labels) < 5 * FOLDS or len(np.unique(labels)) < 2:
        return None
    features, source = _features(subject, inputs)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=100, tol=1e-3))
    probabilities = cross_validated_probabilities(
        judge,
        features,
        labels,
        FOLDS,
        classes=subject.classes,
        random_state=derive_seed(settings.seed, "folds") % 2**32,
    )
    issues = find_label_issues(labels, probabilities, "both", "normalised-margin")
    return TrainLabels(positions, issues, probabilities, float(np.mean(issues.suggested == labels)), source)


def _features(subject: Subject, inputs: np.ndarray) -> tuple[np.ndarray, str]:
    """Where the judge looks: what the model has learnt, or the inputs themselves where that cannot be had."""
    layer = last_linear(subject.model)
    if layer is not None:
        (features,) = Features(subject.model, (layer,), at="input")(subject.tensor(inputs))
        return features, "what enters the model's last layer"
    rows = inputs.reshape(len(inputs), -1)
    if rows.shape[1] <= MOST_INPUTS:
        return np.nan_to_num(rows.astype(np.float64)), "the inputs"
    return subject.logits(subject.tensor(inputs)).double().cpu().numpy(), "the model's logits"


def _named(subject: Subject, label: int) -> str:
    return subject.class_names[label] if label < len(subject.class_names) else str(label)


def _caption(subject: Subject, given: int, row: np.ndarray) -> str:
    best = int(row.argmax())
    return f"given: {_named(subject, given)}, model says: {_named(subject, best)} ({row[best]:.2f})"


def _summary(evidence: Evidence, issues: LabelIssues, share: Estimate, settings: Settings) -> Table:
    correct = evidence.clean["prediction"] == evidence.clean["label"]
    wrong, suspicious = int((~correct).sum()), evidence["suspicious"]
    rows: tuple[tuple[Cell, ...], ...] = (
        ("labels that look wrong", share),
        ("share of wrong labels by the calibrated joint", round(issues.estimated_share, 4)),
        ("labels to look at first (by class and by noise rate)", int(issues.mask.sum())),
        ("model's mistakes that look like wrong labels", f"{int(suspicious.sum())} of {wrong}"),
        ("accuracy on all labels", anytime_mean(correct, level=settings.level)),
        *_accuracy_without(correct, suspicious, settings),
    )
    return Table("What confident learning says", ("quantity", "value"), rows)


def _accuracy_without(
    correct: np.ndarray, suspicious: np.ndarray, settings: Settings
) -> tuple[tuple[str, Estimate], ...]:
    if suspicious.all():
        return ()
    kept = anytime_mean(correct[~suspicious], level=settings.level)
    return (("accuracy if every suspicious label were dropped (optimistic)", kept),)


def _heatmap(subject: Subject, joint: np.ndarray, which: str) -> tuple[Exhibit, ...]:
    given = joint.sum(axis=1, keepdims=True)
    rates = np.where(given > 0, joint / np.where(given > 0, given, 1), 0)
    np.fill_diagonal(rates, 0)
    traffic = rates.sum(axis=0) + rates.sum(axis=1)
    shown = np.sort(np.argsort(-traffic, kind="stable")[:SHOWN_CLASSES])
    names = tuple(_named(subject, int(label)) for label in shown)
    cut = "" if len(shown) == len(joint) else f" The {len(shown)} classes with most of it are shown."
    return (
        Heatmap(
            f"Which answers are confused, {which} labels",
            tuple(f"given {name}" for name in names),
            tuple(f"looks like {name}" for name in names),
            tuple(tuple(float(rate) for rate in row) for row in rates[np.ix_(shown, shown)]),
            caption=f"Estimated share of the examples given one label whose true class is another.{cut}",
            value_label="share of the given label",
            limits=(0.0, max(0.01, float(rates.max()))),
            low_is_bad=False,
        ),
    )


def _gallery(
    subject: Subject, data: Data, positions: np.ndarray, rows: np.ndarray, labels: np.ndarray, which: str
) -> tuple[Exhibit, ...]:
    if len(positions) == 0:
        return ()
    inputs, _ = data.take(positions)
    pictures = tuple(
        picture(
            _caption(subject, int(label), row),
            x,
            modality=subject.modality,
            valid=subject.valid,
            names=data.feature_names,
            text=f"{which} example {int(position)}",
        )
        for x, row, label, position in zip(inputs, rows, labels, positions, strict=True)
    )
    return (Gallery(f"Most suspicious {which} labels", pictures, "Most suspicious first; a person has to decide."),)


def _test_gallery(
    subject: Subject, evidence: Evidence, probabilities: np.ndarray, issues: LabelIssues
) -> tuple[Exhibit, ...]:
    # Disagreements that did not suffice follow those that did: a page with few issues should still show the doubtful.
    rest = np.flatnonzero((issues.suggested != evidence.clean["label"]) & ~issues.mask)
    top = np.concatenate([issues.order, rest[np.argsort(issues.quality[rest], kind="stable")]])[:SHOWN]
    positions, labels = evidence.clean["index"][top], evidence.clean["label"][top]
    return _gallery(subject, subject.test, positions, probabilities[top], labels, "test")


def _train_finding(probe: str, train: TrainLabels, settings: Settings) -> Finding:
    flagged, number = int(train.issues.mask.sum()), len(train.positions)
    share = clopper_pearson(flagged, number, settings.level)
    sentence = (
        f"Of a sample of {number} training labels, {share.value:.1%} look wrong to a logistic regression on "
        f"{train.source} that was cross-validated over {FOLDS} folds ({train.accuracy:.1%} accurate)."
    )
    return Finding(probe, "train_wrong_share", share, sentence, direction="lower is better")


def _train_exhibits(subject: Subject, train: TrainLabels) -> tuple[Exhibit, ...]:
    assert subject.train is not None
    top = train.issues.order[:SHOWN]
    positions = train.positions[top]
    labels = subject.train.labels[positions]
    gallery = _gallery(subject, subject.train, positions, train.probabilities[top], labels, "training")
    return (*_heatmap(subject, train.issues.joint, "training"), *gallery)


def _doubts(probe: str, evidence: Evidence, probabilities: np.ndarray) -> list[Doubt]:
    labels, correct = evidence.clean["label"], evidence.clean["prediction"] == evidence.clean["label"]
    touches = (f"{probe}.wrong_share",)
    doubts = []
    accuracy, suspicious = float(correct.mean()), int(evidence["suspicious"].sum())
    if accuracy < TRUSTED_ACCURACY:
        doubts.append(
            Doubt(
                "model too inaccurate",
                f"The model is right on only {accuracy:.1%} of the examples, so its disagreement with a label says "
                "more about the model than about the label.",
                touches,
                "Judge the labels with a better model.",
            )
        )
    mistakes = int((~correct).sum())
    if suspicious >= 5 and suspicious > mistakes / 2:
        doubts.append(
            Doubt(
                "mistakes and wrong labels look alike",
                f"{suspicious} of the model's {mistakes} mistakes count as wrong labels; confident mistakes of the "
                "model cannot be told from wrong labels, so the share is too high if the model is overconfident.",
                touches,
                "Look at the examples before believing the share, or judge with a model of another kind.",
            )
        )
    rare = int((np.bincount(labels, minlength=probabilities.shape[1]) < FEW_PER_CLASS).sum())
    if rare:
        doubts.append(
            Doubt(
                "few examples per class",
                f"{rare} of {probabilities.shape[1]} classes have fewer than {FEW_PER_CLASS} examples so far, too few "
                "to say how confident the model usually is of them.",
                touches,
                "Examine more examples.",
            )
        )
    return doubts
