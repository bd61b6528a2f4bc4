"""Doubts that concern a whole audit rather than one probe."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from holdfast.core.finding import Doubt
from holdfast.subject.checks import units_doubt
from holdfast.subject.subject import Subject

FEW = 100


def general_doubts(subject: Subject, clean: Mapping[str, np.ndarray]) -> list[Doubt]:
    """Too few examples, classes never seen, inputs in units the model does not expect."""
    doubts = []
    examples = len(clean["index"])
    if examples < FEW:
        doubts.append(
            Doubt(
                "few examples",
                f"Only {examples} test examples were examined, so every interval in this report is wide.",
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
    units = units_doubt(subject)
    return doubts if units is None else [units, *doubts]
