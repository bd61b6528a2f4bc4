"""Confident learning: how many labels are wrong, between which classes, which ones (Northcutt, Jiang, Chuang, 2021).

From given labels y (n,) and out-of-sample probabilities p (n, K), with t_j the mean of p_j over the examples given
label j, an example counts as confidently of class j when p_j >= t_j; where several classes qualify, the most probable
does.

    confident joint   C[i, j] = #{x : given i, confidently j}
    joint             Q[i, j] = (C[i, j] / sum_j C[i, j]) · #{given i} / n          (rows agree with the given labels)

Q estimates P(given = i, true = j).  Five rules turn it into issues:

    predicted-neq-given   the most probable class is another one                            (C_confusion)
    confident-joint       the example is counted off the diagonal of C                      (C_{y,y*})
    prune-by-class        the n·sum_{j != i} Q[i, j] least self-confident examples of every class i
    prune-by-noise-rate   the n·Q[i, j] examples of class i with the largest p_j - p_i, for all i != j
    both                  flagged by the last two                                           (C+NR)

Two conventions are offered by name.  "paper" is the above, ties going to the earlier example.  "cleanlab" gives what
cleanlab 2.9 gives, to the example; it departs from the paper in that thresholds have a slack of 1e-6; an example with
several confident classes is counted under its most probable class even if that one is not confident; every class
keeps at least `keep_per_class` confident examples (and the diagonal of C at least one); counts are rounded to whole
examples, row by row; an example whose given label is the most probable one (to 1e-6) is never an issue, under any
rule; ties fall as NumPy's unstable sort leaves them.

Probabilities are read in blocks of rows in the precision they come in; memory beyond the input is a few numbers an
example and (K, K) counts.  The probabilities must be out of sample: `cross_validated_probabilities` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Integer

from holdfast.core.errors import InputError
from holdfast.labels.calibration import calibrated_counts, paper_counts, prune_counts
from holdfast.labels.quality import (
    SLACK,
    Score,
    check_probabilities,
    checked,
    class_thresholds,
    grouped,
    quality_of_checked,
    row_blocks,
    self_confidence,
)

Convention = Literal["cleanlab", "paper"]
Rule = Literal[
    "predicted-neq-given",
    "confident-joint",
    "prune-by-class",
    "prune-by-noise-rate",
    "both",
]

_GATHER_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class LabelIssues:
    """Which given labels look wrong.

    `mask` (examples,) marks them; `order` holds their positions, most suspicious first; `quality` (examples,) is the
    score behind the order (low is suspicious); `suggested` (examples,) the most probable class; `confident_joint`
    (classes, classes) the counts by [given, true] and `joint` the same as a distribution.
    """

    rule: Rule
    convention: Convention
    mask: Bool[np.ndarray, " examples"]
    order: Integer[np.ndarray, " issues"]
    quality: Float[np.ndarray, " examples"]
    suggested: Integer[np.ndarray, " examples"]
    confident_joint: np.ndarray
    joint: Float[np.ndarray, "classes classes"]
    thresholds: Float[np.ndarray, " classes"]

    @property
    def share(self) -> float:
        """Share of examples flagged."""
        return float(np.count_nonzero(self.mask) / len(self.mask))

    @property
    def estimated_share(self) -> float:
        """Share of labels the joint says are wrong: 1 - trace(Q), which also counts errors no rule can point at."""
        return float(1 - np.trace(self.joint))


def find_label_issues(
    labels: Integer[np.ndarray, " examples"],
    pred_probs: Float[np.ndarray, "examples classes"],
    rule: Rule = "prune-by-noise-rate",
    rank_by: Score = "self-confidence",
    *,
    adjusted: bool = False,
    convention: Convention = "cleanlab",
    keep_per_class: int = 1,
) -> LabelIssues:
    """Find the labels that look wrong, ranked by the quality score `rank_by` (`adjusted` for class thresholds).

    `keep_per_class` (cleanlab's convention only) spares that many examples of every class.
    Raises InputError for labels outside the columns, NaN, values outside [0, 1], or unknown names.
    """
    if rule not in get_args(Rule):
        raise InputError(f"unknown rule {rule!r}; choose one of {', '.join(get_args(Rule))}")
    scan = _Scan.of(labels, pred_probs, convention)
    counts = scan.counts
    if rule == "predicted-neq-given":
        mask = scan.predicted != scan.labels
    elif rule == "confident-joint":
        mask = (scan.guess != scan.labels) & (scan.guess >= 0)
    else:
        prune = prune_counts(counts, keep_per_class) if convention == "cleanlab" else counts
        spared = keep_per_class if convention == "cleanlab" else 0
        mask = np.ones(len(scan.labels), dtype=bool)
        if rule in ("prune-by-class", "both"):
            mask &= _prune_by_class(scan, prune, spared)
        if rule in ("prune-by-noise-rate", "both"):
            mask &= _prune_by_noise_rate(scan, prune, spared)
    if convention == "cleanlab":
        mask &= scan.disagrees
    quality = quality_of_checked(
        scan.labels, scan.pred_probs, rank_by, scan.confidence, scan.thresholds if adjusted else None
    )
    issues = np.flatnonzero(mask)
    order = issues[np.argsort(quality[issues], kind="stable" if convention == "paper" else None)]
    return LabelIssues(
        rule, convention, mask, order, quality, scan.predicted, counts, counts / counts.sum(), scan.thresholds
    )


def confident_joint(
    labels: Integer[np.ndarray, " examples"],
    pred_probs: Float[np.ndarray, "examples classes"],
    *,
    calibrate: bool = True,
    convention: Convention = "cleanlab",
) -> np.ndarray:
    """Counts C[given, true], (classes, classes).

    `calibrate` makes rows sum to the number of examples given each label (whole numbers in cleanlab's convention,
    float64 in the paper's).  Raises InputError as `find_label_issues` does.
    """
    scan = _Scan.of(labels, pred_probs, convention)
    return scan.counts if calibrate else scan.raw_counts


def joint_estimate(
    labels: Integer[np.ndarray, " examples"],
    pred_probs: Float[np.ndarray, "examples classes"],
    *,
    convention: Convention = "cleanlab",
) -> Float[np.ndarray, "classes classes"]:
    """Q[given, true], an estimate of the joint distribution of given and true labels; sums to one.

    Raises InputError as `find_label_issues` does.
    """
    counts = _Scan.of(labels, pred_probs, convention).counts
    return counts / counts.sum()


@dataclass(frozen=True)
class NoiseRates:
    """`prior` (classes,) of true labels; `noise[i, j]` = P(given i | true j); `inverse[j, i]` = P(true j | given i)."""

    prior: Float[np.ndarray, " classes"]
    noise: Float[np.ndarray, "classes classes"]
    inverse: Float[np.ndarray, "classes classes"]


def noise_rates(joint: Float[np.ndarray, "classes classes"]) -> NoiseRates:
    """Conditional rates of a joint distribution of [given, true] labels.

    A class that is never given (or never true) gets a column of `inverse` (of `noise`) with all mass on itself.
    Raises InputError when `joint` is not square, has negative entries or does not sum to one.
    """
    if joint.shape[0] != joint.shape[1] or np.any(joint < 0) or abs(joint.sum() - 1) > 1e-6:
        raise InputError(
            f"joint must be square, non-negative and sum to one; got shape {joint.shape}, sum {joint.sum():.4g}"
        )
    given, true = joint.sum(1), joint.sum(0)
    identity = np.eye(len(joint))
    noise = np.where(true > 0, joint / np.where(true > 0, true, 1), identity)
    inverse = np.where(given > 0, joint.T / np.where(given > 0, given, 1), identity)
    return NoiseRates(true, noise, inverse)


def confident_classes(
    pred_probs: Float[np.ndarray, "examples classes"], thresholds: Float[np.ndarray, " classes"]
) -> Integer[np.ndarray, " examples"]:
    """The most probable class among those with p_j >= t_j, -1 where there is none (the paper's convention)."""
    top = pred_probs.argmax(axis=1)
    return _confident_class(pred_probs, top, pred_probs[np.arange(len(top)), top], thresholds, "paper")


@dataclass(frozen=True)
class _Scan:
    """What two passes over the probabilities leave, one entry an example."""

    labels: np.ndarray
    pred_probs: np.ndarray
    convention: Convention
    groups: tuple[np.ndarray, np.ndarray]  # positions by label, and where each class starts
    confidence: np.ndarray  # p of the given label
    thresholds: np.ndarray  # (classes,)
    predicted: np.ndarray  # most probable class
    guess: np.ndarray  # confident class, -1 where no class is confident
    disagrees: np.ndarray  # the given label is not the most probable, with SLACK in its favour

    @classmethod
    def of(cls, labels: np.ndarray, pred_probs: np.ndarray, convention: Convention) -> _Scan:
        if convention not in get_args(Convention):
            raise InputError(f"unknown convention {convention!r}; choose one of {', '.join(get_args(Convention))}")
        labels, pred_probs = checked(labels, pred_probs)
        examples, classes = pred_probs.shape
        groups = grouped(labels, classes)
        confidence = self_confidence(labels, pred_probs)
        thresholds = class_thresholds(labels, confidence, classes, groups)
        cut = thresholds - SLACK if convention == "cleanlab" else thresholds
        index_type = np.int16 if classes <= np.iinfo(np.int16).max else np.int32
        predicted = np.empty(examples, dtype=index_type)
        guess = np.empty(examples, dtype=index_type)
        disagrees = np.empty(examples, dtype=bool)
        for block in row_blocks(pred_probs):
            probabilities = np.ascontiguousarray(pred_probs[block])
            check_probabilities(probabilities)
            top = probabilities.argmax(axis=1)
            highest = probabilities[np.arange(len(top)), top]
            predicted[block] = top
            guess[block] = _confident_class(probabilities, top, highest, cut, convention)
            lifted = confidence[block] + confidence.dtype.type(SLACK)
            given = labels[block]
            disagrees[block] = (lifted < highest) | ((lifted == highest) & (top < given))
            disagrees[block] &= top != given
        return cls(labels, pred_probs, convention, groups, confidence, thresholds, predicted, guess, disagrees)

    @cached_property
    def raw_counts(self) -> np.ndarray:
        """C before calibration, (classes, classes) int64 by [given, true]."""
        classes = self.pred_probs.shape[1]
        confident = self.guess >= 0
        cells = self.guess[confident].astype(np.int64) * classes + self.labels[confident]
        counts = np.bincount(cells, minlength=classes * classes).reshape(classes, classes).T
        if self.convention == "cleanlab":
            np.fill_diagonal(counts, counts.diagonal().clip(min=1))
        return counts

    @cached_property
    def counts(self) -> np.ndarray:
        """C with rows that sum to the number of examples given each label."""
        given = np.diff(self.groups[1])
        calibrate = calibrated_counts if self.convention == "cleanlab" else paper_counts
        return calibrate(self.raw_counts, given)

    def members(self, label: int) -> np.ndarray:
        """Positions of the examples given `label`, ascending."""
        order, starts = self.groups
        return order[starts[label] : starts[label + 1]]


def _confident_class(
    probabilities: np.ndarray, top: np.ndarray, highest: np.ndarray, cut: np.ndarray, convention: Convention
) -> np.ndarray:
    """The class each row is confidently of, -1 for none.

    Where the most probable class is confident it is the answer under both conventions, so only the other rows look at
    all classes.
    """
    guess = top.copy()
    unsure = np.flatnonzero(highest < cut[top])
    if len(unsure) == 0:
        return guess
    rest = probabilities[unsure]
    confident = rest >= cut
    number = np.count_nonzero(confident, axis=1)
    if convention == "cleanlab":
        choice = np.where(number > 1, top[unsure], confident.argmax(axis=1))
    else:
        choice = np.where(confident, rest, -1).argmax(axis=1)
    guess[unsure] = np.where(number > 0, choice, -1)
    return guess


def _prune_by_class(scan: _Scan, prune: np.ndarray, spared: int) -> np.ndarray:
    mask = np.zeros(len(scan.labels), dtype=bool)
    for label in range(len(prune)):
        rows = scan.members(label)
        number = len(rows) - int(np.rint(prune[label, label]))
        if len(rows) > max(spared, 1) and number >= 1:
            mask[rows[_smallest(scan.confidence[rows], number, scan.convention)]] = True
    return mask


def _prune_by_noise_rate(scan: _Scan, prune: np.ndarray, spared: int) -> np.ndarray:
    """Where at least as many examples clearly prefer class j to their label as are to be pruned, only those are ranked.

    An example that clearly prefers any class disagrees with its label, so these few rows hold the answer; the rest of
    the class is read only when they do not suffice.
    """
    mask = np.zeros(len(scan.labels), dtype=bool)
    for label in range(len(prune)):
        rows = scan.members(label)
        numbers = np.rint(prune[label]).astype(np.int64)
        numbers[label] = 0
        others = np.flatnonzero(numbers > 0)
        if len(rows) <= max(spared, 1) or len(others) == 0:
            continue
        doubtful = rows[scan.disagrees[rows]]
        step = max(1, _GATHER_ELEMENTS // max(1, len(doubtful)))
        for start in range(0, len(others), step):
            part = others[start : start + step]
            gaps = scan.confidence[doubtful] - scan.pred_probs[doubtful[None, :], part[:, None]]
            clear = np.count_nonzero(gaps < -2 * SLACK, axis=1)
            for other, gap, enough in zip(part, gaps, clear >= numbers[part], strict=True):
                chosen = _smallest_untied(gap, int(numbers[other])) if enough else None
                if chosen is None:
                    gap = -(scan.pred_probs[rows, other] - scan.confidence[rows])
                    mask[rows[_smallest(gap, int(numbers[other]), scan.convention)]] = True
                else:
                    mask[doubtful[chosen]] = True
    return mask


def _smallest_untied(values: np.ndarray, number: int) -> np.ndarray | None:
    """Positions of the `number` smallest values; None where a tie at the boundary leaves them undetermined."""
    if number >= len(values):
        return np.arange(len(values)) if number == len(values) else None
    inside = np.flatnonzero(values <= np.partition(values, number - 1)[number - 1])
    return inside if len(inside) == number else None


def _smallest(values: np.ndarray, number: int, convention: Convention) -> np.ndarray:
    """Positions of the `number` smallest values (all, when there are fewer), ties as the convention has them."""
    if number >= len(values):
        return np.arange(len(values))
    chosen = _smallest_untied(values, number)
    if chosen is None:
        chosen = np.argsort(values, kind="stable" if convention == "paper" else None)[:number]
    return chosen
