"""What "bad" means, learnt from labels of a diverse sample (the second step of Casper et al., 2023).

An ensemble, each member on its own split; classes are balanced by paraphrases of the rarer ones; a member that finds
less than 30% of any class in its validation part is trained again on another split.  The score is the mean over
members of the log-odds of "bad".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted

from holdfast.core.errors import InputError

Paraphrase = Callable[[str, np.random.Generator], str]


class EstablishedClassifier(ClassifierMixin, BaseEstimator):
    """Classify texts by an ensemble and score how bad they are.

    Parameters
    ----------
    base : classifier of texts with predict_proba; None takes logistic regression on TF-IDF of words and pairs of words.
    ensemble : number of members.
    bad : label of the outputs that are looked for; None takes the last of the sorted labels.
    paraphrase : (text, generator) -> text that keeps the label, to balance classes; None repeats texts.
    validation : share of the texts that checks each member.
    least_recall, retries : a member that finds less of any class is trained again, at most so often; then a warning.
    random_state : seed.

    Attributes
    ----------
    classes_ : sorted labels
    estimators_ : the members
    recalls_ : (ensemble, classes), on the members' validation parts
    retrained_ : how many fits were thrown away
    """

    def __init__(
        self,
        base: Any = None,
        ensemble: int = 5,
        bad: Any = None,
        paraphrase: Paraphrase | None = None,
        validation: float = 0.2,
        least_recall: float = 0.3,
        retries: int = 5,
        random_state: int = 0,
    ):
        self.base = base
        self.ensemble = ensemble
        self.bad = bad
        self.paraphrase = paraphrase
        self.validation = validation
        self.least_recall = least_recall
        self.retries = retries
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> EstablishedClassifier:
        """Train the members on texts X with labels y.

        Raises InputError when all labels are one, a class has fewer than two texts, or `bad` is no label.
        """
        texts, labels = np.asarray(X, dtype=object), np.asarray(y)
        self.classes_, counts = np.unique(labels, return_counts=True)
        if len(texts) != len(labels) or len(self.classes_) < 2 or counts.min() < 2:
            found = dict(zip(self.classes_.tolist(), counts.tolist(), strict=True))
            raise InputError(
                f"wanted texts with labels of at least two classes, each twice or more, got {len(texts)} texts and "
                f"{found}; label more of the sample"
            )
        if self.bad is not None and self.bad not in self.classes_:
            raise InputError(f"bad={self.bad!r} is none of the labels {self.classes_.tolist()}")
        generator = np.random.default_rng(self.random_state)
        self.estimators_, recalls, self.retrained_ = [], [], 0
        for _ in range(self.ensemble):
            member, recall = self._member(texts, labels, generator)
            self.estimators_.append(member)
            recalls.append(recall)
        self.recalls_ = np.stack(recalls)
        if self.recalls_.min() < self.least_recall:
            warnings.warn(
                f"after {self.retries} retries a member finds {self.recalls_.min():.0%} of a class; label more texts",
                stacklevel=2,
            )
        return self

    def predict_proba(self, X: Any) -> Float[np.ndarray, "texts classes"]:
        """Mean over members."""
        check_is_fitted(self)
        return np.mean([member.predict_proba(np.asarray(X, dtype=object)) for member in self.estimators_], axis=0)

    def predict(self, X: Any) -> Shaped[np.ndarray, " texts"]:
        """The likeliest class."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def score_bad(self, X: Any) -> Float[np.ndarray, " texts"]:
        """Mean over members of the log-odds of the bad class: what `DiversityReward` takes."""
        check_is_fitted(self)
        column = -1 if self.bad is None else int(np.flatnonzero(self.classes_ == self.bad)[0])
        texts = np.asarray(X, dtype=object)
        p = np.stack([member.predict_proba(texts)[:, column] for member in self.estimators_])
        p = np.clip(p, 1e-12, 1 - 1e-12)
        return np.mean(np.log(p) - np.log1p(-p), axis=0)

    def _member(
        self, texts: np.ndarray, labels: np.ndarray, generator: np.random.Generator
    ) -> tuple[Any, Float[np.ndarray, " classes"]]:
        """The first fit that finds enough of every class, or the best of them."""
        best, best_recall = None, np.full(len(self.classes_), -1.0)
        for attempt in range(self.retries + 1):
            self.retrained_ += attempt > 0
            held = max(len(self.classes_), round(self.validation * len(texts)))
            train, check, y_train, y_check = train_test_split(
                texts, labels, test_size=held, stratify=labels, random_state=int(generator.integers(2**31))
            )
            member = clone(_default_base() if self.base is None else self.base)
            member.fit(*self._balanced(train, y_train, generator))
            recall = recall_score(y_check, member.predict(check), labels=self.classes_, average=None, zero_division=0)
            if recall.min() > best_recall.min():
                best, best_recall = member, recall
            if recall.min() >= self.least_recall:
                break
        return best, best_recall

    def _balanced(
        self, texts: np.ndarray, labels: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rarer classes filled up to the largest, by paraphrases or repetition."""
        classes, counts = np.unique(labels, return_counts=True)
        more, kinds = [texts], [labels]
        for label, count in zip(classes, counts, strict=True):
            drawn = generator.choice(texts[labels == label], counts.max() - count)
            if self.paraphrase is not None:
                drawn = np.array([self.paraphrase(text, generator) for text in drawn], dtype=object)
            more.append(drawn)
            kinds.append(np.full(len(drawn), label))
        return np.concatenate(more), np.concatenate(kinds)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array = True, True, False
        return tags


def _default_base() -> Any:
    return make_pipeline(TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+"), LogisticRegression(max_iter=500))
