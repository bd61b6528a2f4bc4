"""The operating point at which a confidence score becomes a decision: accept an input when its score >= threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.inputs.detection.metrics import fpr_at_tpr
from holdfast.inputs.selective import coverage_at_risk, risk_at_coverage, risk_coverage

Scores = Float[np.ndarray, " n"]


@runtime_checkable
class Task(Protocol):
    """A wanted operating point: which threshold reaches it, and how well it is met on other data."""

    needs_labels: ClassVar[bool]

    def threshold(self, scores: Scores, losses: Scores) -> float:
        """Smallest score that is accepted.  Raises InputError when no threshold reaches the wanted point."""

    def quality(self, scores: Scores, losses: Scores, foreign: Float[np.ndarray, " foreign"] | None) -> Estimate:
        """What one trades for computation, measured on other data with the threshold chosen there."""


@dataclass(frozen=True)
class CoverageAtRisk:
    """Accept as many as the mean loss of what is accepted allows; the quality is the coverage (higher is better)."""

    risk: float
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.risk < 1:
            raise InputError(f"the risk to keep must lie in [0, 1), got {self.risk}")

    def threshold(self, scores: Scores, losses: Scores) -> float:
        curve = risk_coverage(scores, losses)
        kept = np.flatnonzero(curve.risk <= self.risk)
        if len(kept) == 0:
            raise InputError(
                f"no threshold keeps the risk at {self.risk:g}: the lowest on the validation data is "
                f"{curve.risk.min():.4f}; ask for a higher risk, or use a better score or better members"
            )
        return float(curve.threshold[kept[-1]])

    def quality(self, scores: Scores, losses: Scores, foreign: Float[np.ndarray, " foreign"] | None) -> Estimate:
        return coverage_at_risk(scores, losses, self.risk)


@dataclass(frozen=True)
class RiskAtCoverage:
    """Accept a given share of the inputs; the quality is the mean loss among them (lower is better)."""

    coverage: float
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.coverage <= 1:
            raise InputError(f"coverage must lie in (0, 1], got {self.coverage}")

    def threshold(self, scores: Scores, losses: Scores) -> float:
        curve = risk_coverage(scores, losses)
        return float(curve.threshold[np.searchsorted(curve.coverage, self.coverage - 1e-12)])

    def quality(self, scores: Scores, losses: Scores, foreign: Float[np.ndarray, " foreign"] | None) -> Estimate:
        return risk_at_coverage(scores, losses, self.coverage)


@dataclass(frozen=True)
class TPR:
    """Accept a given share of inputs that belong; the quality is the share of foreign ones accepted (lower is better).

    Needs no labels: the validation data are taken to belong.
    """

    rate: float
    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise InputError(f"the true-positive rate must lie in (0, 1], got {self.rate}")

    def threshold(self, scores: Scores, losses: Scores) -> float:
        return RiskAtCoverage(self.rate).threshold(scores, losses)

    def quality(self, scores: Scores, losses: Scores, foreign: Float[np.ndarray, " foreign"] | None) -> Estimate:
        if foreign is None:
            raise InputError("the quality at a true-positive rate needs foreign inputs; pass `foreign`")
        return fpr_at_tpr(scores, foreign, tpr=self.rate)
