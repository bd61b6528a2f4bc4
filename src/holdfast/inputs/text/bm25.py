"""BM25, the probabilistic ranking function (Robertson and Zaragoza, 2009), in the form with positive weights.

    score(q, d) = Σ_{t in q} idf(t) f (k1 + 1) / (f + k1 (1 - b + b |d| / mean length)),      f = count of t in d
    idf(t) = ln(1 + (N - df + ½) / (df + ½))

A word that the query repeats counts as often as it stands there.  The `1 +` keeps every weight positive; the original
ln((N - df + ½) / (df + ½)) is negative for words in more than half of the documents, which libraries that use it have
to repair by a floor.  Statistics come from the corpus given to `fit`; a word that is not in it has df = 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import sparse

from holdfast.core.errors import InputError
from holdfast.inputs.text.tokens import Tokenise, words


class BM25:
    """Score documents for a query by weighted word counts.

    Parameters
    ----------
    k1 : how soon repetitions of a word stop counting (0: at once).
    b : how much long documents are discounted, from 0 (not) to 1.
    tokenise : text -> words.

    Attributes
    ----------
    document_frequency_ : word -> number of documents of the corpus that hold it
    documents_ : number of documents, average_length_ : their mean number of words

    Raises InputError for k1 < 0 or b outside [0, 1].
    """

    def __init__(self, k1: float | int = 1.2, b: float | int = 0.75, tokenise: Tokenise = words) -> None:
        if not k1 >= 0 or not 0 <= b <= 1:
            raise InputError(f"BM25 needs k1 >= 0 and b in [0, 1], got k1={k1}, b={b}")
        self.k1, self.b, self.tokenise = k1, b, tokenise

    def fit(self, documents: Sequence[str]) -> BM25:
        """Count in how many documents each word occurs.  Raises InputError when there is no word at all."""
        tokens = [self.tokenise(document) for document in documents]
        total = sum(len(document) for document in tokens)
        if total == 0:
            raise InputError(f"the corpus of {len(tokens)} documents holds no word; give at least one non-empty text")
        self.document_frequency_ = Counter(word for document in tokens for word in set(document))
        self.documents_, self.average_length_ = len(tokens), total / len(tokens)
        return self

    def idf(self, vocabulary: Sequence[str]) -> Float[np.ndarray, " words"]:
        """Weight of every word: large where few documents hold it."""
        frequency = np.array([self._frequency().get(word, 0) for word in vocabulary], dtype=np.float64)
        return np.log1p((self.documents_ - frequency + 0.5) / (frequency + 0.5))

    def __call__(self, query: str, documents: Sequence[str]) -> Float[np.ndarray, " documents"]:
        """Scores of any documents, those of the corpus or others.  Raises InputError before `fit`."""
        asked = Counter(self.tokenise(query))
        vocabulary = {word: column for column, word in enumerate(asked)}
        return self.weights(documents, vocabulary) @ np.array(list(asked.values()), dtype=np.float64)

    def weights(self, documents: Sequence[str], vocabulary: dict[str, int]) -> sparse.csr_array:
        """What one occurrence in the query of each word of the vocabulary adds to each document's score."""
        tokens = [self.tokenise(document) for document in documents]
        counts, lengths = word_counts(tokens, vocabulary), np.array([len(document) for document in tokens], dtype=float)
        self._frequency()
        soft = self.k1 * (1 - self.b + self.b * lengths / self.average_length_)
        rows = np.repeat(np.arange(len(tokens)), np.diff(counts.indptr))
        saturated = counts.data * (self.k1 + 1) / (counts.data + soft[rows])
        data = saturated * self.idf(list(vocabulary))[counts.indices]
        return sparse.csr_array((data, counts.indices, counts.indptr), shape=counts.shape)

    def _frequency(self) -> Counter[str]:
        if not hasattr(self, "document_frequency_"):
            raise InputError("BM25 knows no corpus yet: call fit(documents) first")
        return self.document_frequency_


def word_counts(tokens: Sequence[Sequence[str]], vocabulary: dict[str, int]) -> sparse.csr_array:
    """How often each word of the vocabulary (numbered from 0 in its own order) stands in each text."""
    columns: list[int] = []
    counts: list[int] = []
    starts = [0]
    for text in tokens:
        known = Counter(column for word in text if (column := vocabulary.get(word)) is not None)
        columns.extend(known)
        counts.extend(known.values())
        starts.append(len(columns))
    shape = (len(tokens), len(vocabulary))
    return sparse.csr_array(
        (np.array(counts, dtype=np.float64), np.array(columns, dtype=np.int64), np.array(starts)), shape=shape
    )


@dataclass(frozen=True)
class Hit:
    """A document that was found: its place in the corpus, its text and its score."""

    index: int
    text: str
    score: float


class BM25Retriever:
    """The best documents of a fixed corpus for a query.

    The weights of all words in all documents are computed once, so a query costs one sparse product.  Equal scores
    keep the corpus's order.  Raises InputError for an empty corpus.
    """

    def __init__(self, documents: Sequence[str], ranker: BM25 | None = None) -> None:
        self.documents = tuple(documents)
        self.ranker = (BM25() if ranker is None else ranker).fit(self.documents)
        self._vocabulary = {word: column for column, word in enumerate(self.ranker.document_frequency_)}
        self._weights = self.ranker.weights(self.documents, self._vocabulary)

    def scores(self, queries: Sequence[str]) -> Float[np.ndarray, "queries documents"]:
        """Scores of all documents for every query."""
        asked = word_counts([self.ranker.tokenise(query) for query in queries], self._vocabulary)
        return (asked @ self._weights.T).toarray()

    def retrieve(self, query: str, k: int = 5) -> tuple[Hit, ...]:
        """The k best documents, best first (all of them where there are fewer).  Raises InputError for k < 1."""
        if k < 1:
            raise InputError(f"at least one document must be asked for, got k={k}")
        scores = self.scores([query])[0]
        best = np.argsort(-scores, kind="stable")[:k]
        return tuple(Hit(int(place), self.documents[place], float(scores[place])) for place in best)
