"""Query likelihood with Dirichlet smoothing (Zhai and Lafferty, 2004).

    score(q, d) = Σ_{t in q} ln( (f(t, d) + μ p(t)) / (|d| + μ) )
    p(t) = (count of t in the corpus + 1) / (T + V + 1)

The background p is smoothed by one, so a word the corpus does not hold lowers all documents alike instead of ruling
them out; T counts the words of the corpus and V its different ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from holdfast.core.errors import InputError
from holdfast.inputs.text.bm25 import word_counts
from holdfast.inputs.text.tokens import Tokenise, words


class DirichletLM:
    """Log-probability of a query under each document's smoothed unigram model.

    `mu` > 0 is the weight of the background in words.  After `fit`: `counts_` of the corpus's words.
    """

    def __init__(self, mu: float | int = 1000.0, tokenise: Tokenise = words) -> None:
        if not mu > 0:
            raise InputError(f"the weight of the background must be positive, got mu={mu}")
        self.mu, self.tokenise = mu, tokenise

    def fit(self, documents: Sequence[str]) -> DirichletLM:
        """Count the corpus.  Raises InputError when there is no word at all."""
        self.counts_ = Counter(word for document in documents for word in self.tokenise(document))
        if not self.counts_:
            raise InputError(
                f"the corpus of {len(documents)} documents holds no word; give at least one non-empty text"
            )
        return self

    def __call__(self, query: str, documents: Sequence[str]) -> Float[np.ndarray, " documents"]:
        """Scores of any documents.  Raises InputError before `fit`."""
        if not hasattr(self, "counts_"):
            raise InputError("DirichletLM knows no corpus yet: call fit(documents) first")
        asked = Counter(self.tokenise(query))
        tokens = [self.tokenise(document) for document in documents]
        counts = word_counts(tokens, {word: column for column, word in enumerate(asked)}).toarray()
        lengths = np.array([len(document) for document in tokens], dtype=np.float64)
        seen = np.array([self.counts_.get(word, 0) for word in asked], dtype=np.float64)
        background = (seen + 1) / (self.counts_.total() + len(self.counts_) + 1)
        likelihood = np.log((counts + self.mu * background) / (lengths[:, None] + self.mu))
        return likelihood @ np.array(list(asked.values()), dtype=np.float64)
