"""Scores that survive the loss of most words, and scores that swing with one (after Parekh et al., 2020, and Singla et
al., 2021).

A scorer is any function from texts to numbers; attributions come from `attribution`, one number a word of
`words(text)`.

    overstable     the top p % of words in place, or listed by attribution, already give the score; order does not count
    oversensitive  deleting or inserting one word moves it

Changes are given on a scale where the range of scores is [0, 100], so scorers of different rubrics compare.  What a
person would expect (the score should fall, stay or rise) belongs to each perturbation: a change by itself is no fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import RidgeCV

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Curve, Series, Table
from holdfast.core.intervals import bootstrap, clopper_pearson, paired_difference
from holdfast.core.seeds import numpy_generator
from holdfast.inputs.text import edits
from holdfast.inputs.text.attribution import ScoreFunction, scored
from holdfast.inputs.text.bm25 import word_counts
from holdfast.inputs.text.edits import Edit, edit_text, without_words, word_places
from holdfast.inputs.text.tokens import pieces, words

Attributions = Sequence[Float[np.ndarray, "_"]]
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, eq=False)
class OverstabilityCurve:
    """Scores (texts, shares) when only that share of the words is kept, beside the scores of the whole texts."""

    shares: tuple[float, ...]
    scores: Float[np.ndarray, "texts shares"]
    full: Float[np.ndarray, " texts"]

    def preserved(self) -> Float[np.ndarray, "texts shares"]:
        """1 - |score - full| / |full|: 1 where nothing changed; overshooting counts like falling short.

        Raises InputError where a whole text's score is zero, of which there are no shares.
        """
        size = np.abs(self.full)
        if (nothing := size <= 1e-9 * size.max()).any():
            raise InputError(
                f"text {int(nothing.argmax())} has the score 0, of which no share can be preserved; leave such texts "
                "out, or let the scale of scores start above 0"
            )
        return 1 - np.abs(self.scores - self.full[:, None]) / size[:, None]

    def share_needed(self, target: float = 0.9) -> Float[np.ndarray, " texts"]:
        """Smallest share from which on at least `target` of the score is preserved; infinite where it never is."""
        good = np.flip(np.logical_and.accumulate(np.flip(self.preserved() >= target, axis=1), axis=1), axis=1)
        return np.where(good.any(axis=1), np.asarray(self.shares)[good.argmax(axis=1)], np.inf)

    def curve(self, name: str) -> Series:
        """Mean preserved share with its interval, as a line of a figure."""
        means = [paired_difference(np.zeros(len(self.full)), column) for column in self.preserved().T]
        values, lows, highs = zip(*((m.value, m.low, m.high) for m in means))
        return Series(name, self.shares, values, lows, highs)


def overstability_curve(
    score: ScoreFunction,
    texts: Sequence[str],
    attributions: Attributions,
    *,
    shares: Sequence[float] = SHARES,
    kept: Literal["in place", "by rank"] = "in place",
) -> OverstabilityCurve:
    """Scores of the words of highest attribution alone.

    "in place" keeps them in the order of the text (which is to delete the others), "by rank" lists them from the
    highest down, so the order is lost as well.  For the baseline give random numbers as attributions.

    Raises InputError for empty texts, attributions that are not one a word, or shares outside (0, 1].
    """
    if not shares or not all(0 < share <= 1 for share in shares):
        raise InputError(f"shares of words lie in (0, 1], got {tuple(shares)}")
    tokens = [words(text) for text in texts]
    _require_words(tokens, attributions)
    kept_texts = []
    for text, values in zip(tokens, attributions):
        order = np.argsort(-values, kind="stable")
        for share in shares:
            some = order[: max(1, round(share * len(text)))]
            kept_texts.append(" ".join(text[place] for place in (np.sort(some) if kept == "in place" else some)))
    values = scored(score, kept_texts).reshape(len(texts), len(shares))
    return OverstabilityCurve(tuple(shares), values, scored(score, [" ".join(text) for text in tokens]))


def overstability_figure(curves: Mapping[str, OverstabilityCurve]) -> Curve:
    """Preserved share of the score against the share of words kept, one line a way to choose them."""
    return Curve(
        "How much of the score a share of the words preserves",
        "share of words kept",
        "share of the score preserved",
        tuple(curve.curve(name) for name, curve in curves.items()),
        caption=(
            "Overshooting counts like falling short, so a line dips while words that lower the score are still missing."
        ),
    )


@dataclass(frozen=True, eq=False)
class Oversensitivity:
    """Change of every score by one word: (texts,) each, in the scorer's own units."""

    most_positive_deleted: Float[np.ndarray, " texts"]
    most_negative_deleted: Float[np.ndarray, " texts"]
    random_deleted: Float[np.ndarray, " texts"]
    inserted: Mapping[str, Float[np.ndarray, " texts"]]


def oversensitivity(
    score: ScoreFunction,
    texts: Sequence[str],
    attributions: Attributions,
    generator: np.random.Generator,
    *,
    insert: Sequence[str] = (),
) -> Oversensitivity:
    """Delete the word of highest, of lowest and of random attribution; insert each of some words in front.

    Raises InputError for empty texts and attributions that are not one a word.
    """
    _require_words([words(text) for text in texts], attributions)
    full = scored(score, texts)

    def deleted(choose: Callable[[np.ndarray], int]) -> np.ndarray:
        shorter = []
        for text, values in zip(texts, attributions):
            parts = pieces(text)
            shorter.append("".join(without_words(parts, [word_places(parts)[choose(values)]])))
        return scored(score, shorter) - full

    return Oversensitivity(
        deleted(lambda values: int(values.argmax())),
        deleted(lambda values: int(values.argmin())),
        deleted(lambda values: int(generator.integers(len(values)))),
        {word: scored(score, [f"{word} {text}" for text in texts]) - full for word in insert},
    )


@dataclass(frozen=True)
class Perturbation:
    """An edit and what a person expects of the score: -1 that it falls, 0 that it stays, 1 that it rises."""

    edit: Edit
    expected: Literal[-1, 0, 1]


#: Perturbations that need nothing but the text; distractors and synonyms of your own are added as further entries.
SUITE: dict[str, Perturbation] = {
    "words shuffled": Perturbation(edits.shuffle_words, -1),
    "sentences shuffled": Perturbation(edits.shuffle_sentences, -1),
    "text repeated": Perturbation(edits.repeat_sentences, -1),
    "a third of the words dropped": Perturbation(partial(edits.drop_words, fraction=1 / 3), -1),
    "contracted": Perturbation(edits.contract, 0),
    "spaces varied": Perturbation(edits.vary_spaces, 0),
    "capitals varied": Perturbation(edits.EDITS["capitals"], 0),
}


@dataclass(frozen=True, eq=False)
class SuiteResult:
    """Changes on the scale [0, 100], `changes[name]` (texts,), and what was expected."""

    changes: Mapping[str, Float[np.ndarray, " texts"]]
    expected: Mapping[str, int]
    rubric_point: float
    unchanged: float
    level: float = 0.95

    def table(self) -> Table:
        """Per perturbation: shares raised, lowered, unchanged, beyond a rubric point and against what is expected."""
        columns = (
            "perturbation", "should", "raised", "lowered", "unchanged", "mean change", "mean size of changes",
            "sd of changes", "beyond one point", "against expectation",
        )  # fmt: skip
        return Table(
            "What the score makes of perturbed texts",
            columns,
            tuple(self._row(name, values) for name, values in self.changes.items()),
            caption=(
                "Scores run from 0 to 100.  A score that stays although it should fall counts against it, and so does "
                "one that moves by more than a rubric point although it should stay."
            ),
        )

    def against_expectation(self, name: str) -> Float[np.ndarray, " texts"]:
        """1 where the change is not what was expected: a fall or rise that did not come, or a change that did."""
        values, expected = self.changes[name], self.expected[name]
        wrong = np.abs(values) > self.rubric_point if expected == 0 else values * expected <= self.unchanged
        return wrong.astype(np.float64)

    def _row(self, name: str, values: np.ndarray) -> tuple[str | Estimate | None, ...]:
        def share(rows: np.ndarray) -> Estimate:
            return clopper_pearson(int(rows.sum()), len(rows), self.level)

        moved = values[np.abs(values) > self.unchanged]
        return (
            name,
            ("fall", "stay", "rise")[self.expected[name] + 1],
            share(values > self.unchanged),
            share(values < -self.unchanged),
            share(np.abs(values) <= self.unchanged),
            _mean(moved, self.level),
            _mean(np.abs(moved), self.level),
            _deviation(moved, self.level),
            share(np.abs(values) > self.rubric_point),
            share(self.against_expectation(name) > 0),
        )


def perturbation_suite(
    score: ScoreFunction,
    texts: Sequence[str],
    suite: Mapping[str, Perturbation] = SUITE,
    *,
    scale: tuple[float | int, float | int],
    rubric_point: float | int = 1.0,
    unchanged: float | int = 0.0,
    seed: int = 0,
) -> SuiteResult:
    """Score every text before and after every perturbation.

    `scale` holds the lowest and highest score the rubric knows; `rubric_point` and `unchanged` (the largest change that
    counts as none) are in the same units.  Raises InputError for empty texts, an empty scale, and scores outside it.
    """
    low, high = scale
    if not low < high or not rubric_point > 0 or unchanged < 0:
        raise InputError(f"a rubric needs low < high and a point above 0, got {scale}, {rubric_point} and {unchanged}")
    if empty := [number for number, text in enumerate(texts) if not words(text)]:
        raise InputError(f"text {empty[0]} is empty; leave it out, there is nothing to perturb")
    before = _in_scale(scored(score, texts), scale)
    factor = 100 / (high - low)
    changes = {}
    for name, perturbation in suite.items():
        stream = numpy_generator(seed, "perturbation suite", name)
        after = scored(score, [edit_text(text, perturbation.edit, stream) for text in texts])
        changes[name] = (_in_scale(after, scale) - before) * factor
    expected = {name: int(perturbation.expected) for name, perturbation in suite.items()}
    return SuiteResult(changes, expected, float(rubric_point) * factor, float(unchanged) * factor)


def bag_of_words_fidelity(
    score: ScoreFunction, texts: Sequence[str], *, held_out: float | int = 0.3, seed: int = 0
) -> Estimate:
    """R² on held-out texts of a ridge regression from word counts to the scores: 1 where order does not matter at all.

    Ridge weights are chosen by leave-one-out.  Raises InputError for a share held out outside (0, 1), fewer than ten
    texts, or scores that are all the same.
    """
    if not 0 < held_out < 1 or len(texts) < 10:
        raise InputError(f"at least ten texts and a share held out in (0, 1) are needed, got {len(texts)}, {held_out}")
    values, stream = scored(score, texts), numpy_generator(seed, "bag of words")
    tokens = [words(text) for text in texts]
    vocabulary = {word: column for column, word in enumerate(dict.fromkeys(word for text in tokens for word in text))}
    counts = word_counts(tokens, vocabulary).toarray()
    order = stream.permutation(len(texts))
    test, train = np.split(order, [max(3, round(held_out * len(texts)))])
    if np.ptp(values[test]) == 0:
        raise InputError(f"all {len(test)} held-out texts have the score {values[test][0]:.4g}; R² means nothing there")
    fitted = RidgeCV(alphas=np.logspace(-3, 3, 13)).fit(counts[train], values[train]).predict(counts[test])

    def explained(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
        spread = np.square(truth - truth.mean(-1, keepdims=True)).sum(-1)
        return 1 - np.square(truth - guess).sum(-1) / np.maximum(spread, 1e-12)

    return bootstrap(explained, values[test], fitted, generator=stream, vectorized=True)


def _require_words(tokens: Sequence[Sequence[str]], attributions: Attributions) -> None:
    if len(tokens) != len(attributions):
        raise InputError(f"{len(tokens)} texts but attributions of {len(attributions)}")
    for number, (text, values) in enumerate(zip(tokens, attributions)):
        if not text:
            raise InputError(f"text {number} is empty; leave it out, there is no word to keep")
        if len(values) != len(text):
            raise InputError(
                f"text {number} has {len(text)} words but {len(values)} attributions; give one a word of words(text), "
                "with `per_word` where a tokeniser cuts words"
            )


def _in_scale(values: np.ndarray, scale: tuple[float | int, float | int]) -> np.ndarray:
    if values.min() < scale[0] or values.max() > scale[1]:
        raise InputError(
            f"scores span [{values.min():.4g}, {values.max():.4g}], outside the declared range {scale}; declare the "
            "range the scorer can give, or clip it"
        )
    return values


def _mean(values: np.ndarray, level: float) -> Estimate | None:
    return paired_difference(np.zeros_like(values), values, level) if len(values) > 1 else None


def _deviation(values: np.ndarray, level: float) -> Estimate | None:
    if len(values) < 3 or np.ptp(values) == 0:
        return None
    stream = numpy_generator(0, "deviation of changes")
    return bootstrap(lambda rows: rows.std(-1), values, generator=stream, level=level, vectorized=True)
