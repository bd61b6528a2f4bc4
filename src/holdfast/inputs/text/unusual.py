"""Detectors of texts made to fool a scorer: by how the text reads, and by where its score comes from.

`FluencyDetector` reads a text: how surprising its words are to a trigram model of clean texts, and how much less so in
their order than one by one, how adjacent sentences hang together, how much it repeats itself, and, with a scorer, how
much the score depends on order.
`AttributionDetector` looks at the attributions of a score: how concentrated they are (Gini, entropy, largest share,
top five), their signs, and the share that falls on words of the prompt.

Both are fitted on clean texts alone and follow scikit-learn's outlier detectors: `score_samples` (higher is more
typical), `decision_function`, `predict` (+1, -1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.ensemble import IsolationForest
from sklearn.svm import OneClassSVM
from sklearn.utils.validation import check_is_fitted

from holdfast.core.errors import InputError
from holdfast.core.seeds import numpy_generator
from holdfast.inputs.text.attribution import ScoreFunction, scored
from holdfast.inputs.text.edits import edit_text, shuffle_words
from holdfast.inputs.text.tokens import sentences, words


class TrigramModel:
    """Words given the two before them: trigram, bigram and unigram shares mixed by Witten and Bell's weights.

        p(w | u v) = (c(u v w) + n(u v) p(w | v)) / (c(u v) + n(u v)),      n(.) = number of different words seen

    after it, and so on down to the uniform distribution over the words seen and one unseen.
    """

    def fit(self, tokens: Sequence[Sequence[str]]) -> TrigramModel:
        """Count texts or sentences, each a list of words."""
        self.counts_: Counter[tuple[str, ...]] = Counter()
        self.followers_: Counter[tuple[str, ...]] = Counter()
        self.totals_: Counter[tuple[str, ...]] = Counter()
        for text in tokens:
            padded = ("", "", *text)
            for place in range(2, len(padded)):
                for order in range(3):
                    self.counts_[padded[place - order : place + 1]] += 1
        for gram, count in self.counts_.items():
            self.followers_[gram[:-1]] += 1
            self.totals_[gram[:-1]] += count
        self.size_ = self.followers_[()] + 1
        return self

    def surprisal(self, text: Sequence[str]) -> Float[np.ndarray, " words"]:
        """-log2 p of every word given the two before it."""
        padded = ("", "", *text)
        places = range(2, len(padded))
        return -np.log2([self._probability(padded[place - 2 : place], padded[place]) for place in places])

    def rarity(self, text: Sequence[str]) -> Float[np.ndarray, " words"]:
        """-log2 p of every word by itself."""
        return -np.log2([self._probability((), word) for word in text])

    def _probability(self, context: tuple[str, ...], word: str) -> float:
        below = self._probability(context[1:], word) if context else 1 / self.size_
        seen, kinds = self.totals_[context], self.followers_[context]
        return (self.counts_[(*context, word)] + kinds * below) / (seen + kinds) if seen else below


class _TextOutliers(OutlierMixin, BaseEstimator):
    """What both detectors share: features (n, f) to the scores of an outlier detector fitted on clean ones."""

    contamination: float | int
    outlier: Any

    def _fit_outlier(self, features: Float[np.ndarray, "n features"]) -> None:
        if not 0 < self.contamination <= 0.5:
            raise InputError(f"contamination must lie in (0, 0.5], got {self.contamination}")
        self.centre_, self.scale_ = features.mean(0), np.maximum(features.std(0), 1e-9)
        self.outlier_ = clone(self.outlier) if self.outlier is not None else self._default()
        self.outlier_.fit((features - self.centre_) / self.scale_)
        self.offset_ = float(np.quantile(self._typicality(features), self.contamination))

    def _typicality(self, features: Float[np.ndarray, "n features"]) -> Float[np.ndarray, " n"]:
        return self.outlier_.score_samples((features - self.centre_) / self.scale_)

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """How typical each is of the clean ones; higher is more typical."""
        check_is_fitted(self)
        return self._typicality(self.features(X))

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"]:
        """`score_samples` less its `contamination` quantile on the clean ones: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """+1 for what is typical, -1 for what is not."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def features(self, X: Any) -> Float[np.ndarray, "n features"]:
        raise NotImplementedError

    def _default(self) -> Any:
        """The outlier detector where none is given."""
        return OneClassSVM(nu=self.contamination)


class FluencyDetector(_TextOutliers):
    """Texts that do not read like the clean ones.

    Parameters
    ----------
    score : the scorer, for the feature |F(x) - F(x shuffled)|; None leaves it out.
    outlier : a scikit-learn outlier detector on the features; None: a one-class support vector machine.
    contamination : share of clean texts that `predict` calls outliers.
    seed : names the split and the shuffles.
    """

    def __init__(
        self, score: ScoreFunction | None = None, outlier: Any = None, contamination: float | int = 0.05, seed: int = 0
    ) -> None:
        self.score, self.outlier, self.contamination, self.seed = score, outlier, contamination, seed

    def fit(self, X: Sequence[str], y: Any = None) -> FluencyDetector:
        """Learn the language from one half of the clean texts and what is usual from the other.

        Raises InputError for fewer than 20 texts or an empty one.
        """
        _require_texts(X, 20)
        order = numpy_generator(self.seed, "fluency split").permutation(len(X))
        half = len(X) // 2
        self.language_ = TrigramModel().fit([words(X[place]) for place in order[:half].tolist()])
        self._fit_outlier(self.features([X[place] for place in order[half:].tolist()]))
        return self

    def features(self, X: Sequence[str]) -> Float[np.ndarray, "n features"]:
        """Surprisal (its mean, what the two words before a word take off it, the worst sentence, its spread, the first
        five words), cohesion (mean and largest), repeated trigrams, and how much the score depends on order.
        """
        _require_texts(X, 1)
        rows = [self._reading(text) for text in X]
        if self.score is None:
            return np.array(rows)
        stream = numpy_generator(self.seed, "fluency shuffles")
        shuffled = [edit_text(text, shuffle_words, stream) for text in X]
        sensitivity = np.abs(scored(self.score, list(X)) - scored(self.score, shuffled))
        return np.column_stack([rows, np.log1p(sensitivity)])

    def _reading(self, text: str) -> list[float]:
        parts = [part for sentence in sentences(text) if (part := words(sentence))]
        everything = [word for part in parts for word in part]
        surprise = self.language_.surprisal(everything)
        ends = np.cumsum([len(part) for part in parts])
        means = np.array([surprise[end - len(part) : end].mean() for end, part in zip(ends, parts)])
        bags = [set(part) for part in parts]
        cohesion = [len(a & b) / len(a | b) for a, b in pairwise(bags)] or [0.0]
        grams = [tuple(everything[place : place + 3]) for place in range(len(everything) - 2)]
        repeated = 1 - len(set(grams)) / len(grams) if grams else 0.0
        return [
            float(surprise.mean()),
            float((self.language_.rarity(everything) - surprise).mean()),
            float(means.max()),
            float(surprise.std()),
            float(surprise[:5].mean()),
            float(np.mean(cohesion)),
            float(np.max(cohesion)),
            repeated,
        ]


class AttributionDetector(_TextOutliers):
    """Scores whose attributions are not spread like those of clean texts.

    X is a list of attributions, one array (words,) a text; `fit` and `features` take `tokens`, the words they belong
    to, when `prompt` words are given.

    Parameters
    ----------
    prompt : words of the task (lower case) whose share of the attribution is a feature; empty leaves it out.
    outlier : a scikit-learn outlier detector on the features; None: an isolation forest.
    contamination : share of clean texts that `predict` calls outliers.
    """

    def __init__(self, prompt: Collection[str] = (), outlier: Any = None, contamination: float | int = 0.05) -> None:
        self.prompt, self.outlier, self.contamination = prompt, outlier, contamination

    def fit(
        self, X: Sequence[Float[np.ndarray, "_"]], y: Any = None, *, tokens: Sequence[Sequence[str]] | None = None
    ) -> AttributionDetector:
        """Learn what is usual from attributions of clean texts.

        Raises InputError for fewer than 20 texts, or prompt words without tokens.
        """
        if len(X) < 20:
            raise InputError(f"at least 20 clean texts are needed to say what is usual, got {len(X)}")
        self._fit_outlier(self.features(X, tokens=tokens))
        return self

    def _default(self) -> Any:
        return IsolationForest(n_estimators=200, random_state=0)

    def features(
        self, X: Sequence[Float[np.ndarray, "_"]], *, tokens: Sequence[Sequence[str]] | None = None
    ) -> Float[np.ndarray, "n features"]:
        """Gini, share of the largest and of the top five, entropy, sign balance, size of the largest, prompt share."""
        if self.prompt and tokens is None:
            raise InputError("prompt words were given, so the words of every text are needed: pass tokens=")
        rows = []
        for number, values in enumerate(X):
            if not len(values):
                raise InputError(f"text {number} is empty; leave it out, there is no attribution")
            said = [] if tokens is None else tokens[number]
            rows.append(_concentration(values) + ([_prompt_share(values, said, self.prompt)] if self.prompt else []))
        return np.array(rows)


def _concentration(values: np.ndarray) -> list[float]:
    size = np.sort(np.abs(values))
    total, n = max(float(size.sum()), 1e-300), len(size)
    share = size / total
    gini = float((2 * np.arange(1, n + 1) - n - 1) @ share) / n
    return [
        gini,
        float(share[-1] * n),
        float(share[-5:].sum() * n / min(n, 5)),
        float(-(share[share > 0] @ np.log(share[share > 0]))) / max(np.log(n), 1e-9) if n > 1 else 0.0,
        float(values.sum()) / total,
        float(np.log(max(size[-1], 1e-300))),
    ]


def _prompt_share(values: np.ndarray, said: Sequence[str], prompt: Collection[str]) -> float:
    if len(said) != len(values):
        raise InputError(f"a text has {len(said)} words but {len(values)} attributions")
    asked = np.array([word in prompt for word in said])
    return float(np.abs(values)[asked].sum() / max(float(np.abs(values).sum()), 1e-300))


def _require_texts(texts: Sequence[str], fewest: int) -> None:
    if len(texts) < fewest:
        raise InputError(f"at least {fewest} texts are needed, got {len(texts)}")
    if empty := [number for number, text in enumerate(texts) if not words(text)]:
        raise InputError(f"text {empty[0]} is empty; leave it out")
