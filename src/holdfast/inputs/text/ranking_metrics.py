"""How good a ranking is: nDCG, reciprocal rank and recall at k, with equal scores broken at random, in expectation.

    DCG@k  = Σ_{r=1..k} (2^rel_r - 1) / log2(r + 1);  nDCG = DCG / DCG of the best order (Järvelin and Kekäläinen, 2002)
    RR@k   = 1 / rank of the first relevant document, 0 when it is below k
    recall = share of the relevant documents among the first k

Each value is the mean over all orders of documents with the same score, so it does not depend on how the documents are
listed: a ranker that knows nothing gets what guessing gets.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import gammaln

from holdfast.core.errors import InputError

#: (scores, relevance grades, k) of the documents of one query -> a number in [0, 1].
Metric = Callable[[Float[np.ndarray, " documents"], Shaped[np.ndarray, " documents"], int], float]


def ndcg(scores: Float[np.ndarray, " documents"], relevance: Shaped[np.ndarray, " documents"], k: int = 10) -> float:
    """Normalised discounted cumulative gain at k.  Raises InputError without a relevant document, and for k < 1."""
    order, groups = _ranked(scores, relevance, k)
    gain = np.exp2(relevance[order].astype(np.float64)) - 1
    expected = (np.bincount(groups, gain) / np.bincount(groups))[groups][:k]
    discount = 1 / np.log2(np.arange(2, len(order) + 2))
    best = float(np.sort(gain)[::-1][:k] @ discount[:k])
    return float(expected @ discount[:k]) / best


def reciprocal_rank(
    scores: Float[np.ndarray, " documents"], relevance: Shaped[np.ndarray, " documents"], k: int = 10
) -> float:
    """One over the rank of the first relevant document, 0 below k.  Raises InputError as `ndcg` does."""
    order, groups = _ranked(scores, relevance, k)
    relevant = relevance[order] > 0
    tied = groups == groups[int(relevant.argmax())]
    start, size, hits = int(tied.argmax()), int(tied.sum()), int(relevant[tied].sum())
    # Among `size` tied documents with `hits` relevant ones, the first relevant is the (j+1)-th with this probability.
    after = size - 1 - np.arange(size - hits + 1)
    chance = np.exp(_log_choose(after, hits - 1) - _log_choose(np.array([size]), hits))
    ranks = start + 1 + np.arange(size - hits + 1)
    return float(np.where(ranks <= k, chance / ranks, 0.0).sum())


def recall(scores: Float[np.ndarray, " documents"], relevance: Shaped[np.ndarray, " documents"], k: int = 10) -> float:
    """Share of the relevant documents among the first k.  Raises InputError as `ndcg` does."""
    order, groups = _ranked(scores, relevance, k)
    relevant = (relevance[order] > 0).astype(np.float64)
    expected = (np.bincount(groups, relevant) / np.bincount(groups))[groups]
    return float(expected[:k].sum() / relevant.sum())


def rank_of(scores: Float[np.ndarray, " documents"], document: int) -> float:
    """Mean rank of one document over the orders of its ties; 1 is first."""
    return float((scores > scores[document]).sum() + ((scores == scores[document]).sum() + 1) / 2)


def _ranked(
    scores: np.ndarray, relevance: np.ndarray, k: int
) -> tuple[Int[np.ndarray, " documents"], Int[np.ndarray, " documents"]]:
    """The documents by falling score, and for each place the number of its group of equal scores."""
    if k < 1:
        raise InputError(f"a ranking is judged by its first k >= 1 documents, got k={k}")
    if scores.shape != relevance.shape or not (relevance > 0).any():
        raise InputError(
            f"a query needs a relevant document and one grade a score, got {len(scores)} scores and "
            f"{len(relevance)} grades, {int((relevance > 0).sum())} above zero; leave such queries out"
        )
    if np.isnan(scores).any():
        raise InputError(f"{int(np.isnan(scores).sum())} of {len(scores)} documents have the score NaN")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    return order, np.concatenate([[0], np.cumsum(ranked[1:] != ranked[:-1])])


def _log_choose(n: np.ndarray, k: int) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
