"""Two runs on the same data, example by example: what got better, what got worse, and by how much.

Runs are paired by the position of an example in the test data; where the runs looked at different subsets, at what
both looked at.  A finding is compared when both runs kept its value per example (`Finding.column` names the evidence
column whose mean it is):

    difference = mean over shared examples of (B - A),

with a paired interval: for every example of a fixed set Bonett and Price's (yes/no) or Student's t (numbers); for
runs that stopped early an anytime-valid one (betting), because when they stopped may depend on what they saw.  The
clean predictions of both runs are compared by McNemar's test and by the list of examples that changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from holdfast.core.errors import InputError, StorageError
from holdfast.core.estimate import Estimate
from holdfast.core.finding import Finding
from holdfast.core.intervals import McNemar, mcnemar, paired_difference
from holdfast.core.sequences import anytime_difference
from holdfast.report.record import RunRecord

#: How far a column's mean may lie from the finding it is said to be before the two are not the same quantity.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Difference:
    """A finding of both runs and the paired difference B - A over the shared examples."""

    key: str
    a: Finding
    b: Finding
    difference: Estimate
    shared: int
    better: int
    worse: int
    rising: tuple[int, ...]
    falling: tuple[int, ...]

    @property
    def word(self) -> str:
        """ "better", "worse", "higher" or "lower" when the interval excludes zero, else "no clear difference"."""
        if self.difference.low <= 0 <= self.difference.high:
            return "no clear difference"
        up = self.difference.low > 0
        if self.b.direction == "neither":
            return "higher" if up else "lower"
        return "better" if up == (self.b.direction == "higher is better") else "worse"


@dataclass(frozen=True)
class Unpaired:
    """A finding of both runs that cannot be paired, and why; its two intervals stand side by side."""

    key: str
    a: Finding
    b: Finding
    reason: str


@dataclass(frozen=True)
class Changes:
    """Clean predictions of both runs: McNemar's test and the positions of the examples that changed."""

    test: McNemar
    shared: int
    both_right: int
    both_wrong: int
    fixed: tuple[int, ...]
    broken: tuple[int, ...]
    otherwise: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """Run B held against run A."""

    a: RunRecord
    b: RunRecord
    changes: Changes | None
    differences: tuple[Difference, ...]
    unpaired: tuple[Unpaired, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]


def compare(run_a: str | os.PathLike[str], run_b: str | os.PathLike[str]) -> Comparison:
    """Pair two run folders.

    Raises StorageError when either is not a readable run, and InputError when they are about different data or share
    no example.
    """
    a, b = RunRecord.read(run_a), RunRecord.read(run_b)
    notes = [*_same_data(a, b), *_settings_that_differ(a, b)]
    changes = _changes(a, b)
    differences: list[Difference] = []
    unpaired: list[Unpaired] = []
    for finding in a.findings:
        other = b.find(finding.key)
        if other is not None:
            paired = _pair(a, b, finding, other)
            (differences if isinstance(paired, Difference) else unpaired).append(paired)  # type: ignore[arg-type]
    keys_a, keys_b = ([finding.key for finding in record.findings] for record in (a, b))
    return Comparison(
        a=a,
        b=b,
        changes=changes,
        differences=tuple(differences),
        unpaired=tuple(unpaired),
        only_a=tuple(key for key in keys_a if key not in keys_b),
        only_b=tuple(key for key in keys_b if key not in keys_a),
        notes=tuple(notes),
    )


def render_comparison(comparison: Comparison, format: str = "text") -> str:
    """The comparison as text, json or html.  Raises InputError for another format."""
    from holdfast.report import comparison_forms

    forms = {
        "text": comparison_forms.as_text,
        "json": comparison_forms.as_json,
        "html": comparison_forms.as_html,
    }
    if format not in forms:
        raise InputError(f"unknown comparison format {format!r}; choose from {', '.join(forms)}")
    return forms[format](comparison)


# ------------------------------------------------------------------------------------------------------- may they be
# paired


_DATA_FACTS = {
    "source": "source",
    "test_examples": "examples",
    "shape": "shape of an example",
    "classes": "classes",
}


def _same_data(a: RunRecord, b: RunRecord) -> list[str]:
    """Notes on how sure it is that both runs are about the same data.  Raises InputError when they are not."""
    marks = [record.subject.get("data_fingerprint") for record in (a, b)]
    differing = [
        f"{word} {a.subject[name]!r} against {b.subject[name]!r}"
        for name, word in _DATA_FACTS.items()
        if a.subject[name] != b.subject[name]
    ]
    if marks[0] is not None and marks[0] == marks[1]:
        return []
    if None not in marks:
        said = "; ".join(differing) or "inputs or labels, while source, size and shape are the same"
        raise InputError(
            f"the runs are about different test data and cannot be compared example by example ({said}); audit both "
            f"models on the same data (fingerprints {marks[0]} and {marks[1]})"
        )
    if any(a.subject[name] != b.subject[name] for name in ("test_examples", "shape", "classes")):
        raise InputError(f"the runs are about different test data and cannot be compared: {'; '.join(differing)}")
    _require_same_labels(a, b)
    return ["At least one run does not name its data; labels of all shared examples agree, inputs were not compared."]


def _require_same_labels(a: RunRecord, b: RunRecord) -> None:
    places = _shared(a.clean, b.clean, "clean predictions")
    differ = int((a.clean["label"][places[0]] != b.clean["label"][places[1]]).sum())
    if differ:
        raise InputError(
            f"the runs are about different test data: {differ} of {len(places[0])} shared examples have other labels"
        )


def _settings_that_differ(a: RunRecord, b: RunRecord) -> list[str]:
    settings = (a.manifest["settings"], b.manifest["settings"])
    return [
        f"The {name} differs: {settings[0].get(name)!r} in A, {settings[1].get(name)!r} in B."
        for name in ("threat", "level")
        if settings[0].get(name) != settings[1].get(name)
    ]


def _shared(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], what: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both for the examples both hold, in A's order.  Raises InputError when there is none."""
    if "index" not in a or "index" not in b:
        raise StorageError(f"a run folder lacks the evidence of its {what}; audit again with --resume")
    place_in_b = {int(position): row for row, position in enumerate(b["index"])}
    pairs = [(row, place_in_b[int(p)]) for row, p in enumerate(a["index"]) if int(p) in place_in_b]
    if not pairs:
        raise InputError(
            f"the runs share no example in their {what}; audit both with the same --seed or a larger --limit"
        )
    rows = np.array(pairs, dtype=np.int64)
    return rows[:, 0], rows[:, 1]


# -----------------------------------------------------------------------------------------------------------------
# pairing


def _changes(a: RunRecord, b: RunRecord) -> Changes | None:
    if not a.clean or not b.clean:
        return None
    rows_a, rows_b = _shared(a.clean, b.clean, "clean predictions")
    index = a.clean["index"][rows_a]
    before, after = a.clean["prediction"][rows_a], b.clean["prediction"][rows_b]
    label = a.clean["label"][rows_a]
    right_a, right_b = before == label, after == label
    return Changes(
        test=mcnemar(right_a, right_b),
        shared=len(index),
        both_right=int((right_a & right_b).sum()),
        both_wrong=int((~right_a & ~right_b).sum()),
        fixed=_positions(index, ~right_a & right_b),
        broken=_positions(index, right_a & ~right_b),
        otherwise=_positions(index, ~right_a & ~right_b & (before != after)),
    )


def _positions(index: np.ndarray, chosen: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(int(position) for position in index[chosen]))


def _pair(a: RunRecord, b: RunRecord, finding: Finding, other: Finding) -> Difference | Unpaired:
    scores = []
    for record, one in ((a, finding), (b, other)):
        evidence, reason = _scores(record, one)
        if evidence is None:
            return Unpaired(finding.key, finding, other, reason)
        scores.append(evidence)
    try:
        rows_a, rows_b = _shared(scores[0], scores[1], f"evidence of {finding.probe}")
    except InputError as error:
        return Unpaired(finding.key, finding, other, str(error))
    index = scores[0]["index"][rows_a]
    before, after = scores[0]["score"][rows_a], scores[1]["score"][rows_b]
    known = ~(_missing(before) | _missing(after))
    if not known.any():
        return Unpaired(finding.key, finding, other, "it applies to no example in both runs")
    before, after, index = before[known], after[known], index[known]
    difference = _interval(before, after, a.level, early=_stopped_early(a, finding) or _stopped_early(b, other))
    gain = after.astype(np.float64) - before.astype(np.float64)
    good = -gain if other.direction == "lower is better" else gain
    return Difference(
        finding.key, finding, other, difference, len(index), int((good > 0).sum()), int((good < 0).sum()),
        _positions(index, gain > 0), _positions(index, gain < 0),
    )  # fmt: skip


def _scores(record: RunRecord, finding: Finding) -> tuple[dict[str, np.ndarray] | None, str]:
    """Columns `index` and `score` (one number an example) behind a finding, or None and why there are none."""
    if finding.column is None:
        return None, "no column of evidence has it as its mean"
    columns = record.evidence(finding.probe)
    if not columns or finding.column not in columns:
        clean = record.clean
        if finding.probe == "accuracy" and finding.column == "correct" and clean:
            return {"index": clean["index"], "score": clean["prediction"] == clean["label"]}, ""
        return None, f"{record.url} holds no column {finding.column!r} for it"
    values = columns[finding.column]
    score = values if values.ndim == 1 else np.nanmean(values.reshape(len(values), -1).astype(np.float64), axis=1)
    mean = float(np.nanmean(score.astype(np.float64)))
    if abs(mean - finding.estimate.value) > TOLERANCE * max(1.0, abs(mean)):
        return None, f"the mean of its evidence ({mean:.6g}) is not the number reported ({finding.estimate.value:.6g})"
    return {"index": columns["index"], "score": score}, ""


def _missing(score: np.ndarray) -> np.ndarray:
    return np.isnan(score) if score.dtype.kind == "f" else np.zeros(len(score), dtype=bool)


def _stopped_early(record: RunRecord, finding: Finding) -> bool:
    return any(section.status == "partial" for section in record.sections if section.probe == finding.probe)


def _interval(before: np.ndarray, after: np.ndarray, level: float, *, early: bool) -> Estimate:
    binary = before.dtype == np.bool_ and after.dtype == np.bool_
    if not binary:
        before, after = before.astype(np.float64), after.astype(np.float64)
    inside = all(float(values.min()) >= 0 and float(values.max()) <= 1 for values in (before, after))
    unvaried = not binary and float(np.ptp(after - before)) == 0.0  # Student's t would claim certainty from any sample
    if inside and (early or unvaried):
        return anytime_difference(before, after, level=level)
    return paired_difference(before, after, level)
