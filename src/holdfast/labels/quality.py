"""Label quality scores: how well each given label agrees with out-of-sample probabilities.

With p the predicted probabilities of an example and y its given label,

    self-confidence              p_y
    normalised margin            (p_y - max_{j != y} p_j + 1) / 2
    confidence-weighted entropy  log(1 + s) / s   with  s = H(p) / (log K · p_y)

All three lie between 0 and 1, and low means suspicious.  The adjusted variants first make classes comparable: every
probability loses its class threshold t_j (the mean self-confidence of class j), then rows are shifted and normalised
again,

    p'_j = (p_j - t_j + max_l t_l) / sum_l (p_l - t_l + max_l t_l)

Arrays are read in blocks of rows, so memory beyond the input is one number an example.

Reference: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021;
Kuan and Mueller, "Model-agnostic label quality scoring to detect real-world label errors", 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Integer

from holdfast.core.errors import InputError

Score = Literal["self-confidence", "normalised-margin", "confidence-weighted-entropy"]

#: Threshold of a class without examples: no probability reaches it.
UNREACHABLE = 2.0
#: Slack of floating-point comparisons between probabilities.
SLACK = 1e-6
_BLOCK_ELEMENTS = 1 << 17


def label_quality(
    labels: Integer[np.ndarray, " examples"],
    pred_probs: Float[np.ndarray, "examples classes"],
    score: Score = "self-confidence",
    *,
    adjusted: bool = False,
) -> Float[np.ndarray, " examples"]:
    """Quality of every given label; low is suspicious.

    `adjusted` subtracts each class's threshold first, so that hard classes do not fill the top of the ranking.
    Raises InputError for labels outside the columns, NaN, or values outside [0, 1].
    """
    labels, pred_probs = checked(labels, pred_probs)
    for block in row_blocks(pred_probs):
        check_probabilities(pred_probs[block])
    confidence = self_confidence(labels, pred_probs)
    thresholds = class_thresholds(labels, confidence, pred_probs.shape[1]) if adjusted else None
    return quality_of_checked(labels, pred_probs, score, confidence, thresholds)


def quality_of_checked(
    labels: np.ndarray,
    pred_probs: np.ndarray,
    score: Score,
    confidence: np.ndarray,
    thresholds: np.ndarray | None = None,
) -> np.ndarray:
    """`label_quality` of arrays already validated, with their self-confidence; adjusted when `thresholds` are given."""
    if score not in get_args(Score):
        raise InputError(f"unknown label quality score {score!r}; choose one of {', '.join(get_args(Score))}")
    if score == "self-confidence" and thresholds is None:
        return confidence
    # Entropies are divided in float64 and mixed precisions promote, so the scores decide their own type.
    precise = score == "confidence-weighted-entropy" or (thresholds is not None and thresholds.dtype == np.float64)
    quality = np.empty(len(labels), dtype=np.float64 if precise else confidence.dtype)
    for block in row_blocks(pred_probs):
        probabilities = pred_probs[block]
        if thresholds is not None:
            probabilities = probabilities - thresholds
            probabilities += thresholds.max()
            probabilities /= probabilities.sum(axis=1, keepdims=True)
        quality[block] = _SCORES[score](labels[block], probabilities)
    return quality


def class_thresholds(
    labels: np.ndarray, confidence: np.ndarray, classes: int, groups: tuple[np.ndarray, np.ndarray] | None = None
) -> Float[np.ndarray, " classes"]:
    """Mean self-confidence of the examples given each label (equation 2 of the paper).

    `confidence` (examples,) holds the self-confidences.

    A class without examples gets `UNREACHABLE`.  `groups` is `grouped(labels, classes)` when it is at hand.
    """
    order, starts = grouped(labels, classes) if groups is None else groups
    by_class = confidence[order]
    # One pairwise sum a class: the accuracy of float32 means over a million rows depends on it.
    means = [by_class[start:stop].mean() if stop > start else UNREACHABLE for start, stop in pairwise(starts)]
    return np.clip(means, 2 * SLACK, None)


def grouped(labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (examples,) ordered by label, original order within a class, and where classes start (classes + 1,)."""
    narrow = labels.astype(np.int16 if classes <= np.iinfo(np.int16).max else np.int32, copy=False)
    order = np.argsort(narrow, kind="stable").astype(np.int32 if len(labels) < 2**31 else np.int64, copy=False)
    starts = np.zeros(classes + 1, dtype=np.int64)
    np.cumsum(np.bincount(labels, minlength=classes), out=starts[1:])
    return order, starts


def self_confidence(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """p_y of every example, (examples,), read in blocks."""
    confidence = np.empty(len(labels), dtype=pred_probs.dtype)
    for block in row_blocks(pred_probs):
        confidence[block] = _given(labels[block], pred_probs[block])
    return confidence


def row_blocks(pred_probs: np.ndarray) -> Iterator[slice]:
    """Slices of rows that fit a core's cache."""
    examples, classes = pred_probs.shape
    step = max(1, _BLOCK_ELEMENTS // classes)
    for start in range(0, examples, step):
        yield slice(start, min(start + step, examples))


def checked(labels: np.ndarray, pred_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities whose shapes and types fit; values of `pred_probs` are checked block by block later.

    Raises InputError otherwise.
    """
    if pred_probs.ndim != 2 or pred_probs.shape[1] < 2:
        raise InputError(f"pred_probs must have shape (examples, classes >= 2), got {pred_probs.shape}")
    if labels.shape != (len(pred_probs),):
        raise InputError(
            f"got {len(pred_probs)} rows of pred_probs but labels of shape {labels.shape}; one label a row"
        )
    if len(labels) == 0:
        raise InputError("labels and pred_probs are empty; confident learning needs examples")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels must be integers 0 .. {pred_probs.shape[1] - 1}, got dtype {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= pred_probs.shape[1]:
        raise InputError(
            f"labels run from {low} to {high} but pred_probs has columns 0 .. {pred_probs.shape[1] - 1}; "
            "relabel the classes 0 .. K-1 in the order of the columns"
        )
    if pred_probs.dtype not in (np.float32, np.float64):
        pred_probs = pred_probs.astype(np.float32)  # float16 cannot tell probabilities 1e-6 apart
    return labels, pred_probs


def check_probabilities(block: np.ndarray) -> None:
    """Raises InputError unless all values of a block lie in [0, 1] (NaN does not)."""
    low, high = block.min(), block.max()
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise InputError(
            f"pred_probs must be probabilities in [0, 1], got values from {low:.4g} to {high:.4g}; "
            "pass logits through a softmax and drop rows with NaN first"
        )


def _given(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    return probabilities[np.arange(len(labels)), labels]


def _margin(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return (_given(labels, probabilities) - others.max(axis=1) + 1) / 2


def _weighted_entropy(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    from scipy.special import xlogy  # only this score needs SciPy; the import costs more than most calls

    entropy = -np.sum(xlogy(probabilities, probabilities), axis=1) / np.log(probabilities.shape[1])
    spread = entropy / np.clip(_given(labels, probabilities), SLACK, None)
    return np.log(spread + 1) / np.clip(spread, SLACK, None)


_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "self-confidence": _given,
    "normalised-margin": _margin,
    "confidence-weighted-entropy": _weighted_entropy,
}
