"""Does the model cope with the wear of the real world: noise, blur, weather, compression?

Every example is shown under every family of corruption at severities 1 to 5 (images: the fifteen families of
ImageNet-C; rows: noise, missing cells, drift, wrong units, swapped columns, lost signs, rounding).  The number that
counts is the mean over all cells of that grid, example by example, so each example gives one independent value in
[0, 1] and the interval is valid whenever the audit stops.  The worst family is chosen after the fact; its interval pays
for that by holding for all families at once.

Hendrycks and Dietterich (2019).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Int

from holdfast.audit.pictures import picture
from holdfast.audit.probe import Batch, Evidence, Needs, Rows, Settings
from holdfast.core.errors import UnsupportedError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Bars, Curve, Exhibit, Gallery, Heatmap, Picture, Series
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.core.seeds import numpy_generator
from holdfast.core.sequences import anytime_difference, anytime_mean
from holdfast.inputs import corruption
from holdfast.inputs.corruption import tabular
from holdfast.inputs.corruption.tables import table_for
from holdfast.inputs.corruption.tabular import TableProfile
from holdfast.subject.subject import Access, Subject

SEVERITIES = (1, 2, 3, 4, 5)
PROFILE_ROWS = 5000
SHOWN = 8
#: Severity 1 is meant to be mild; losing more than this share of the clean accuracy to it is a sign of wrong units.
MILD = 0.5


@dataclass(frozen=True)
class State:
    """What `examine` needs beside the batch: range of pixels (images) or profile of the table (rows)."""

    families: tuple[str, ...]
    labels: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    profile: TableProfile | None = None
    guessed_range: bool = False


@dataclass(frozen=True)
class CorruptionProbe:
    """See the module."""

    name: str = "corruption"
    question: str = "Does it cope with noise, blur, weather and other wear of the real world?"
    perturbs: str = "inputs"
    needs: Needs = field(default_factory=lambda: Needs(access=Access.LABELS, modality=frozenset({"image", "tabular"})))
    shard_size: int = 64

    def prepare(self, subject: Subject, settings: Settings) -> State:
        """Learn the range of pixels or the spread of features.  UnsupportedError for images below 8x8 pixels."""
        source = subject.train or subject.test
        if subject.modality == "tabular":
            order = numpy_generator(settings.seed, self.name, "profile").permutation(len(source))[:PROFILE_ROWS]
            rows = source.inputs.take(np.sort(order)).reshape(len(order), -1)
            profile = TableProfile.of(rows, numpy_generator(settings.seed, self.name, "drift"))
            families = tuple(tabular.FAMILIES)
            labels = tuple(name.replace("_", " ") for name in families)
            return State(families, labels, np.array(-np.inf), np.array(np.inf), profile)
        shape = subject.test.shape
        if len(shape) not in (2, 3) or min(shape[-2:]) < corruption.SMALLEST:
            raise UnsupportedError(
                f"corruptions need images of at least {corruption.SMALLEST}x{corruption.SMALLEST} pixels, (channels, "
                f"height, width) or (height, width); these have shape {shape}"
            )
        low, high = _range(subject, settings)
        labels = tuple(corruption.LABELS[name] for name in corruption.FAMILIES)
        return State(corruption.FAMILIES, labels, low, high, guessed_range=subject.valid is None)

    def examine(self, subject: Subject, state: State, batch: Batch) -> Rows:
        """Columns: `correct` (n, families, severities) and the `seed` (n,) that every example's corruptions follow."""
        seeds = torch.randint(2**62, (len(batch),), generator=batch.generator).numpy()
        x = batch.x.cpu().numpy()
        labels = batch.y.cpu().numpy()
        correct = np.empty((len(batch), len(state.families), len(SEVERITIES)), dtype=np.bool_)
        for f in range(len(state.families)):
            made = np.concatenate([_corrupted(state, x, f, severity, seeds) for severity in SEVERITIES])
            answers = subject.logits(subject.tensor(made)).argmax(1).cpu().numpy()
            correct[:, f] = (answers.reshape(len(SEVERITIES), -1) == labels).T
        return {"correct": correct, "seed": seeds}

    def headline(self, state: State, evidence: Evidence, settings: Settings) -> Estimate | None:
        """Accuracy averaged over all families and severities."""
        return anytime_mean(evidence["correct"].mean(axis=(1, 2)), level=settings.level)

    def conclude(self, subject: Subject, state: State, evidence: Evidence, settings: Settings) -> Section:
        """Mean and worst family, drop from clean, heat map, and the examples that failed under the least of it."""
        findings = _findings(state, evidence, settings)
        grid = evidence["correct"].mean(axis=0)
        weakest = np.argsort(grid.mean(axis=1), kind="stable")
        return Section(
            probe=self.name,
            question=self.question,
            answer=f"{findings[0].sentence} {findings[1].sentence}",
            findings=findings,
            exhibits=_exhibits(subject, state, evidence, settings, grid, weakest),
            doubts=_doubts(subject, state, evidence, grid),
            method=_method(subject, state),
            advice=f"Train with corruptions of other families than those you test on; begin with what is weakest here: "
            f"{', '.join(state.labels[f] for f in weakest[:3])}.",
            examined=len(evidence),
            available=len(subject.test),
        )


def _range(subject: Subject, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Black and white in the units the model is fed, shaped to broadcast against one example."""
    if subject.valid is not None:
        low, high = (torch.as_tensor(end, dtype=torch.float32).cpu().numpy() for end in subject.valid)
        return low, high
    order = numpy_generator(settings.seed, "corruption", "range").permutation(len(subject.test))[:1000]
    values = subject.test.inputs.take(np.sort(order))
    return np.asarray(values.min()), np.asarray(max(values.max(), values.min() + 1e-6))


def _corrupted(state: State, x: np.ndarray, family: int, severity: int, seeds: Int[np.ndarray, " n"]) -> np.ndarray:
    """x (n, *shape) in the model's units under one cell of the grid; an example's result follows its own seed."""
    generators = [np.random.default_rng((int(seed), family, severity)) for seed in seeds]
    name = state.families[family]
    if state.profile is not None:
        rows = x.reshape(len(x), -1)
        return tabular.corrupt_rows(rows, name, severity, profile=state.profile, generator=generators).reshape(x.shape)
    pixels = np.clip((x - state.low) / (state.high - state.low), 0, 1)
    layout: corruption.Layout = "channels_first" if x.ndim == 4 else "channels_last"
    made = corruption.corrupt(pixels, name, severity, generator=generators, layout=layout)
    return (state.low + made * (state.high - state.low)).astype(np.float32)


def _findings(state: State, evidence: Evidence, settings: Settings) -> tuple[Finding, ...]:
    correct: Bool[np.ndarray, "n families severities"] = evidence["correct"]
    clean = (evidence.clean["prediction"] == evidence.clean["label"]).astype(np.float64)
    mean = anytime_mean(correct.mean(axis=(1, 2)), level=settings.level)
    simultaneous = _by_family(state, correct, settings)
    worst = int(np.argmin([estimate.value for estimate in simultaneous]))
    value = simultaneous[worst].value
    worst_estimate = Estimate(
        value,
        min(estimate.low for estimate in simultaneous),
        min(estimate.high for estimate in simultaneous),
        settings.level,
        len(correct),
        "betting, simultaneous",
    )
    severe = anytime_mean(correct[:, :, -1].mean(axis=1), level=settings.level)
    drop = anytime_difference(correct.mean(axis=(1, 2)), clean, level=settings.level)
    kinds = len(state.families)
    return (
        Finding(
            "corruption",
            "accuracy",
            mean,
            f"It is right on {mean.value:.1%} of corrupted inputs, averaged over {kinds} kinds of corruption and five "
            f"severities, against {clean.mean():.1%} on the same examples as they are.",
            headline=True,
            column="correct",
        ),
        Finding(
            "corruption",
            "worst_family",
            worst_estimate,
            f"Its weakest point is {state.labels[worst]}: {value:.1%} right over the five severities.",
        ),
        Finding(
            "corruption", "severe", severe, f"At the highest severity it is right on {severe.value:.1%} of the inputs."
        ),
        Finding(
            "corruption",
            "drop",
            drop,
            f"Corruption costs it {100 * drop.value:.1f} points of accuracy on average.",
            direction="lower is better",
        ),
    )


def _by_family(state: State, correct: np.ndarray, settings: Settings) -> list[Estimate]:
    """Accuracy of every family, with intervals that all hold at once with probability `level`."""
    level = 1 - (1 - settings.level) / len(state.families)
    return [anytime_mean(correct[:, f].mean(axis=1), level=level) for f in range(len(state.families))]


def _exhibits(
    subject: Subject, state: State, evidence: Evidence, settings: Settings, grid: np.ndarray, weakest: np.ndarray
) -> tuple[Exhibit, ...]:
    correct = evidence["correct"]
    by_family = _by_family(state, correct, settings)
    heat = Heatmap(
        "Accuracy under every corruption",
        tuple(state.labels[f] for f in weakest),
        tuple(f"severity {severity}" for severity in SEVERITIES),
        tuple(tuple(map(float, grid[f])) for f in weakest),
        caption="Weakest first.  Severity 1 is hardly noticed by people, severity 5 is severe.",
        value_label="accuracy",
        limits=(0.0, 1.0),
    )
    clean = evidence.clean["prediction"] == evidence.clean["label"]
    steps = [anytime_mean(clean, level=settings.level)]
    steps += [anytime_mean(correct[:, :, s].mean(axis=1), level=settings.level) for s in range(len(SEVERITIES))]
    curve = Curve(
        "Accuracy by severity",
        "severity (0: as they are)",
        "accuracy, mean over kinds",
        (
            Series(
                "mean over kinds of corruption",
                tuple(map(float, range(len(steps)))),
                tuple(step.value for step in steps),
                tuple(step.low for step in steps),
                tuple(step.high for step in steps),
            ),
        ),
        y_limits=(0.0, 1.0),
    )
    bars = Bars(
        "Accuracy by kind of corruption",
        "accuracy over five severities",
        tuple(state.labels[f] for f in weakest),
        tuple(by_family[f] for f in weakest),
        reference=float(clean.mean()),
        limits=(0.0, 1.0),
        caption="The line is the accuracy without corruption.  The intervals hold for all kinds at once.",
    )
    return heat, curve, bars, _gallery(subject, state, evidence, weakest)


def _gallery(subject: Subject, state: State, evidence: Evidence, weakest: np.ndarray) -> Gallery:
    """For each of the weakest kinds the first example that was right as it is and fell at the lowest severity."""
    pictures: list[Picture] = []
    right = evidence.clean["prediction"] == evidence.clean["label"]
    for f in weakest[:SHOWN]:
        fell = right[:, None] & ~evidence["correct"][:, f]
        lowest = np.where(fell.any(axis=1), fell.argmax(axis=1), len(SEVERITIES))
        row = int(lowest.argmin())
        if lowest[row] == len(SEVERITIES):
            continue
        severity = SEVERITIES[int(lowest[row])]
        x = subject.test.inputs.take(evidence.clean["index"][row : row + 1])
        made = _corrupted(state, x, int(f), severity, evidence["seed"][row : row + 1])
        answer = int(subject.logits(subject.tensor(made)).argmax(1)[0])
        said = _class_name(subject, answer)
        truth = _class_name(subject, int(evidence.clean["label"][row]))
        pictures.append(
            picture(
                f"{state.labels[f]}, severity {severity}",
                made[0],
                modality=subject.modality,
                valid=subject.valid,
                before=x[0],
                names=subject.test.feature_names,
                text=f"{truth}, taken for {said}",
            )
        )
    return Gallery(
        "Right as it is, wrong under the mildest corruption that fools it",
        tuple(pictures),
        caption="One example for each of the weakest kinds.",
    )


def _class_name(subject: Subject, index: int) -> str:
    return subject.class_names[index] if index < subject.classes else str(index)


def _doubts(subject: Subject, state: State, evidence: Evidence, grid: np.ndarray) -> tuple[Doubt, ...]:
    doubts = []
    clean = float((evidence.clean["prediction"] == evidence.clean["label"]).mean())
    mild = float(grid[:, 0].mean())
    if clean > 0 and mild < MILD * clean:
        doubts.append(
            Doubt(
                "mild corruption breaks it",
                f"Corruption that people hardly notice takes accuracy from {clean:.1%} to {mild:.1%}.  Either the "
                "model is very brittle or its inputs are not in the range it says.",
                touches=("corruption.accuracy", "corruption.drop"),
                advice="Check that the valid range is that of the inputs and that normalisation is inside the model.",
            )
        )
    if state.guessed_range:
        doubts.append(
            Doubt(
                "range of pixels was guessed",
                f"No valid range was given, so black and white were taken from the data: {float(state.low):.3g} and "
                f"{float(state.high):.3g}.",
                touches=("corruption.accuracy",),
                advice="Say which range the inputs have.",
            )
        )
    return tuple(doubts)


def _method(subject: Subject, state: State) -> str:
    if state.profile is not None:
        return (
            f"{len(state.families)} kinds of corruption at five severities, relative to each feature's spread in "
            f"{'the training' if subject.train is not None else 'the test'} data; 0/1 features get no noise, drift, "
            "unit slip or rounding."
        )
    side = min(subject.test.shape[-2:])
    return (
        f"The fifteen families of ImageNet-C at five severities, with the published parameters for images of "
        f"{table_for(side)} pixels, lengths scaled to {side}.  Frost is synthetic (the photographs of the original are "
        "not free), so its numbers compare between audits but not with published ones."
    )
