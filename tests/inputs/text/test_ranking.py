"""Ranking sets, the five tasks, and documents that are promoted."""

import numpy as np
import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.inputs.text import (
    BM25,
    DirichletLM,
    PromoteDocument,
    RankingSet,
    Vocabulary,
    WordSubstitution,
    pieces,
    robustness_profile,
    words,
)
from holdfast.inputs.text.edits import in_front, replace_words
from holdfast.inputs.text.promotion import nearest_words
from holdfast.inputs.text.ranking import drop_rate, drop_rate_difference, variance_difference, variance_over_queries

WORDS = [f"w{n}" for n in range(80)]


def generator(seed=0):
    return np.random.default_rng(seed)


def items(n=40, length=15, seed=0, asked=3):
    """Documents of random words and queries of words that stand in them."""
    stream = generator(seed)
    documents = [" ".join(stream.choice(WORDS, length)) for _ in range(n)]
    queries = [" ".join(stream.permutation(document.split())[:asked]) for document in documents]
    return RankingSet.known_items(queries, documents, stream, others=25)


def test_known_items_hold_their_document_and_no_other_is_relevant():
    ranking = items()
    assert len(ranking) == 40
    assert all(len(numbers) == 26 and len(set(numbers.tolist())) == 26 for numbers in ranking.candidates)
    for row, query in enumerate(ranking.queries):
        (place,) = np.flatnonzero(ranking.relevance[row])
        assert set(words(query)) <= set(words(ranking.documents(row)[place]))


def test_queries_without_a_relevant_document_are_counted_and_left_out():
    two = (np.array([0, 1]), np.array([0, 1]))
    ranking = RankingSet(("a", "b"), ("x", "y"), two, (np.array([0, 0]), np.array([0, 1])))
    assert len(ranking) == 1
    assert ranking.skipped == 1
    assert ranking.queries == ("b",)
    assert ranking.edited(lambda tokens, stream: ["c"], generator()).skipped == 1


def test_bad_sets_are_refused():
    number, grade = np.array([0]), np.array([1])
    with pytest.raises(InputError, match="corpus is empty"):
        RankingSet(("a",), (), (number,), (grade,))
    with pytest.raises(InputError, match="none of 1 queries"):
        RankingSet(("a",), ("x",), (number,), (np.array([0]),))
    with pytest.raises(InputError, match="numbers below 1"):
        RankingSet(("a",), ("x",), (np.array([3]),), (grade,))
    with pytest.raises(InputError, match="2 queries"):
        RankingSet(("a", "b"), ("x",), (number,), (grade,))
    with pytest.raises(InputError, match="k=0"):
        robustness_profile({"bm25": BM25().fit}, items(), k=0)
    with pytest.raises(InputError, match="no ranker"):
        robustness_profile({}, items())


def test_variance_and_drop_rate_by_hand():
    values, moved = generator().random(200), generator(1).random(150) / 2
    assert variance_over_queries(values, generator()).value == pytest.approx(values.var())
    rate = drop_rate(values, moved, generator(), paired=False)
    assert rate.value == pytest.approx(moved.mean() / values.mean() - 1)
    assert rate.low < rate.value < rate.high
    paired = drop_rate(values, values * 0.7, generator(), paired=True)
    assert paired.value == pytest.approx(-0.3)
    assert paired.width < 1e-9  # the same queries on both sides leave nothing to chance
    assert variance_difference(values, values / 2, generator()).value == pytest.approx(0.75 * values.var())


def test_the_interval_of_an_unpaired_rate_covers():
    stream, hits = generator(3), 0
    for _ in range(60):
        rate = drop_rate(stream.random(60), stream.random(50) * 0.8, stream, paired=False)
        hits += rate.low <= -0.2 <= rate.high
    assert hits >= 50


def test_a_difference_of_rates_compares_their_sizes():
    values = generator().random(100) + 0.5
    gap = drop_rate_difference((values, values), (values * 0.5, values * 1.2), generator(), paired=True)
    assert gap.value == pytest.approx(0.5 - 0.2)
    assert gap.low > 0
    with pytest.raises(InputError, match="means nothing"):
        drop_rate(np.zeros(5), np.ones(5), generator(), paired=True)
    with pytest.raises(InputError, match="same queries"):
        drop_rate(values, values[:3], generator(), paired=True)


def test_a_profile_has_five_tables_and_compares():
    iid, short = items(), items(seed=1, asked=1)
    profile = robustness_profile(
        {"bm25": BM25().fit, "likelihood": DirichletLM().fit},
        iid,
        ood_queries={"short": short},
        ood_corpus={"other": items(seed=2)},
        query_attack={"lost": lambda tokens, stream: replace_words(tokens, stream, options=lambda w: ["oov"], count=2)},
        document_attack=PromoteDocument(lambda q: WordSubstitution(lambda w: words(q), 1.0, most=3), k=3, below=8),
    )
    tables = profile.tables()
    assert len(tables) == 5
    assert all(len(table.rows) == 2 for table in tables)
    np.testing.assert_allclose(profile.iid["bm25"], iid.values(BM25().fit(iid.corpus)))
    assert profile.moved["query attack"]["lost"]["bm25"].mean() < profile.iid["bm25"].mean()
    same = profile.differences("bm25", "bm25")
    assert set(same) == {"variance", "queries: short", "corpus: other", "query attack: lost"}
    assert all(gap.value == 0 for gap in same.values())
    with pytest.raises(InputError, match="profiled were bm25"):
        profile.differences("bm25", "none")


def test_promotion_reranks_with_all_and_stays_in_its_set():
    ranking = items()
    bm25 = BM25().fit(ranking.corpus)

    def threat(query):
        return WordSubstitution(lambda word: words(query), 1.0, most=2)

    run = PromoteDocument(threat, k=3, below=8)(bm25, ranking, generator())
    assert run.success.mean() > 0.8
    for number, (row, target) in enumerate(zip(run.rows, run.targets)):
        documents = ranking.documents(row)
        assert run.rank_before[number] > 8
        assert ranking.relevance[row][target] == 0
        assert threat(ranking.queries[row]).contains(pieces(run.texts[number]), pieces(documents[target]))
        documents[target] = run.texts[number]
        scores = bm25(ranking.queries[row], documents)
        np.testing.assert_allclose(run.scores[number], scores)
        place = 1 + (scores > scores[target]).sum() + ((scores == scores[target]).sum() - 1) / 2
        assert run.rank_after[number] == place


def test_random_edits_promote_less_than_a_search():
    ranking = items()
    bm25 = BM25().fit(ranking.corpus)
    attack = PromoteDocument(WordSubstitution(lambda word: WORDS, 1.0, most=2), k=3, below=8)
    searched, drawn = attack(bm25, ranking, generator()), attack.at_random(bm25, ranking, generator())
    assert searched.targets.tolist() == drawn.targets.tolist()
    assert searched.success.mean() > drawn.success.mean() + 0.5


def test_insertion_is_a_replacement():
    text = pieces("one two")
    threat = WordSubstitution(in_front(["new"]), 1.0, most=1)
    assert threat.random_text("one two", generator()) in {"new one two", "one new two"}
    assert threat.contains(["new one", " ", "two"], text)


def test_nearest_words_are_near_and_not_those_asked_for():
    vocabulary = Vocabulary(("a", "b", "c", "d"))
    weight = torch.tensor([[0.0, 0], [1, 1], [1, 0], [0.9, 0.1], [0, 1], [-1, 0]])
    assert nearest_words(weight, vocabulary, ["a", "zebra"], most=2) == ["b", "c"]


def test_impossible_promotions_are_refused():
    with pytest.raises(InputError, match="below"):
        PromoteDocument(WordSubstitution(lambda word: []), k=10, below=5)
