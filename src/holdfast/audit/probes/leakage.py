"""Has the model seen the test set before?

Every test example is searched among the training examples and among the other test examples, for exact copies and for
near-duplicates (`holdfast.data.duplicates`: hashing, then a fingerprint, then alignment; the threshold comes from the
data and has a stated false-match rate).  Accuracy is reported on all examples and on those without a duplicate in the
training data.  Their difference is s·(a_dup - a_clean), with s the share of duplicates and a_dup, a_clean the
accuracies of the two kinds; its interval is the range of that expression over anytime-valid intervals of the three.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import numpy as np

from holdfast.audit.pictures import picture
from holdfast.audit.probe import Batch, Evidence, Needs, Rows, Settings
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Cell, Exhibit, Gallery, Picture, Table
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.core.seeds import derive_seed
from holdfast.core.sequences import anytime_mean
from holdfast.data.duplicates import DuplicateIndex, Matches, chance_of_coincidence
from holdfast.subject.data import Data, Modality
from holdfast.subject.subject import Subject

FALSE_MATCH_RATE = 1e-4
SHOWN = 12
COINCIDENCE = 0.01
EXACT, NEAR = 1, 2
KINDS = ("none", "exact copy", "near-duplicate")


@dataclass(frozen=True)
class State:
    """Searchable training data (None without it) and test data; `coincidence` as in `chance_of_coincidence`.

    Shares of duplicates are about this test set, of `examples` examples: seen completely, they are known exactly.
    """

    test: DuplicateIndex
    train: DuplicateIndex | None
    coincidence: float
    examples: int

    def share(self, marked: np.ndarray, level: float) -> Estimate:
        """Share of the test set that is marked, from the marks (n,) of the examples seen so far."""
        return anytime_mean(marked, level=level, population=self.examples)


@dataclass(frozen=True)
class LeakageProbe:
    """See the module."""

    name: str = "leakage"
    question: str = "Has the model seen the test set before?"
    perturbs: str = "data"
    needs: Needs = field(default_factory=Needs)
    shard_size: int = 512

    def prepare(self, subject: Subject, settings: Settings) -> State:
        """Read both sets once; the calibration samples depend on the seed only."""

        def index(data: Data, which: str) -> DuplicateIndex:
            seed = derive_seed(settings.seed, self.name, which)
            return DuplicateIndex.build(data.inputs, subject.modality, false_match_rate=FALSE_MATCH_RATE, seed=seed)

        coincidence = 0.0
        if subject.modality != "image":
            rows = (subject.train or subject.test).inputs
            sample = rows.take(np.arange(min(rows.shape[0], 20_000)))
            coincidence = chance_of_coincidence(sample.reshape(len(sample), -1))
        train = None if subject.train is None else index(subject.train, "train")
        return State(index(subject.test, "test"), train, coincidence, len(subject.test))

    def examine(self, subject: Subject, state: State, batch: Batch) -> Rows:
        """For `train` (where there is any) and `test`: nearest position, distance, kind (0 none, 1 exact, 2 near)."""
        x = batch.x.cpu().numpy()
        rows = _columns("test", state.test.find(x, own=batch.index.astype(np.int64)))
        if state.train is not None:
            rows |= _columns("train", state.train.find(x))
        return rows

    def headline(self, state: State, evidence: Evidence, settings: Settings) -> Estimate | None:
        """Share of test examples with a duplicate in the training data (within the test data, without it)."""
        return state.share(evidence[f"{_lead(state)}_kind"] > 0, settings.level)

    def conclude(self, subject: Subject, state: State, evidence: Evidence, settings: Settings) -> Section:
        """Shares, accuracy with and without duplicates, conflicts of labels, and the pairs to look at."""
        findings = _findings(self.name, state, evidence, settings)
        exhibits: list[Exhibit] = [_table(subject, state, evidence, settings)]
        for which, data in (("train", subject.train), ("test", subject.test)):
            if data is not None and f"{which}_kind" in evidence.columns:
                exhibits += _gallery(subject, data, evidence, which)
        return Section(
            probe=self.name,
            question=self.question,
            answer=findings[0].sentence,
            findings=tuple(findings),
            exhibits=tuple(exhibits),
            doubts=tuple(_doubts(self.name, state, evidence)),
            method=_method(state, subject.modality),
            advice="Remove the duplicates from the training data (or from the test data), and keep copies of one "
            "thing - frames of one film, visits of one patient - on one side of the split.",
            examined=len(evidence),
            available=len(subject.test),
        )


def _copies(count: int) -> str:
    return "copy" if count == 1 else "copies"


def _lead(state: State) -> str:
    return "test" if state.train is None else "train"


def _columns(which: str, matches: Matches) -> dict[str, np.ndarray]:
    kind = np.where(matches.exact, EXACT, np.where(matches.near, NEAR, 0)).astype(np.int64)
    return {f"{which}_nearest": matches.nearest, f"{which}_distance": matches.distance, f"{which}_kind": kind}


def _findings(probe: str, state: State, evidence: Evidence, settings: Settings) -> list[Finding]:
    findings = []
    if state.train is not None:
        findings += _train_findings(probe, state, evidence, settings)
    twins = state.share(evidence["test_kind"] > 0, settings.level)
    sentence = (
        f"{twins.value:.1%} of the test examples have a copy or near-duplicate among the other test examples, so they "
        "count more than once."
        if twins.value > 0
        else f"None of the {len(evidence)} test examples looked at has a duplicate among the other test examples."
    )
    findings.append(
        Finding(probe, "test_share", twins, sentence, direction="lower is better", headline=state.train is None)
    )
    return findings


def _train_findings(probe: str, state: State, evidence: Evidence, settings: Settings) -> list[Finding]:
    kind = evidence["train_kind"]
    correct = evidence.clean["prediction"] == evidence.clean["label"]
    leaked = state.share(kind > 0, settings.level)
    exact, near = int((kind == EXACT).sum()), int((kind == NEAR).sum())
    if leaked.value == 0:
        sentence = (
            f"None of the {len(evidence)} test examples looked at has a copy or near-duplicate in the training data"
            + (f" (at most {leaked.high:.1%} of all {state.examples} do)." if len(evidence) < state.examples else ".")
        )
        return [Finding(probe, "train_share", leaked, sentence, direction="lower is better", headline=True)]
    sentence = (
        f"{leaked.value:.1%} of the test examples are in the training data ({exact} exact {_copies(exact)} and {near} "
        f"near-duplicate{'' if near == 1 else 's'} among {len(evidence)})."
    )
    findings = [Finding(probe, "train_share", leaked, sentence, direction="lower is better", headline=True)]
    if exact + near < len(evidence):
        clean = anytime_mean(correct[kind == 0], level=settings.level)
        gain = _inflation(state, correct, kind > 0, settings.level)
        findings.append(
            Finding(
                probe,
                "accuracy_without",
                clean,
                f"Without the examples that are in the training data the model is right {clean.value:.1%} of the time.",
            )
        )
        findings.append(
            Finding(
                probe,
                "accuracy_inflation",
                gain,
                f"The duplicates change the accuracy by {100 * gain.value:+.2f} points "
                f"(between {100 * gain.low:+.2f} and {100 * gain.high:+.2f}).",
                direction="lower is better",
            )
        )
    return findings


def _inflation(state: State, correct: np.ndarray, leaked: np.ndarray, level: float) -> Estimate:
    """Accuracy on all examples minus accuracy on those that are not `leaked`; both kinds must occur."""
    each = 1 - (1 - level) / 3
    share = state.share(leaked, each)
    seen, unseen = anytime_mean(correct[leaked], level=each), anytime_mean(correct[~leaked], level=each)
    corners = [
        s * (a - b) for s, a, b in product((share.low, share.high), (seen.low, seen.high), (unseen.low, unseen.high))
    ]
    value = share.value * (seen.value - unseen.value)
    method = "anytime-valid, union of three"
    return Estimate(value, min(*corners, value), max(*corners, value), level, len(correct), method)


def _conflicts(subject: Subject, evidence: Evidence, which: str) -> tuple[int, int]:
    """Duplicates whose two labels differ, and duplicates."""
    data = subject.train if which == "train" else subject.test
    assert data is not None
    paired = evidence[f"{which}_kind"] > 0
    other = data.labels[evidence[f"{which}_nearest"][paired]]
    return int((other != evidence.clean["label"][paired]).sum()), int(paired.sum())


def _table(subject: Subject, state: State, evidence: Evidence, settings: Settings) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for which, words in (("train", "the training data"), ("test", "the other test examples")):
        if f"{which}_kind" not in evidence.columns:
            continue
        kind = evidence[f"{which}_kind"]
        for number in (EXACT, NEAR):
            share = state.share(kind == number, settings.level)
            rows.append((f"{KINDS[number]} in {words}", int((kind == number).sum()), share))
        conflicts, pairs = _conflicts(subject, evidence, which)
        rows.append((f"duplicates in {words} whose labels differ", conflicts, conflicts / pairs if pairs else None))
    correct = evidence.clean["prediction"] == evidence.clean["label"]
    rows.append(("accuracy on all test examples", len(correct), anytime_mean(correct, level=settings.level)))
    kind = evidence[f"{_lead(state)}_kind"]
    for chosen, words in ((kind == 0, "without a duplicate"), (kind > 0, "with a duplicate")):
        if chosen.any():
            share = anytime_mean(correct[chosen], level=settings.level)
            rows.append((f"accuracy on test examples {words}", int(chosen.sum()), share))
    return Table("Duplicates", ("what", "examples", "share"), tuple(rows))


def _gallery(subject: Subject, data: Data, evidence: Evidence, which: str) -> tuple[Exhibit, ...]:
    kind, distance = evidence[f"{which}_kind"], evidence[f"{which}_distance"]
    found = np.flatnonzero(kind > 0)
    if len(found) == 0:
        return ()
    # Near-duplicates first: a copy needs no looking at.
    top = found[np.lexsort((distance[found], kind[found] == EXACT))][:SHOWN]
    index, nearest = evidence.clean["index"][top], evidence[f"{which}_nearest"][top]
    ours, labels = subject.test.take(index)
    theirs, other_labels = data.take(nearest)
    pictures = tuple(
        _pair(
            subject, which, KINDS[int(kind[place])], (int(i), int(j)), (x, z), (int(y), int(w)), float(distance[place])
        )
        for place, i, j, x, z, y, w in zip(top, index, nearest, ours, theirs, labels, other_labels, strict=True)
    )
    words = "training data" if which == "train" else "test data"
    caption = f"Left the example of the {words}, right the test example. Nearest pairs that are not equal come first."
    return (Gallery(f"Duplicates in the {words}", pictures, caption),)


def _pair(
    subject: Subject,
    which: str,
    kind: str,
    positions: tuple[int, int],
    examples: tuple[np.ndarray, np.ndarray],
    labels: tuple[int, int],
    distance: float,
) -> Picture:
    ours, theirs = (subject.class_names[y] if y < len(subject.class_names) else str(y) for y in labels)
    answer = f"both {ours}" if ours == theirs else f"labels differ: {theirs} and {ours}"
    words = "training" if which == "train" else "test"
    # An unchanged row has no differences to list, so its own values are shown.
    same_row = subject.modality != "image" and np.array_equal(*examples, equal_nan=True)
    return picture(
        f"{kind}, {answer}",
        examples[0],
        modality=subject.modality,
        valid=subject.valid,
        before=None if same_row else examples[1],
        names=subject.test.feature_names,
        text=f"test example {positions[0]}, {words} example {positions[1]}, distance {distance:.3g}",
    )


def _doubts(probe: str, state: State, evidence: Evidence) -> list[Doubt]:
    which = _lead(state)
    doubts = []
    copies = float(np.mean(evidence[f"{which}_kind"] == EXACT))
    if copies > 0 and state.coincidence > COINCIDENCE:
        doubts.append(
            Doubt(
                "copies by coincidence",
                f"With few columns of few values, about {state.coincidence:.1%} of the rows would equal another one by "
                f"chance alone; {copies:.1%} do.",
                (f"{probe}.{which}_share",),
                "Compare rows by an identifier if there is one.",
            )
        )
    index = state.test if state.train is None else state.train
    if index.threshold == 0:
        doubts.append(
            Doubt(
                "near-duplicates not looked for",
                f"{len(index.hashed)} reference examples (or mostly equal ones) are too few to say what a small "
                "distance is, so only exact copies were counted.",
                (f"{probe}.{which}_share",),
            )
        )
    return doubts


def _method(state: State, modality: Modality) -> str:
    index = state.test if state.train is None else state.train
    text = "Exact copies by hashing, confirmed value by value."
    if index.threshold > 0:
        text += (
            " Near-duplicates by an exact nearest-neighbour search: a pair counts when it is nearer than "
            f"{index.threshold:.2f} of the distance to its neighbour number {index.neighbours}; by chance that happens "
            f"to {index.false_match_rate:.2%} of examples in evenly spread data of the dimension found here "
            f"({index.dimension:.1f})."
        )
        if modality == "image":
            text += " Images are compared after the best small shift and change of brightness."
    if state.train is None:
        text += " No training data was given, so only copies within the test data could be found."
    return text
