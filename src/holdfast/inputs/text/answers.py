"""Exact match and token F1 of short answers, as the script of SQuAD counts them (Rajpurkar et al., 2016).

Answers are compared in lower case, without punctuation, the articles a, an, the and extra space.  Of several right
answers the best counts.  F1 = 2 common / (words of the prediction + words of the answer), common words counted with
repetition; where either is empty it is 1 if both are, else 0.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from holdfast.core.errors import InputError

UNKNOWN = "unknown"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction is one of the answers.  Raises InputError when there is no answer."""
    _require(answers)
    return normalised_answer(prediction) in {normalised_answer(answer) for answer in answers}


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Overlap of words with the best of the answers.  Raises InputError when there is no answer."""
    _require(answers)
    return max(_f1(normalised_answer(prediction).split(), normalised_answer(answer).split()) for answer in answers)


def is_unknown(prediction: str) -> bool:
    """Whether the prediction declines to answer: "unknown", whatever its case and punctuation."""
    return normalised_answer(prediction) == UNKNOWN


def holds_answer(document: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the document as whole words."""
    text = f" {normalised_answer(document)} "
    return any(f" {normalised_answer(answer)} " in text for answer in answers)


def _f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * common / (len(predicted) + len(wanted))


def _require(answers: Sequence[str]) -> None:
    if not answers or isinstance(answers, str):
        raise InputError(f"give at least one right answer, in a list, got {answers!r}")
