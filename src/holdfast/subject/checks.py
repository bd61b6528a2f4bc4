"""What is checked where a subject comes in, so that everything behind the door may trust it.

`check_model` runs the model on a few examples and compares what comes out with what was declared; `units_doubt` asks
whether the model was trained on inputs of another scale: accuracy on a few hundred examples as given is compared,
pair by pair, with accuracy on the same examples in other common units by McNemar's exact test.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import binom
from torch import Tensor

from holdfast.core.finding import Doubt
from holdfast.core.seeds import numpy_generator
from holdfast.subject.subject import Subject

FEW = 16
UNITS_SAMPLE = 512
UNITS_LEVEL = 1e-4


def units_doubt(subject: Subject, examples: int = UNITS_SAMPLE) -> Doubt | None:
    """A doubt when inputs lie outside the valid range, or when the model is clearly better on them in other units.

    Looks at `examples` test examples drawn with a fixed seed.  Other units are tried for images and tables only.
    """
    size = min(examples, len(subject.test))
    index = numpy_generator(0, "units").choice(len(subject.test), size, replace=False)
    inputs, labels = subject.test.take(index)
    return _range_doubt(subject, inputs) or _scale_doubt(subject, inputs, labels)


def _range_doubt(subject: Subject, inputs: np.ndarray) -> Doubt | None:
    if subject.valid is None:
        return None
    x = subject.tensor(inputs)
    low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in subject.valid)
    slack = 1e-5 * float((high - low).abs().max())
    outside = ((x < low - slack) | (x > high + slack)).flatten(1).any(1)
    if not outside.any():
        return None
    return Doubt(
        "inputs outside the valid range",
        f"{int(outside.sum())} of {len(outside)} test inputs lie outside the valid range {_ends(low, high)} "
        f"(they run from {inputs.min():g} to {inputs.max():g}), so perturbed inputs were clipped to values the data do "
        "not keep to.",
        advice="Give the true range (--input-range LOW,HIGH) or bring the data into it.",
    )


def _ends(low: Tensor, high: Tensor) -> str:
    return f"[{float(low.min()):g}, {float(high.max()):g}]"


def _scale_doubt(subject: Subject, inputs: np.ndarray, labels: np.ndarray) -> Doubt | None:
    as_given = _right(subject, inputs, labels)
    best: tuple[float, str, float] | None = None
    candidates = other_units(inputs, subject.modality)
    for words, changed in candidates.items():
        right = _right(subject, changed, labels)
        better, worse = int((right & ~as_given).sum()), int((as_given & ~right).sum())
        chance = float(binom.sf(better - 1, better + worse, 0.5)) if better else 1.0
        if chance < UNITS_LEVEL / len(candidates) and (best is None or right.mean() > best[2]):
            best = (chance, words, float(right.mean()))
    if best is None:
        return None
    _, words, accuracy = best
    return Doubt(
        "input units",
        f"The model is right on {as_given.mean():.0%} of {len(labels)} test examples as given, but on {accuracy:.0%} "
        f"when inputs are {words}: it was probably trained on inputs in those units.",
        advice="Put the conversion inside the model as its first layer, or bring the data in the model's own units; "
        "every number of this audit is about the inputs as given.",
    )


def other_units(
    inputs: Float[np.ndarray, "examples ..."], modality: str
) -> Mapping[str, Float[np.ndarray, "examples ..."]]:
    """The same inputs in other common units, by the words that complete "when inputs are ..."."""
    axes = (0, 2, 3) if modality == "image" and inputs.ndim == 4 else (0,)
    mean, spread = inputs.mean(axes, keepdims=True), inputs.std(axes, keepdims=True)
    standard = (inputs - mean) / np.where(spread > 0, spread, 1)
    if modality == "image":
        return {
            "multiplied by 255": inputs * np.float32(255),
            "divided by 255": inputs / np.float32(255),
            "mapped from [0, 1] to [-1, 1]": inputs * np.float32(2) - np.float32(1),
            "standardised channel by channel": standard,
        }
    return {"standardised feature by feature": standard} if modality == "tabular" else {}


def _right(subject: Subject, inputs: np.ndarray, labels: np.ndarray) -> Bool[np.ndarray, " examples"]:
    logits = subject.logits(subject.tensor(inputs))
    return np.asarray(logits.argmax(1).cpu().numpy() == labels)
