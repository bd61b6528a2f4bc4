"""Learning to rank by a linear score of ten features, fitted to pairs (Herbrich, Graepel and Obermayer, 2000).

For a query with documents d+ (relevant) and d-, logistic regression without intercept on x(q, d+) - x(q, d-) gives w,
and documents are ranked by w · x(q, d).  The features: BM25, Dirichlet query likelihood, share of the query's words
that occur, the same weighted by idf, by counts, their longest run in order, the shortest window that holds two of
them, log lengths of document and overlap, and how early the first of them stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.linear_model import LogisticRegression

from holdfast.core.errors import InputError
from holdfast.inputs.text.bm25 import BM25
from holdfast.inputs.text.dirichlet import DirichletLM
from holdfast.inputs.text.tokens import Tokenise, words

FEATURES = (
    "bm25", "query likelihood", "coverage", "coverage by idf", "matches", "longest run", "proximity",
    "log length", "log matches", "earliness",
)  # fmt: skip


class LinearRanker:
    """Pairwise logistic regression on `FEATURES`.

    `fit_corpus` sets the statistics of the corpus that is searched, `fit` the weights `coef_` from judged queries; the
    two are apart so that a ranker trained on one corpus can search another.  `strength` is the inverse of the L2
    penalty.
    """

    def __init__(self, strength: float | int = 1.0, tokenise: Tokenise = words) -> None:
        self.strength, self.tokenise = strength, tokenise

    def fit_corpus(self, documents: Sequence[str]) -> LinearRanker:
        """Statistics of a corpus.  Raises InputError when it holds no word."""
        self.bm25_ = BM25(tokenise=self.tokenise).fit(documents)
        self.likelihood_ = DirichletLM(tokenise=self.tokenise).fit(documents)
        return self

    def fit(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]], relevant: Sequence[Shaped[np.ndarray, "_"]]
    ) -> LinearRanker:
        """Weights from queries, the documents of each, and their grades (above zero: relevant).

        Raises InputError when no query has both a relevant and another document.
        """
        differences = []
        for query, candidates, grades in zip(queries, documents, relevant, strict=True):
            features, hit = self.features(query, candidates), np.asarray(grades) > 0
            differences.append((features[hit][:, None] - features[~hit][None]).reshape(-1, len(FEATURES)))
        pairs = np.concatenate(differences)
        if not len(pairs):
            raise InputError(f"none of {len(queries)} queries has both a relevant and another document to learn from")
        self.scale_ = np.maximum(pairs.std(axis=0), 1e-9)
        both = np.concatenate([pairs, -pairs]) / self.scale_
        side = np.repeat([1, 0], len(pairs))
        self.coef_ = LogisticRegression(C=self.strength, fit_intercept=False).fit(both, side).coef_[0]
        return self

    def __call__(self, query: str, documents: Sequence[str]) -> Float[np.ndarray, " documents"]:
        """Scores of the documents.  Raises InputError before `fit_corpus` and `fit`."""
        if not hasattr(self, "coef_"):
            raise InputError("LinearRanker has no weights yet: call fit_corpus(documents) and fit(queries, ...) first")
        return self.features(query, documents) / self.scale_ @ self.coef_

    def features(self, query: str, documents: Sequence[str]) -> Float[np.ndarray, "documents features"]:
        """The values of `FEATURES` for every document."""
        if not hasattr(self, "bm25_"):
            raise InputError("LinearRanker knows no corpus yet: call fit_corpus(documents) first")
        asked = self.tokenise(query)
        idf = dict(zip(dict.fromkeys(asked), self.bm25_.idf(list(dict.fromkeys(asked)))))
        matching = np.array([_matching(asked, self.tokenise(document), idf) for document in documents])
        known = np.stack([self.bm25_(query, documents), self.likelihood_(query, documents)], axis=1)
        return np.concatenate([known, matching.reshape(len(documents), len(FEATURES) - 2)], axis=1)


def _matching(asked: Sequence[str], said: Sequence[str], idf: dict[str, float]) -> list[float]:
    """The features of one document that follow from where the query's words stand."""
    places = [place for place, word in enumerate(said) if word in idf]
    found = {said[place] for place in places}
    follows = set(pairwise(asked))
    run = longest = 0
    for pair in pairwise(said):
        run = run + 1 if pair in follows else 0
        longest = max(longest, run)
    gaps = [there - here for here, there in pairwise(places) if said[here] != said[there]]
    return [
        len(found) / max(len(idf), 1),
        sum(idf[word] for word in found) / max(sum(idf.values()), 1e-9),
        float(len(places)),
        float(longest),
        1 / min(gaps) if gaps else 0.0,
        float(np.log1p(len(said))),
        float(np.log1p(len(places))),
        1 / (1 + places[0]) if places else 0.0,
    ]
