"""How sure a multiple-choice model may be: conformal sets of options (Ye et al., 2024).

Half of the assets calibrate, the others test; class probabilities are the softmax over an item's own options.

    LAC    {i : p_i >= 1 - q}, q from 1 - p_true            APS    longest prefix by falling p with mass <= q
    UAcc   accuracy sqrt(K) / mean set size

K is the mean number of options.  A set that would be empty holds the likeliest option.  Coverage is promised when
calibration and test items are exchangeable; items of one asset are alike, so splitting within assets tests an easier
promise than the one that a new asset needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool

from holdfast.analysis.conformal import ConformalClassifier, evaluate_sets
from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.inputs.text.mcqa import Answers


@dataclass(frozen=True)
class SetUncertainty:
    """Quality of the sets on the test half; `uacc` is a ratio of means over the same items."""

    coverage: Estimate
    mean_size: Estimate
    accuracy: float
    uacc: float


def uncertainty(
    answers: Answers,
    generator: np.random.Generator,
    *,
    alpha: float = 0.1,
    score: Literal["lac", "aps"] = "lac",
    split: Literal["asset", "item"] = "asset",
    share: float = 0.5,
) -> SetUncertainty:
    """Calibrate on one part of the answers and measure coverage, set size and UAcc on the other.

    Raises InputError on items with several right options, on fewer than two assets for split="asset", and on a share
    that leaves a part empty.
    """
    if any(item.several for item in answers.items):
        raise InputError("conformal sets of options need items with one right option; leave the others out")
    p, present = answers.probabilities(), _present(answers)
    truth = np.array([item.correct.index(True) for item in answers.items])
    calibrates = _calibration(answers, generator, split, share)
    sets = ConformalClassifier(alpha, score, allow_empty=False).fit(p[calibrates], truth[calibrates])
    members = sets.predict(p[~calibrates]) & present[~calibrates]
    quality = evaluate_sets(members, truth[~calibrates])
    accuracy = float(answers.right[~calibrates].mean())
    options = float(present[~calibrates].sum(axis=1).mean())
    return SetUncertainty(
        quality.coverage, quality.mean_size, accuracy, accuracy * math.sqrt(options) / quality.mean_size.value
    )


def _present(answers: Answers) -> Bool[np.ndarray, "items most_options"]:
    counts = np.array([len(item.options) for item in answers.items])
    return np.arange(counts.max()) < counts[:, None]


def _calibration(
    answers: Answers, generator: np.random.Generator, split: str, share: float
) -> Bool[np.ndarray, " items"]:
    """Which items calibrate: whole assets, or single items."""
    if split not in ("asset", "item"):
        raise InputError(f'split must be "asset" or "item", got {split!r}')
    units = [item.asset if split == "asset" else str(place) for place, item in enumerate(answers.items)]
    names, index = np.unique(units, return_inverse=True)
    held = round(share * len(names))
    if not 0 < held < len(names):
        what = "assets" if split == "asset" else "items"
        raise InputError(f"a share of {share} of {len(names)} {what} leaves one of the two parts empty")
    return np.isin(index, generator.permutation(len(names))[:held])
