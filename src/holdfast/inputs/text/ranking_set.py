"""Queries, the documents ranked for each, and which of them are relevant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Shaped

from holdfast.core.errors import InputError
from holdfast.inputs.text.edits import Edit, edit_text
from holdfast.inputs.text.ranking_metrics import Metric, ndcg

#: Anything that scores documents for a query: (query, documents) -> scores (documents,); higher is better.
Ranker = Callable[[str, Sequence[str]], Float[np.ndarray, " documents"]]


@dataclass(frozen=True, eq=False)
class RankingSet:
    """Judged queries over one corpus.

    `candidates[i]` are the numbers in `corpus` of the documents ranked for query i, `relevance[i]` their grades, above
    zero for relevant ones.  Queries without a relevant candidate cannot be judged: they are left out and counted in
    `skipped`.

    Raises InputError for an empty corpus, lengths that do not fit, numbers outside the corpus, and when no query is
    left.
    """

    queries: tuple[str, ...]
    corpus: tuple[str, ...]
    candidates: tuple[Int[np.ndarray, "_"], ...]
    relevance: tuple[Shaped[np.ndarray, "_"], ...]
    skipped: int = 0

    def __post_init__(self) -> None:
        if not self.corpus:
            raise InputError("the corpus is empty; give at least one document")
        if not len(self.queries) == len(self.candidates) == len(self.relevance):
            raise InputError(
                f"{len(self.queries)} queries, but candidates for {len(self.candidates)} and grades for "
                f"{len(self.relevance)}"
            )
        for row, (numbers, grades) in enumerate(zip(self.candidates, self.relevance)):
            if numbers.shape != grades.shape or ((numbers < 0) | (numbers >= len(self.corpus))).any():
                raise InputError(
                    f"query {row}: {len(numbers)} candidates with {len(grades)} grades; give each a grade, and numbers "
                    f"below {len(self.corpus)}"
                )
        judged = [row for row, grades in enumerate(self.relevance) if (grades > 0).any()]
        if not judged:
            raise InputError(f"none of {len(self.queries)} queries has a relevant document among its candidates")
        object.__setattr__(self, "skipped", self.skipped + len(self.queries) - len(judged))
        for name in ("queries", "candidates", "relevance"):
            object.__setattr__(self, name, tuple(getattr(self, name)[row] for row in judged))

    @classmethod
    def known_items(
        cls,
        queries: Sequence[str],
        documents: Sequence[str],
        generator: np.random.Generator,
        *,
        others: int | None = None,
        rows: Int[np.ndarray, " some"] | None = None,
    ) -> RankingSet:
        """Query i looks for document i, among all documents or among `others` random ones; in random order.

        `rows` keeps some of the queries only.
        """
        rows = np.arange(len(queries)) if rows is None else rows
        candidates = []
        for row in rows:
            rest = np.delete(np.arange(len(documents)), row)
            some = rest if others is None else generator.choice(rest, min(others, len(rest)), replace=False)
            candidates.append(generator.permutation(np.append(some, row)))
        relevance = tuple((numbers == row).astype(np.int64) for numbers, row in zip(candidates, rows))
        return cls(tuple(queries[int(row)] for row in rows), tuple(documents), tuple(candidates), relevance)

    def __len__(self) -> int:
        return len(self.queries)

    def documents(self, row: int | np.integer) -> list[str]:
        """The texts ranked for a query."""
        return [self.corpus[number] for number in self.candidates[row]]

    def edited(self, edit: Edit, generator: np.random.Generator) -> RankingSet:
        """The same with edited queries."""
        return replace(self, queries=tuple(edit_text(query, edit, generator) for query in self.queries))

    def values(self, ranker: Ranker, metric: Metric = ndcg, k: int = 10) -> Float[np.ndarray, " queries"]:
        """The metric of every query's ranking."""
        return np.array(
            [
                metric(ranker(query, self.documents(row)), self.relevance[row], k)
                for row, query in enumerate(self.queries)
            ]
        )
