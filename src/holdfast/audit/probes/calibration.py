"""Whether the model's confidence can be taken at its word.

Per example: the gain c - q of a bettor who takes the predicted class at its stated probability q (c: it was right).
Its mean, the balance, is 0 for a calibrated model, below 0 for one too sure of itself; the headline is its size.  It
needs no bins, but errors of opposite signs cancel, so the binned errors and the balance per stretch stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import softmax

from holdfast.audit.probe import Batch, Evidence, Needs, Rows, Settings
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Exhibit, Histogram, Reliability, Table
from holdfast.core.finding import Doubt, Finding, Section
from holdfast.core.sequences import anytime_mean
from holdfast.inputs.calibration import (
    balance_profile,
    brier_parts,
    expected_calibration_error,
    fit_temperature,
    gains,
    reliability_bins,
)
from holdfast.subject.subject import Access, Subject

#: Width of the interval of the balance beyond which it says nothing.
UNKNOWN = 0.3
BINS = 15
DIAGRAM_BINS = 10
FEW = 200


@dataclass(frozen=True)
class CalibrationProbe:
    """See the module."""

    name: str = "calibration"
    question: str = "When it says 90%, is it right 90% of the time?"
    perturbs: str = "nothing"
    needs: Needs = field(default_factory=lambda: Needs(access=Access.SCORES))
    shard_size: int = 1024

    def prepare(self, subject: Subject, settings: Settings) -> None:
        return None

    def examine(self, subject: Subject, state: None, batch: Batch) -> Rows:
        """Column `gain` (n,) float64 in [-1, 1]."""
        probabilities = softmax(batch.logits.double().cpu().numpy(), axis=1)
        return {"gain": gains(batch.y.cpu().numpy(), probabilities)}

    def headline(self, state: None, evidence: Evidence, settings: Settings) -> Estimate | None:
        """Size of the balance."""
        return _size(_balance(evidence, settings))

    def conclude(self, subject: Subject, state: None, evidence: Evidence, settings: Settings) -> Section:
        """Balance, binned errors, Brier score and its parts."""
        labels = evidence.clean["label"].astype(np.int64)
        logits = evidence.clean["logits"].astype(np.float64)
        probabilities = softmax(logits, axis=1)
        balance = _balance(evidence, settings)
        error, by_width = (
            _at_least(
                balance, expected_calibration_error(labels, probabilities, BINS, strategy=kind, level=settings.level)
            )
            for kind in ("mass", "width")
        )
        right = probabilities[np.arange(len(labels)), labels]
        squares = np.einsum("nk,nk->n", probabilities, probabilities) - 2 * right + 1  # sum_k (p_k - 1[k = y])^2
        brier = anytime_mean(np.clip(squares, 0, 2), level=settings.level, bounds=(0.0, 2.0))
        temperature = fit_temperature(logits, labels)
        return Section(
            probe=self.name,
            question=self.question,
            answer=f"{_verdict(balance)} {_error_sentence(error)}",
            findings=(
                Finding(
                    self.name,
                    "gap",
                    _size(balance),
                    f"On average its confidence and its accuracy are {100 * _size(balance).value:.1f} points apart.",
                    direction="lower is better",
                    headline=True,
                ),
                Finding(self.name, "balance", balance, _verdict(balance), direction="neither", column="gain"),
                Finding(self.name, "ece", error, _error_sentence(error), direction="lower is better"),
                Finding(
                    self.name,
                    "ece_equal_width",
                    by_width,
                    f"With bins of equal width instead, confidence misses accuracy by {by_width.value:.1%}.",
                    direction="lower is better",
                ),
                Finding(
                    self.name,
                    "brier",
                    brier,
                    f"The Brier score (squared error of the probabilities, 0 to 2) is {brier.value:.3f}.",
                    unit="score",
                    direction="lower is better",
                ),
            ),
            exhibits=tuple(_exhibits(evidence, labels, probabilities, temperature, settings)),
            doubts=tuple(_doubts(evidence)),
            method="Confidence is the softmax probability of the predicted class. Balance: mean of (right or not) "
            f"minus confidence. Binned errors: {BINS} bins, debiased, each bin's sign taken from its other examples; "
            "their intervals hold for the number of examples examined, those of balance and Brier score at every look.",
            advice=_advice(balance, error, temperature),
            examined=len(evidence),
            available=len(subject.test),
        )


def _balance(evidence: Evidence, settings: Settings) -> Estimate:
    return anytime_mean(evidence["gain"], level=settings.level, bounds=(-1.0, 1.0))


def _size(balance: Estimate) -> Estimate:
    """|B|: the interval folded at zero."""
    ends = abs(balance.low), abs(balance.high)
    low = 0.0 if balance.low <= 0 <= balance.high else min(ends)
    return Estimate(abs(balance.value), low, max(ends), balance.level, balance.n, balance.method)


def _at_least(balance: Estimate, error: Estimate) -> Estimate:
    """`error` raised to |B| where the sign of B is known: sum_b w_b |B_b| >= |sum_b w_b B_b| = |B|, which a debiased
    estimate can undercut.  (With the sign unknown |B| itself is too high, and `error` stays.)
    """
    size = _size(balance)
    if size.low == 0:
        return error
    return replace(
        error, value=max(error.value, size.value), low=max(error.low, size.low), high=max(error.high, size.value)
    )


def _verdict(balance: Estimate) -> str:
    if balance.low > 0:
        return f"It is too modest: it is right {100 * balance.value:.1f} points more often than it says."
    if balance.high < 0:
        return f"It is too sure of itself: it is right {-100 * balance.value:.1f} points less often than it says."
    said = (
        "Its average confidence fits its accuracy as far as can be told"
        if balance.width <= UNKNOWN
        else "Too few examples to tell whether its average confidence fits its accuracy"
    )
    return (
        f"{said} (difference {100 * balance.value:+.1f} points, "
        f"between {100 * balance.low:+.1f} and {100 * balance.high:+.1f})."
    )


def _error_sentence(error: Estimate) -> str:
    return (
        f"Confidence level by confidence level it misses its accuracy by {error.value:.1%} on average (between "
        f"{error.low:.1%} and {error.high:.1%})."
    )


def _advice(balance: Estimate, error: Estimate, temperature: float) -> str:
    if balance.low <= 0 <= balance.high and error.low < 0.01:
        return "Nothing needs doing: no miscalibration was found that one could be sure of."
    if 0.01 < temperature < 100:
        return (
            f"Divide the logits by a temperature fitted on held-out data (holdfast.inputs.calibration has "
            f"fit_temperature and TemperatureScaled); on these examples the best one is "
            f"{temperature:.2f}. No prediction changes."
        )
    return "Fit a calibration map on held-out data; dividing the logits by one temperature is not enough here."


def _exhibits(
    evidence: Evidence, labels: np.ndarray, probabilities: np.ndarray, temperature: float, settings: Settings
) -> list[Exhibit]:
    bins = reliability_bins(labels, probabilities, DIAGRAM_BINS, level=settings.level)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, 21)
    counts = [np.histogram(confidence[which], edges)[0] for which in (correct, ~correct)]
    parts = brier_parts(labels, probabilities, BINS)
    exhibits: list[Exhibit] = [
        Reliability(
            "Confidence against accuracy",
            tuple(float(value) for value in bins.confidence),
            bins.accuracy,
            tuple(int(count) for count in bins.counts),
            caption="Below the diagonal the model is too sure of itself, above it too modest.",
        ),
        Histogram(
            "How sure it is",
            "confidence in the predicted class",
            tuple(float(edge) for edge in edges),
            tuple((name, tuple(float(n) for n in count)) for name, count in zip(("right", "wrong"), counts)),
        ),
        Table(
            "Where the Brier score comes from",
            ("part", "value", "what it says"),
            (
                ("Brier score", parts.score, "reliability - resolution + uncertainty + within bins"),
                ("reliability", parts.reliability, "probabilities that miss the observed shares; 0 is best"),
                ("resolution", parts.resolution, "how well probabilities tell cases apart; more is better"),
                ("uncertainty", parts.uncertainty, "how hard the task is: the score of the base rates"),
                ("within bins", parts.within, "what binning the probabilities leaves out"),
                ("best temperature", temperature, "what logits should be divided by, on these examples"),
            ),
        ),
    ]
    if len(labels) >= FEW:
        profile = balance_profile(labels, probabilities, level=settings.level)
        rows = tuple((part.name, part.share, part.balance) for part in profile.parts)
        exhibits.append(
            Table(
                "Where it is too sure and where too modest",
                ("stretch", "share of examples", "balance"),
                (*rows, ("error that does not cancel, at least", 1.0, profile.lower_bound)),
                caption="Balance is accuracy minus confidence. In the overall balance opposite errors cancel.",
            )
        )
    return exhibits


def _doubts(evidence: Evidence) -> list[Doubt]:
    if len(evidence) >= FEW:
        return []
    return [
        Doubt(
            "too few examples for bins",
            f"{len(evidence)} examples spread over {BINS} bins say little about each; trust the balance only.",
            ("calibration.ece", "calibration.ece_equal_width"),
            f"Examine at least {FEW} examples, better 2,000.",
        )
    ]
