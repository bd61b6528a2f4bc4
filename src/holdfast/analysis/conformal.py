"""Split conformal prediction: sets that hold the truth with a promised probability, whatever the model.

On n calibration examples the model has not learnt from, a score s(x, y) says how badly y fits x.  The threshold is the
k-th smallest score, k = ceil((n + 1)(1 - alpha)), and infinite when k > n; the set of x holds every y with
s(x, y) <= threshold.  For exchangeable examples  1 - alpha <= P(y in set) (<= 1 - alpha + 1/(n + 1) without ties).

Scores of class probabilities p, with o_1, o_2, ... the classes by falling p and r(y) the rank of y:

    LAC    s = 1 - p_y                                                              (Sadinle, Lei & Wasserman, 2019)
    APS    s = sum_{j <= r(y)} p_{o_j} - u p_y                                      (Romano, Sesia & Candes, 2020)
    RAPS   s = APS + penalty * max(0, r(y) - kept)                                  (Angelopoulos et al., 2021)

u = 0, or uniform on [0, 1] per example when randomised (shorter sets, exact coverage).  Class-conditional ("Mondrian")
calibration keeps one threshold a class, so that every class is covered.  Regression: s = |y - f(x)|, an interval of one
width.  Shapes: probabilities (n, classes), y (n,), sets (n, classes) bool, intervals (n, 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.intervals import clopper_pearson, paired_difference

Score = Literal["lac", "aps", "raps"]

#: A score and a threshold computed along two orders of addition may differ by this much and still be equal.
_ROUNDING = 1e-12


def conformal_quantile(scores: Float[np.ndarray, " n"], alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest score; infinite when that exceeds n (too few scores for the promise).

    Raises InputError on NaN or alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha, the share of misses that is allowed, must lie in (0, 1), got {alpha}")
    if np.isnan(scores).any():
        raise InputError("conformity scores hold NaN")
    # (n + 1)(1 - alpha) may be a whole number that floating point puts just above itself.
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    return math.inf if rank > len(scores) else float(np.partition(scores, rank - 1)[rank - 1])


def lac_scores(probabilities: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """1 - p for every class."""
    return 1 - np.asarray(probabilities, dtype=np.float64)


def aps_scores(
    probabilities: Float[np.ndarray, "n classes"],
    uniform: Float[np.ndarray, " n"] | None = None,
    *,
    penalty: float = 0.0,
    kept: int = 0,
) -> Float[np.ndarray, "n classes"]:
    """Mass of all classes at least as likely, less `uniform` times the class's own.

    RAPS: plus `penalty` for every rank beyond `kept`.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-p, axis=1, kind="stable")
    sorted_p = np.take_along_axis(p, order, axis=1)
    scores = np.cumsum(sorted_p, axis=1)
    if uniform is not None:
        scores -= uniform[:, None] * sorted_p
    scores += penalty * np.maximum(0, np.arange(1, p.shape[1] + 1) - kept)
    unsorted = np.empty_like(scores)
    np.put_along_axis(unsorted, order, scores, axis=1)
    return unsorted


class ConformalClassifier(BaseEstimator):
    """Prediction sets from class probabilities: `fit` calibrates, `predict` gives sets.

    Parameters
    ----------
    alpha : share of misses that is allowed; sets promise coverage 1 - alpha.
    score : "lac" (smallest sets on average), "aps" (adapts to the example) or "raps" (APS without long tails).
    class_conditional : one threshold a class, so that coverage holds within every class; a class with fewer than
        1/alpha - 1 calibration examples is in every set.
    randomised : draw u per example (APS, RAPS) for exact coverage; False never leaves out the likeliest class.
    penalty, kept : RAPS only; added per rank beyond `kept`.
    allow_empty : False puts the likeliest class in every set, which can only raise coverage.
    random_state : seed of u.

    Attributes
    ----------
    thresholds_ : (classes,)
    """

    def __init__(
        self,
        alpha: float = 0.1,
        score: Score = "lac",
        class_conditional: bool = False,
        randomised: bool = False,
        penalty: float = 0.01,
        kept: int = 1,
        allow_empty: bool = True,
        random_state: int = 0,
    ):
        self.alpha = alpha
        self.score = score
        self.class_conditional = class_conditional
        self.randomised = randomised
        self.penalty = penalty
        self.kept = kept
        self.allow_empty = allow_empty
        self.random_state = random_state

    def fit(self, X: Float[np.ndarray, "n classes"], y: Int[np.ndarray, " n"]) -> ConformalClassifier:
        """Calibrate on probabilities of examples that the model has not learnt from.

        Raises InputError on rows that are no probabilities, labels outside the classes, an unknown score or alpha.
        """
        p = _checked_probabilities(X)
        if len(p) != len(y) or y.min() < 0 or y.max() >= p.shape[1]:
            raise InputError(f"calibration needs {len(p)} labels in 0..{p.shape[1] - 1}, got {len(y)}")
        generator = np.random.default_rng(self.random_state)
        own = self._scores(p, generator)[np.arange(len(p)), y]
        everyone = conformal_quantile(own, self.alpha)
        self.thresholds_ = np.full(p.shape[1], everyone)
        if self.class_conditional:
            self.thresholds_ = np.array([conformal_quantile(own[y == k], self.alpha) for k in range(p.shape[1])])
        return self

    def predict(self, X: Float[np.ndarray, "n classes"]) -> Bool[np.ndarray, "n classes"]:
        """Which classes are in the set of every example.  Raises InputError on another number of classes."""
        check_is_fitted(self)
        p = _checked_probabilities(X)
        if p.shape[1] != len(self.thresholds_):
            raise InputError(f"calibrated for {len(self.thresholds_)} classes, got probabilities of {p.shape[1]}")
        # The stream of u for new examples is not that of the calibration.
        scores = self._scores(p, np.random.default_rng([self.random_state, 1]))
        sets = scores <= self.thresholds_ + _ROUNDING
        if not self.allow_empty:
            sets[np.arange(len(p)), p.argmax(axis=1)] = True
        return np.asarray(sets)

    def _scores(self, p: np.ndarray, generator: np.random.Generator) -> Float[np.ndarray, "n classes"]:
        if self.score == "lac":
            return lac_scores(p)
        if self.score not in ("aps", "raps"):
            raise InputError(f'score must be "lac", "aps" or "raps", got {self.score!r}')
        penalty = self.penalty if self.score == "raps" else 0.0
        uniform = generator.random(len(p)) if self.randomised else None
        return aps_scores(p, uniform, penalty=penalty, kept=self.kept)


class ConformalRegressor(BaseEstimator):
    """Intervals f(x) -/+ q around a regressor; `fit` trains it on one part of the data and calibrates on the other.

    Parameters
    ----------
    estimator : scikit-learn regressor; cloned.  With `prefit` it is used as it is and all data calibrate.
    alpha : share of misses that is allowed.
    calibration_share : part of the data that calibrates.
    random_state : seed of the split.

    Attributes
    ----------
    estimator_ : the fitted regressor
    half_width_ : float
    """

    def __init__(
        self,
        estimator: BaseEstimator,
        alpha: float = 0.1,
        calibration_share: float = 0.5,
        prefit: bool = False,
        random_state: int = 0,
    ):
        self.estimator = estimator
        self.alpha = alpha
        self.calibration_share = calibration_share
        self.prefit = prefit
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> ConformalRegressor:
        """Raises InputError on a share that leaves either part empty, or alpha outside (0, 1)."""
        X, y = validate_data(self, X, y, y_numeric=True)
        held = round(self.calibration_share * len(X))
        if self.prefit:
            self.estimator_, calibration = self.estimator, np.arange(len(X))
        elif not 1 <= held < len(X):
            raise InputError(f"calibration_share {self.calibration_share} of {len(X)} examples leaves a part empty")
        else:
            order = np.random.default_rng(self.random_state).permutation(len(X))
            calibration, proper = order[:held], order[held:]
            self.estimator_ = clone(self.estimator).fit(X[proper], y[proper])
        residuals = np.abs(y[calibration] - self.estimator_.predict(X[calibration]))
        self.half_width_ = conformal_quantile(residuals.astype(np.float64), self.alpha)
        return self

    def predict(self, X: np.ndarray) -> Float[np.ndarray, " n"]:
        """The regressor's own predictions."""
        check_is_fitted(self)
        return np.asarray(self.estimator_.predict(validate_data(self, X, reset=False)), dtype=np.float64)

    def predict_interval(self, X: np.ndarray) -> Float[np.ndarray, "n 2"]:
        """Low and high end for every example."""
        centre = self.predict(X)
        return np.stack([centre - self.half_width_, centre + self.half_width_], axis=1)


@dataclass(frozen=True)
class SetQuality:
    """How sets did on fresh examples; classes without an example have no entry in `class_coverage`."""

    coverage: Estimate
    mean_size: Estimate
    class_coverage: dict[int, Estimate]
    sizes: Int[np.ndarray, " sizes"]  # how many sets have 0, 1, 2, ... members


def evaluate_sets(
    sets: Bool[np.ndarray, "n classes"],
    y: Int[np.ndarray, " n"],
    level: float = 0.95,
    coverage_interval: Callable[[Bool[np.ndarray, " some"], float], Estimate] | None = None,
) -> SetQuality:
    """Coverage (Clopper-Pearson unless another `coverage_interval(held, level)` is given), overall and per class, and
    set sizes on examples that did not calibrate.  Raises InputError on lengths that differ or are zero.
    """
    if len(sets) != len(y) or len(y) == 0:
        raise InputError(f"evaluation needs one label for every set and at least one, got {len(y)} for {len(sets)}")
    interval = coverage_interval or (lambda held, level: clopper_pearson(int(held.sum()), len(held), level))
    held, size = sets[np.arange(len(y)), y], sets.sum(axis=1)
    return SetQuality(
        coverage=interval(held, level),
        mean_size=paired_difference(np.zeros(len(y)), size.astype(np.float64), level),
        class_coverage={int(k): interval(held[y == k], level) for k in np.unique(y)},
        sizes=np.bincount(size, minlength=sets.shape[1] + 1),
    )


def _checked_probabilities(X: np.ndarray) -> Float[np.ndarray, "n classes"]:
    p = np.asarray(X, dtype=np.float64)
    if p.ndim != 2 or len(p) == 0:
        raise InputError(f"wanted class probabilities (n, classes) with n >= 1, got shape {p.shape}")
    if not (np.isfinite(p).all() and p.min() >= 0 and np.abs(p.sum(axis=1) - 1).max() < 1e-3):
        raise InputError("rows must be class probabilities that sum to 1; pass logits through a softmax first")
    return p
