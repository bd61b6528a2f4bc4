"""Five robustness tasks for rankers (Wu, Zhang, Guo, Fan and Cheng, 2022).

With M_q the effectiveness (nDCG@10, ...) of the ranking for query q:

    variance        VAR = mean_q (M_q - mean M)², and the mean of the worst tenth of queries
    queries moved   DR = (M_moved - M_iid) / M_iid for other kinds of queries
    corpus moved    DR for queries and documents from elsewhere
    query attack    DR for edited queries, typos for instance
    documents       share of documents promoted into the first k, their gain in ranks, and DR of the lists they enter

A ranker is robust where VAR or |DR| is small.  Intervals and comparisons resample queries; two rankers are compared on
the same queries.  Robustness is not quality: M itself is shown beside every number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from holdfast.core.errors import InputError
from holdfast.core.estimate import Estimate
from holdfast.core.exhibit import Table
from holdfast.core.intervals import bootstrap, clopper_pearson, paired_difference
from holdfast.core.seeds import numpy_generator
from holdfast.inputs.text.edits import Edit
from holdfast.inputs.text.promotion import PromoteDocument, PromotionRun
from holdfast.inputs.text.ranking_metrics import Metric, ndcg
from holdfast.inputs.text.ranking_set import Ranker, RankingSet

Values = Float[np.ndarray, " queries"]
#: corpus -> the ranker that searches it; `BM25().fit` is one, and `lambda corpus: ranker` where there is no index.
Index = Callable[[Sequence[str]], Ranker]


def variance_over_queries(values: Values, generator: np.random.Generator, level: float = 0.95) -> Estimate:
    """mean_q (M_q - mean M)² with a bootstrap interval."""
    return bootstrap(lambda rows: rows.var(axis=-1), values, generator=generator, level=level, vectorized=True)


def worst_tenth(values: Values, generator: np.random.Generator, level: float = 0.95) -> Estimate:
    """Mean of the worst tenth of the queries (at least one), with a bootstrap interval."""
    worst = max(1, len(values) // 10)
    return bootstrap(
        lambda rows: np.sort(rows, axis=-1)[..., :worst].mean(axis=-1),
        values,
        generator=generator,
        level=level,
        vectorized=True,
    )


def drop_rate(
    iid: Values, moved: Float[np.ndarray, " _"], generator: np.random.Generator, *, paired: bool, level: float = 0.95
) -> Estimate:
    """(mean moved - mean iid) / mean iid with a bootstrap interval; `paired` when both are of the same queries.

    Raises InputError when mean iid lies below 0.01, where a rate of it means nothing.
    """
    return _bootstrapped(_rate, (iid,), (moved,), paired, generator, level)


def drop_rate_difference(
    iid: tuple[Values, Values],
    moved: tuple[Float[np.ndarray, " others"], Float[np.ndarray, " others"]],
    generator: np.random.Generator,
    *,
    paired: bool,
    level: float = 0.95,
) -> Estimate:
    """|DR| of the first ranker minus |DR| of the second, resampling the queries they share; above 0: less robust."""
    return _bootstrapped(_rate_gap, iid, moved, paired, generator, level)


def variance_difference(first: Values, second: Values, generator: np.random.Generator, level: float = 0.95) -> Estimate:
    """VAR of the first ranker minus VAR of the second on the same queries; above 0: less robust."""
    both = np.stack([first, second], axis=1)
    return bootstrap(
        lambda rows: rows[..., 0].var(axis=-1) - rows[..., 1].var(axis=-1),
        both,
        generator=generator,
        level=level,
        vectorized=True,
    )


@dataclass(frozen=True, eq=False)
class RobustnessProfile:
    """Effectiveness of every ranker on every query under every condition.

    `iid[ranker]` (queries,); `moved[task][condition][ranker]` with tasks "queries", "corpus" and "query attack";
    `promotions[ranker]` and the lists' effectiveness after them, `promoted[ranker]`.
    """

    iid: Mapping[str, Values]
    moved: Mapping[str, Mapping[str, Mapping[str, Values]]]
    promotions: Mapping[str, PromotionRun]
    promoted: Mapping[str, Values]
    level: float = 0.95

    def tables(self) -> tuple[Table, ...]:
        """One table a task that was asked for, every number with its interval."""
        stream = numpy_generator(0, "robustness profile")
        rows = [
            (
                name,
                _mean(values),
                variance_over_queries(values, stream, self.level),
                worst_tenth(values, stream, self.level),
            )
            for name, values in self.iid.items()
        ]
        tables = [Table("Variance over queries", ("ranker", "effectiveness", "variance", "worst tenth"), tuple(rows))]
        for task, conditions in self.moved.items():
            paired = task == "query attack"
            cells = [
                (
                    condition,
                    name,
                    _mean(values),
                    drop_rate(self.iid[name], values, stream, paired=paired, level=self.level),
                )
                for condition, moved in conditions.items()
                for name, values in moved.items()
            ]
            if cells:
                title = {"queries": "Other kinds of queries", "corpus": "Other corpora"}.get(task, "Edited queries")
                tables.append(Table(title, ("condition", "ranker", "effectiveness", "drop rate"), tuple(cells)))
        if self.promotions:
            tables.append(self._promotion_table(stream))
        return tuple(tables)

    def differences(self, first: str, second: str) -> dict[str, Estimate]:
        """How much less robust the first ranker is, task by task: VAR or |DR| of it minus that of the second.

        Raises InputError for a ranker that was not profiled.
        """
        for name in (first, second):
            if name not in self.iid:
                raise InputError(f"no ranker is called {name!r}; profiled were {', '.join(self.iid)}")
        stream = numpy_generator(0, "robustness differences")
        found = {"variance": variance_difference(self.iid[first], self.iid[second], stream, self.level)}
        for task, conditions in self.moved.items():
            for condition, values in conditions.items():
                found[f"{task}: {condition}"] = drop_rate_difference(
                    (self.iid[first], self.iid[second]),
                    (values[first], values[second]),
                    stream,
                    paired=task == "query attack",
                    level=self.level,
                )
        return found

    def _promotion_table(self, stream: np.random.Generator) -> Table:
        rows = []
        for name, run in self.promotions.items():
            gain = paired_difference(run.rank_after, run.rank_before, self.level)
            before = self.iid[name][run.rows]
            dropped = drop_rate(before, self.promoted[name], stream, paired=True, level=self.level)
            share = clopper_pearson(int(run.success.sum()), len(run.rows), self.level)
            rows.append((name, share, gain, dropped))
        columns = ("ranker", "promoted", "ranks gained", "drop rate of the list")
        return Table("Edited documents", columns, tuple(rows))


def robustness_profile(
    rankers: Mapping[str, Index],
    iid: RankingSet,
    *,
    ood_queries: Mapping[str, RankingSet] | None = None,
    ood_corpus: Mapping[str, RankingSet] | None = None,
    query_attack: Mapping[str, Edit] | None = None,
    document_attack: PromoteDocument | None = None,
    metric: Metric = ndcg,
    k: int = 10,
    seed: int = 0,
) -> RobustnessProfile:
    """Judge every ranker on every task that is given.

    `rankers` maps a name to what makes the ranker of a corpus: statistics such as document frequencies are those of the
    corpus that is searched, while whatever was trained stays as it is.  Edits and attacked documents are drawn from
    `seed`, alike for every ranker as far as its ranking allows.

    Raises InputError without rankers, and for k < 1.
    """
    if not rankers:
        raise InputError("there is no ranker to be profiled; give at least one")
    if k < 1:
        raise InputError(f"a ranking is judged by its first k >= 1 documents, got k={k}")
    edited = {
        name: iid.edited(edit, numpy_generator(seed, "query attack", name))
        for name, edit in (query_attack or {}).items()
    }
    tasks = {"queries": ood_queries or {}, "corpus": ood_corpus or {}, "query attack": edited}
    built = {name: index(iid.corpus) for name, index in rankers.items()}
    at_home = {name: iid.values(ranker, metric, k) for name, ranker in built.items()}
    promotions: dict[str, PromotionRun] = {}
    promoted: dict[str, Values] = {}
    if document_attack is not None:
        for name, ranker in built.items():
            run = document_attack(ranker, iid, numpy_generator(seed, "document attack"))
            promotions[name] = run
            promoted[name] = np.array([metric(s, iid.relevance[row], k) for row, s in zip(run.rows, run.scores)])
    moved = {
        task: {
            condition: {name: there.values(index(there.corpus), metric, k) for name, index in rankers.items()}
            for condition, there in conditions.items()
        }
        for task, conditions in tasks.items()
    }
    return RobustnessProfile(at_home, moved, promotions, promoted)


def _mean(values: Values) -> Estimate:
    return paired_difference(np.zeros_like(values), values)


def _rate(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (after / before - 1)[..., 0]


def _rate_gap(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    rates = np.abs(after / before - 1)
    return rates[..., 0] - rates[..., 1]


def _bootstrapped(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    iid: Sequence[np.ndarray],
    moved: Sequence[np.ndarray],
    paired: bool,
    generator: np.random.Generator,
    level: float,
) -> Estimate:
    """Bootstrap of a statistic of the mean effectiveness (..., rankers) before and after.

    Paired queries are resampled together, others on either side by themselves.
    """
    before, after = np.stack(list(iid), axis=1), np.stack(list(moved), axis=1)
    if (before.mean(axis=0) < 0.01).any():
        raise InputError(
            f"the effectiveness before is {before.mean(axis=0).min():.3g}; a drop rate of so little means nothing, "
            "so report the difference instead"
        )
    if paired:
        if len(before) != len(after):
            raise InputError(f"paired values must be of the same queries, got {len(before)} and {len(after)}")
        return bootstrap(
            lambda a, b: statistic(a.mean(axis=-2), b.mean(axis=-2)),
            before,
            after,
            generator=generator,
            level=level,
            vectorized=True,
        )
    side = np.repeat([0.0, 1.0], [len(before), len(after)])

    def of_sides(rows: np.ndarray, later: np.ndarray) -> np.ndarray:
        means = [(rows * weight[..., None]).sum(-2) / weight.sum(-1)[..., None] for weight in (1 - later, later)]
        return statistic(*means)

    return bootstrap(
        of_sides,
        np.concatenate([before, after]),
        side,
        generator=generator,
        level=level,
        stratify=side,
        vectorized=True,
    )
