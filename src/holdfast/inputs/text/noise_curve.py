"""How answers fare as more of the retrieved documents are noise (the evaluation of Chain-of-Note; Yu et al., 2023).

For a question the corpus is ranked.  Documents that hold one of the right answers as whole words are gold, the best
ranked of the others are noise: they look like answers and are none.  At ratio r the reader gets round(r k) noise and
k - round(r k) gold documents in random order.  A question without enough of either is left out at that ratio.

Exact match and F1 count "unknown" as wrong, so the share of "unknown" is reported beside them: on questions that cannot
be answered it is the rejection rate, wanted high, on others the false rejection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Series, Table
from holdfast.core.intervals import clopper_pearson, empirical_bernstein, paired_difference
from holdfast.inputs.text.answers import exact_match, holds_answer, is_unknown, token_f1
from holdfast.inputs.text.bm25 import Hit

Reader = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[str]]


@runtime_checkable
class Retriever(Protocol):
    """Ranks a corpus for a question: `BM25Retriever`, or anything that gives hits with a text."""

    def retrieve(self, query: str, k: int = 5) -> tuple[Hit, ...]: ...


@dataclass(frozen=True)
class Question:
    """A question and its right answers, any of which will do."""

    text: str
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.answers:
            raise InputError(f"the question {self.text!r} has no right answer")


@dataclass(frozen=True)
class NoiseCurve:
    """What was answered at every ratio; a question that was left out at a ratio is not `asked` and counts nowhere."""

    ratios: tuple[float, ...]
    asked: Bool[np.ndarray, "ratios questions"]
    exact: Bool[np.ndarray, "ratios questions"]
    f1: Float[np.ndarray, "ratios questions"]
    rejected: Bool[np.ndarray, "ratios questions"]

    def exact_match(self, ratio: float | int, level: float = 0.95) -> Estimate:
        """Share of questions answered exactly."""
        return _share(self._at(self.exact, ratio), level)

    def rejection(self, ratio: float | int, level: float = 0.95) -> Estimate:
        """Share of questions answered "unknown"."""
        return _share(self._at(self.rejected, ratio), level)

    def token_f1(self, ratio: float | int, level: float = 0.95) -> Estimate:
        """Mean F1.  Raises InputError for fewer than two questions."""
        return empirical_bernstein(self._at(self.f1, ratio), level)

    def difference(self, other: NoiseCurve, ratio: float | int, what: str = "exact", level: float = 0.95) -> Estimate:
        """This less the other reader's share of "exact" or "rejected" answers, paired by question."""
        if what not in ("exact", "rejected"):
            raise InputError(f'a difference is one of "exact" or "rejected", got {what!r}')
        return paired_difference(other._at(getattr(other, what), ratio), self._at(getattr(self, what), ratio), level)

    def table(self) -> Table:
        """One row a ratio."""
        rows = tuple(
            (ratio, int(asked.sum()), self.exact_match(ratio), self.token_f1(ratio), self.rejection(ratio))
            for ratio, asked in zip(self.ratios, self.asked, strict=True)
        )
        return Table("Answers as documents become noise", ("noise", "questions", "exact match", "F1", "unknown"), rows)

    def curve(self) -> Curve:
        """Exact match and share of "unknown" over the ratio."""
        series = []
        for name, measure in (("exact match", self.exact_match), ("unknown", self.rejection)):
            e = [measure(ratio) for ratio in self.ratios]
            values, low, high = (tuple(getattr(part, end) for part in e) for end in ("value", "low", "high"))
            series.append(Series(name, self.ratios, values, low, high))
        return Curve("Answers as documents become noise", "share of noise", "share", tuple(series), y_limits=(0.0, 1.0))

    def _at(self, values: np.ndarray, ratio: float | int) -> np.ndarray:
        if ratio not in self.ratios:
            raise InputError(f"the curve has the ratios {self.ratios}, got {ratio}")
        row = self.ratios.index(ratio)
        if not self.asked[row].any():
            raise InputError(f"no question had enough documents at the ratio {ratio}; retrieve more, or lower k")
        return np.asarray(values[row][self.asked[row]])


def noise_curve(
    reader: Reader,
    questions: Sequence[Question],
    retriever: Retriever,
    ratios: Sequence[float | int],
    generator: np.random.Generator,
    *,
    k: int = 5,
    depth: int = 50,
) -> NoiseCurve:
    """Put every question to the reader with k documents at every ratio, drawn from the `depth` best ranked.

    `reader` takes all questions of a ratio with their documents and returns the answers.  The same documents come in
    the same order for every reader, given the same generator.
    Raises InputError on no questions, ratios outside [0, 1], k < 1, or a reader that returns another number of answers.
    """
    if not questions or k < 1 or not all(0 <= ratio <= 1 for ratio in ratios):
        raise InputError(f"wanted questions, k >= 1 and ratios in [0, 1], got {len(questions)}, k={k} and {ratios}")
    ranked = [_gold_and_noise(question, retriever, depth) for question in questions]
    shape = (len(ratios), len(questions))
    asked, exact, rejected = (np.zeros(shape, dtype=bool) for _ in range(3))
    f1 = np.zeros(shape)
    for row, ratio in enumerate(ratios):
        noisy = round(ratio * k)
        places = [i for i, (gold, noise) in enumerate(ranked) if len(gold) >= k - noisy and len(noise) >= noisy]
        shown = [_shuffled(ranked[i][0][: k - noisy] + ranked[i][1][:noisy], generator) for i in places]
        answers = reader([questions[i].text for i in places], shown)
        if len(answers) != len(places):
            raise InputError(f"the reader got {len(places)} questions and returned {len(answers)} answers")
        asked[row, places] = True
        for i, answer in zip(places, answers, strict=True):
            exact[row, i] = exact_match(answer, questions[i].answers)
            f1[row, i] = token_f1(answer, questions[i].answers)
            rejected[row, i] = is_unknown(answer)
    return NoiseCurve(tuple(float(ratio) for ratio in ratios), asked, exact, f1, rejected)


def _gold_and_noise(question: Question, retriever: Retriever, depth: int) -> tuple[list[str], list[str]]:
    gold: list[str] = []
    noise: list[str] = []
    for hit in retriever.retrieve(question.text, depth):
        (gold if holds_answer(hit.text, question.answers) else noise).append(hit.text)
    return gold, noise


def _shuffled(documents: list[str], generator: np.random.Generator) -> list[str]:
    return [documents[i] for i in generator.permutation(len(documents))]


def _share(values: np.ndarray, level: float) -> Estimate:
    return clopper_pearson(int(values.sum()), len(values), level)
