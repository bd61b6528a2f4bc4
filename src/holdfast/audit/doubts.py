"""Doubts that concern a whole audit rather than one probe."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from holdfast.core.finding import Doubt
from holdfast.core.sequences import anytime_mean
from holdfast.subject.checks import units_doubt
from holdfast.subject.subject import Subject

FEW = 100


def general_doubts(subject: Subject, clean: Mapping[str, np.ndarray], level: float = 0.95) -> list[Doubt]:
    """What the loader noted, unexpected units, a model that guesses, few examples, classes never seen."""
    units = units_doubt(subject)
    doubts = [*subject.doubts, *([] if units is None else [units])]
    right = clean["prediction"] == clean["label"]
    guessing = float(np.bincount(clean["label"]).max() / len(right))
    if anytime_mean(right, level=level).low <= guessing and len(right) >= FEW and subject.classes > 1:
        doubts.append(
            Doubt(
                "no better than guessing",
                f"The model is right on {right.mean():.0%} of the examples, and always naming the most frequent class "
                f"would be right on {guessing:.0%}: that much is not yet shown to be more than guessing.",
                advice="If you expected better: were the right weights loaded, and do the data belong to them?",
            )
        )
    examples = len(clean["index"])
    if examples < FEW:
        doubts.append(
            Doubt(
                "few examples",
                f"Only {examples} test example{' was' if examples == 1 else 's were'} examined, so every interval in "
                "this report is wide.",
                advice=f"Bring at least {FEW} test examples; 1,000 narrow most intervals to about five points.",
            )
        )
    absent = [name for k, name in enumerate(subject.class_names) if not (clean["label"] == k).any()]
    if absent:
        named = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        doubts.append(
            Doubt(
                "classes without examples",
                f"No examined example has the label {named}, so nothing here speaks about "
                f"{'it' if len(absent) == 1 else 'them'}.",
                advice="Add test examples of these classes, or raise --limit.",
            )
        )
    return doubts
