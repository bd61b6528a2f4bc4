"""Raising a document in a ranking by few edits (after Wu et al., 2022, and Raifer et al., 2017).

For a query q and a document d below the first `below`, at most the threat's allowance of its words is replaced so that

    s(q, d') > k-th largest score of the other documents that are ranked for q,

which is when d', ranked with all of them, stands among the first k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.inputs.text.edits import WordSubstitution
from holdfast.inputs.text.greedy import GreedyTextAttack, together
from holdfast.inputs.text.ranking_metrics import rank_of
from holdfast.inputs.text.ranking_set import Ranker, RankingSet
from holdfast.inputs.text.tokens import Vocabulary

_Editor = Callable[[Ranker, Sequence[str], Sequence[str], np.ndarray, Sequence[float], np.random.Generator], list[str]]


@dataclass(frozen=True, eq=False)
class PromotionRun:
    """What an attack on documents found, one entry a query that had a document to be promoted.

    `rows` number the queries, `targets` the attacked documents among those ranked for the query; ranks count from 1;
    `scores` are those of the whole list with the edited document in it.
    """

    rows: Int[np.ndarray, " attacked"]
    targets: Int[np.ndarray, " attacked"]
    texts: tuple[str, ...]
    rank_before: Float[np.ndarray, " attacked"]
    rank_after: Float[np.ndarray, " attacked"]
    scores: tuple[Float[np.ndarray, "_"], ...]
    k: int

    @property
    def success(self) -> Bool[np.ndarray, " attacked"]:
        """Whether the document now stands among the first k."""
        return self.rank_after <= self.k


@dataclass(frozen=True)
class PromoteDocument:
    """Lift one irrelevant document a query from below rank `below` into the first `k`.

    `threat` says what may become of a document, for every query alike or as a function of the query; substitutions and
    insertions (`edits.in_front`) are both sets of replacements.  `beam` and `queries` are those of `GreedyTextAttack`.

    Raises InputError unless 1 <= k <= below.
    """

    threat: WordSubstitution | Callable[[str], WordSubstitution]
    k: int = 10
    below: int = 20
    queries: int = 2000
    beam: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.below:
            raise InputError(
                f"a document is lifted from below rank {self.below} to rank {self.k}: give 1 <= k <= below"
            )

    def __call__(self, ranker: Ranker, ranking: RankingSet, generator: np.random.Generator) -> PromotionRun:
        """Attack one document a query, drawn at random; queries whose documents all rank above `below` are left out."""
        return self._run(ranker, ranking, generator, self._searched)

    def at_random(self, ranker: Ranker, ranking: RankingSet, generator: np.random.Generator) -> PromotionRun:
        """The same documents with the whole allowance of random replacements: what edits do without a search."""
        return self._run(ranker, ranking, generator, self._drawn)

    def _run(self, ranker: Ranker, ranking: RankingSet, generator: np.random.Generator, edit: _Editor) -> PromotionRun:
        rows, targets, ranks, listed, thresholds = [], [], [], [], []
        for row in range(len(ranking)):
            scores = ranker(ranking.queries[row], ranking.documents(row))
            low = [
                place
                for place in np.flatnonzero(ranking.relevance[row] <= 0).tolist()
                if rank_of(scores, place) > self.below
            ]
            if low:
                target = int(generator.choice(low))
                rows.append(row)
                targets.append(target)
                ranks.append(rank_of(scores, target))
                listed.append(scores)
                thresholds.append(float(np.sort(np.delete(scores, target))[-self.k]))
        originals = [ranking.documents(row)[target] for row, target in zip(rows, targets)]
        asked = [ranking.queries[row] for row in rows]
        margins = [float(scores[t]) - limit for scores, t, limit in zip(listed, targets, thresholds)]
        texts = edit(ranker, asked, originals, np.array(thresholds), margins, generator)
        for scores, target, query, text in zip(listed, targets, asked, texts):
            scores[target] = ranker(query, [text])[0]
        after = [rank_of(scores, target) for scores, target in zip(listed, targets)]
        return PromotionRun(
            np.array(rows, dtype=np.int64),
            np.array(targets, dtype=np.int64),
            tuple(texts),
            np.array(ranks),
            np.array(after),
            tuple(listed),
            self.k,
        )

    def _searched(
        self,
        ranker: Ranker,
        asked: Sequence[str],
        originals: Sequence[str],
        thresholds: np.ndarray,
        margins: Sequence[float],
        generator: np.random.Generator,
    ) -> list[str]:
        def objective(texts: list[str], owners: np.ndarray) -> np.ndarray:
            values = np.empty(len(texts))
            for owner in np.unique(owners).tolist():
                mine = np.flatnonzero(owners == owner)
                values[mine] = ranker(asked[owner], [texts[place] for place in mine]) - thresholds[owner]
            return values

        searches = [
            GreedyTextAttack(self._threat(query), queries=self.queries, beam=self.beam).search(text, margin, generator)
            for query, text, margin in zip(asked, originals, margins)
        ]
        return [found.text for found in together(searches, objective)]

    def _drawn(
        self,
        ranker: Ranker,
        asked: Sequence[str],
        originals: Sequence[str],
        thresholds: np.ndarray,
        margins: Sequence[float],
        generator: np.random.Generator,
    ) -> list[str]:
        return [self._threat(query).random_text(text, generator) for query, text in zip(asked, originals)]

    def _threat(self, query: str) -> WordSubstitution:
        return self.threat if isinstance(self.threat, WordSubstitution) else self.threat(query)


def nearest_words(
    weight: Float[Tensor, "rows width"], vocabulary: Vocabulary, asked: Sequence[str], most: int = 10
) -> list[str]:
    """For every known word asked for, the `most` others closest to it in cosine; each once, none of those asked for."""
    numbers = [vocabulary.index[word] for word in dict.fromkeys(asked) if word in vocabulary.index]
    directions = F.normalize(weight.detach(), dim=1)
    cosine = directions[numbers] @ directions.T
    cosine[:, [Vocabulary.PAD, Vocabulary.UNKNOWN, *numbers]] = -torch.inf
    closest = cosine.topk(min(most, cosine.shape[1]), dim=1).indices.flatten().tolist()
    return [vocabulary.word(number) for number in dict.fromkeys(closest)]
