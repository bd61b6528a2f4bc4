"""Window-based early exit for uncertainty (Xia and Bouganis, 2023).

A threshold decision (accept or reject, belongs or foreign) can only change where the score is near the threshold.  With
members 1..M, a score u of the averaged probabilities and a threshold tau that reaches the wanted operating point on
validation data, let q be the share of validation scores below tau.  Inputs whose score lies within

    [ Q(q - w), Q(q + w) ],     Q the quantile function of the scores,  w the half-width,

go on to the next member; all others leave with the answer they have, certain already to be accepted or rejected.  The
expected cost, in units of one member, is 1 + Pr(in the window) (M - 1), about 1 + 2 w (M - 1).  Where q - w < 0 or
q + w > 1 the window is moved inside, so that w = 0.5 is the whole ensemble, exactly, and w = 0 the first member alone.

Further stages have windows of their own, over the scores of the inputs that came so far and around a threshold found
again from all validation inputs, each with the score it left with.  (Among those that came so far alone, a risk of the
whole is not defined.)  Accuracy is another matter: there everything uncertain should go on, see `direction`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from holdfast.core.errors import InputError
from holdfast.inputs.cascades.members import LOGIT_SCORES, PROBABILITY_SCORES, Ensemble, Lazy, Source
from holdfast.inputs.cascades.tasks import CoverageAtRisk

Scores = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Window:
    """Scores that go on to the next member: low <= score <= high; empty when low > high."""

    low: float
    high: float

    def holds(self, scores: Scores) -> Bool[np.ndarray, " n"]:
        return (scores >= self.low) & (scores <= self.high)

    @classmethod
    def around(cls, threshold: float, scores: Scores, half_width: float, direction: str = "both") -> Window:
        """The 2w share of `scores` around `threshold`, or (direction "below") the lowest 2w share whatever it is.

        Equal scores stay together, so with many ties the share can exceed 2w; it is never less by a whole score.
        Ends at the quantiles 0 and 1 are infinite.
        """
        if half_width == 0 or len(scores) == 0:
            return cls(math.inf, -math.inf)
        share = min(2 * half_width, 1.0)
        centre = float(np.mean(scores < threshold)) if direction == "both" else 0.0
        start = min(max(centre - half_width, 0.0), 1 - share)
        # Between two scores an interpolated quantile could shut both out; these are scores themselves.
        low = -math.inf if start <= 0 else float(np.quantile(scores, start, method="inverted_cdf"))
        high = math.inf if start + share >= 1 else float(np.quantile(scores, start + share, method="inverted_cdf"))
        return cls(low, high)


@dataclass(frozen=True, eq=False)
class CascadeResult:
    """What a cascade decided: averaged probabilities, their score, members asked, and acceptance, one entry an input.

    `cost` is the mean cost an input, in the units of `costs`.
    """

    probabilities: Float[np.ndarray, "n classes"]
    scores: Float[np.ndarray, " n"]
    stages: Int[np.ndarray, " n"]
    accepted: Bool[np.ndarray, " n"]
    cost: float


class WindowCascade(BaseEstimator):
    """Ensemble-quality accept/reject decisions for little more than the cost of one member.

    Parameters
    ----------
    members : trained models in the order they are asked
        Each an `nn.Module` that gives logits, an object with `predict_proba`, or a callable that gives probabilities.
        They are never refitted; `sklearn.base.clone` needs them wrapped in `sklearn.frozen.FrozenEstimator`.
    score : {"max_probability", "negative_entropy", "margin", "energy", "max_logit"} or callable
        Of the averaged probabilities (the first three, or a callable (n, classes) -> (n,), higher = more certain), or
        of each member's logits and averaged (the last two).  "max_probability" is kept as its logarithm.
    task : CoverageAtRisk, RiskAtCoverage or TPR
        The wanted operating point.
    half_width : float in [0, 0.5]
        w: a share of about 2w of the inputs goes on at every stage.
    adapt : bool
        Centre every window on the threshold's quantile in the batch at hand instead of that in the validation data, so
        that the share that goes on stays 2w when the inputs shift.  The batch must hold at least 1/(2w) inputs.
    direction : {"both", "below"}
        "below" sends on the 2w least confident inputs instead: right for accuracy, wasteful for accept/reject.
    costs : sequence of float, optional
        Cost of each member (operations, seconds); 1 each by default.

    Attributes
    ----------
    classes_ : (classes,)
    thresholds_ : list of float, one a stage that is not the last
    windows_ : list of Window, one a stage that is not the last
    offset_ : float, the threshold of `accept`
    cost_ : float, mean cost of a validation input
    """

    # scikit-learn wants every check of a setting in `fit`, none here.
    def __init__(
        self,
        members: Sequence[Any],
        score: Any = "max_probability",
        task: Any = CoverageAtRisk(0.05),  # noqa: B008 - frozen
        half_width: Any = 0.1,
        adapt: Any = False,
        direction: Any = "both",
        costs: Any = None,
    ):
        self.members = members
        self.score = score
        self.task = task
        self.half_width = half_width
        self.adapt = adapt
        self.direction = direction
        self.costs = costs

    def fit(self, X: Any, y: Any = None) -> WindowCascade:
        """Find thresholds and windows on validation data; members are asked only for what reaches them.

        Raises InputError for a bad setting, members that disagree on the classes, labels that are missing or unknown,
        or an operating point that no threshold reaches.
        """
        return self.calibrate(Lazy(self.members, X, self.score), y)

    def run(self, X: Any) -> CascadeResult:
        """Everything about every input from one pass.  Raises InputError when `adapt` has too small a batch."""
        check_is_fitted(self)
        return self.cascaded(Lazy(self.members, X, self.score))

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n classes"]:
        """Probabilities averaged over the members that each input was shown to."""
        return self.run(X).probabilities

    def predict(self, X: Any) -> np.ndarray:
        """Most probable class, shape (n,)."""
        return self.classes_[self.run(X).probabilities.argmax(axis=1)]

    def decision_score(self, X: Any) -> Float[np.ndarray, " n"]:
        """The score each input left with; higher is more certain."""
        return self.run(X).scores

    def accept(self, X: Any) -> Bool[np.ndarray, " n"]:
        """Whether the score reaches the threshold of the operating point."""
        return self.run(X).accepted

    def calibrate(self, source: Source, y: Any) -> WindowCascade:
        """`fit` for answers that are known or still to be asked for."""
        self._check_settings()
        ensemble = Ensemble.begin(source, self.score)
        self.classes_ = _classes(self.members, ensemble.probabilities.shape[1])
        truth = self._truth(y, len(source))
        self.thresholds_, self.windows_ = [], []
        passed = np.arange(len(source))
        for stage in range(1, len(self.members)):
            threshold = self.task.threshold(ensemble.scores, _losses(ensemble, truth))
            window = Window.around(threshold, ensemble.scores[passed], float(self.half_width), self.direction)
            passed = passed[window.holds(ensemble.scores[passed])]
            ensemble.ask(stage, passed)
            self.thresholds_.append(threshold)
            self.windows_.append(window)
        self.offset_ = self.task.threshold(ensemble.scores, _losses(ensemble, truth))
        self.cost_ = self.cost_of(ensemble.stages)
        return self

    def cascaded(self, source: Source) -> CascadeResult:
        """`run` for answers that are known or still to be asked for."""
        ensemble = Ensemble.begin(source, self.score)
        passed = np.arange(len(source))
        if self.adapt and self.half_width > 0 and len(passed) < 1 / (2 * self.half_width):
            raise InputError(
                f"adapt=True takes its windows from the batch, which needs at least {1 / (2 * self.half_width):.0f} "
                f"inputs for half_width={self.half_width}, got {len(passed)}; pass more at once or set adapt=False"
            )
        for stage, (threshold, window) in enumerate(zip(self.thresholds_, self.windows_, strict=True), start=1):
            scores = ensemble.scores[passed]
            if self.adapt:
                window = Window.around(threshold, scores, float(self.half_width), self.direction)
            passed = passed[window.holds(scores)]
            ensemble.ask(stage, passed)
        return self.result(ensemble)

    def result(self, ensemble: Ensemble) -> CascadeResult:
        """The decisions about inputs that have had all the answers they will get."""
        return CascadeResult(
            ensemble.probabilities,
            ensemble.scores,
            ensemble.stages,
            ensemble.scores >= self.offset_,
            self.cost_of(ensemble.stages),
        )

    def cost_of(self, stages: Int[np.ndarray, " n"]) -> float:
        """Mean cost of inputs that so many members were asked about."""
        costs = np.ones(len(self.members)) if self.costs is None else np.asarray(self.costs, dtype=np.float64)
        return float(np.cumsum(costs)[stages - 1].mean())

    def _truth(self, y: Any, n: int) -> Int[np.ndarray, " n"] | None:
        """Column of each label, or None when the task needs none and there is none."""
        if y is None:
            if self.task.needs_labels:
                raise InputError(f"{self.task} is about errors, so fit needs the labels y of the validation data")
            return None
        labels = np.asarray(y)
        if labels.shape != (n,):
            raise InputError(f"y must hold one label for each of {n} validation inputs, got shape {labels.shape}")
        if unknown := sorted(set(labels.tolist()) - set(self.classes_.tolist())):
            raise InputError(f"the label {unknown[0]!r} is no class of the members; they know {self.classes_.tolist()}")
        column = {label: index for index, label in enumerate(self.classes_.tolist())}
        return np.array([column[label] for label in labels.tolist()], dtype=np.int64)

    def _check_settings(self) -> None:
        if len(self.members) == 0:
            raise InputError("a cascade needs at least one member, got none")
        names = [*PROBABILITY_SCORES, *LOGIT_SCORES]
        if not callable(self.score) and self.score not in names:
            raise InputError(f"the score must be callable or one of {', '.join(names)}, got {self.score!r}")
        if not hasattr(self.task, "threshold"):
            raise InputError(f"the task must be CoverageAtRisk, RiskAtCoverage or TPR, got {self.task!r}")
        if not 0 <= self.half_width <= 0.5:
            raise InputError(f"half_width is a share of the scores on either side, in [0, 0.5], got {self.half_width}")
        if self.direction not in ("both", "below"):
            raise InputError(f"direction must be 'both' or 'below', got {self.direction!r}")
        if self.costs is not None and (len(self.costs) != len(self.members) or min(self.costs) < 0):
            raise InputError(f"costs must be one number >= 0 for each of {len(self.members)} members, got {self.costs}")


def _losses(ensemble: Ensemble, truth: Int[np.ndarray, " n"] | None) -> Scores:
    if truth is None:
        return np.zeros(len(ensemble.scores))
    return (ensemble.probabilities.argmax(axis=1) != truth).astype(np.float64)


def _classes(members: Sequence[Any], columns: int) -> np.ndarray:
    """Class of each column.  Raises InputError when members name different ones."""
    named = [np.asarray(member.classes_) for member in members if hasattr(member, "classes_")]
    for other in named[1:]:
        if not np.array_equal(named[0], other):
            raise InputError(
                f"members disagree on the classes: {named[0].tolist()} and {other.tolist()}; averages need the same "
                "classes in the same order"
            )
    return named[0] if named else np.arange(columns)
