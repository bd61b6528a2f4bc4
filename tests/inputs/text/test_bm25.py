"""BM25 equals the formula by hand and a peer with the same idf; retrieval sorts by it."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.inputs.text import BM25, BM25Retriever

CORPUS = ["the cat sat on the mat", "the dog sat", "birds fly"]
TEXTS = st.lists(st.text(alphabet="abcd ", min_size=1, max_size=30), min_size=1, max_size=6).filter(
    lambda texts: any(text.strip() for text in texts)
)


def test_three_documents_by_hand():
    # 11 words, mean length 11/3; "sat" in two documents, "cat" in one.
    idf_sat, idf_cat = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)

    def saturated(count, length):
        return count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / (11 / 3)))

    wanted = [saturated(1, 6) * (idf_cat + idf_sat), saturated(1, 3) * idf_sat, 0.0]
    np.testing.assert_allclose(BM25().fit(CORPUS)("cat sat", CORPUS), wanted, rtol=0, atol=1e-12)


def brute_force(query, documents, k1, b):
    tokens = [document.split() for document in documents]
    mean = sum(map(len, tokens)) / len(tokens)
    scores = []
    for document in tokens:
        score = 0.0
        for word in query.split():
            df, f = sum(word in other for other in tokens), document.count(word)
            idf = math.log(1 + (len(tokens) - df + 0.5) / (df + 0.5))
            score += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(document) / mean)) if f else 0.0
        scores.append(score)
    return scores


@given(TEXTS, st.text(alphabet="abcde ", max_size=15), st.floats(0, 3), st.floats(0, 1))
def test_agrees_with_the_formula_word_by_word(corpus, query, k1, b):
    ranker = BM25(k1, b).fit(corpus)
    wanted = brute_force(query, corpus, k1, b)
    np.testing.assert_allclose(ranker(query, corpus), wanted, atol=1e-10)
    np.testing.assert_allclose(BM25Retriever(corpus, BM25(k1, b)).scores([query])[0], wanted, atol=1e-10)


@given(TEXTS, st.text(alphabet="abcd ", max_size=15))
def test_agrees_with_rank_bm25_given_the_same_idf(corpus, query):
    rank_bm25 = pytest.importorskip("rank_bm25")
    tokens = [text.split() for text in corpus]
    try:
        peer = rank_bm25.BM25Okapi(tokens, k1=1.2, b=0.75)
    except ZeroDivisionError:
        pytest.skip("the peer divides by zero on this corpus")
    ranker = BM25().fit(corpus)
    known = list(peer.idf)
    # Its idf is the original one, repaired by a floor where it is negative: ours is ln(1 + exp of it) elsewhere.
    frequency = Counter(word for document in tokens for word in set(document))
    rare = [word for word in known if 2 * frequency[word] < len(corpus)]
    np.testing.assert_allclose(ranker.idf(rare), np.log1p(np.exp([peer.idf[word] for word in rare])), atol=1e-12)
    peer.idf = dict(zip(known, ranker.idf(known)))
    np.testing.assert_allclose(ranker(query, corpus), peer.get_scores(query.split()), atol=1e-9)


def test_a_word_of_no_document_weighs_most_and_counts_in_new_documents():
    ranker = BM25().fit(CORPUS)
    assert ranker.idf(["zebra"])[0] > ranker.idf(["birds"])[0] > ranker.idf(["sat"])[0] > 0
    assert ranker("zebra", ["a zebra"])[0] > 0


def test_b_zero_ignores_length_and_k1_zero_ignores_repetition():
    twice = ["cat cat dog bird", "cat"]
    assert np.ptp(BM25(k1=0).fit(twice)("cat", twice)) == 0
    long = ["cat " + "filler " * 50, "cat"]
    assert np.ptp(BM25(b=0).fit(long)("cat", long)) == 0


def test_retrieval_sorts_and_keeps_ties_in_order():
    hits = BM25Retriever(["x y", "cat", "z", "cat"]).retrieve("cat", k=3)
    assert [hit.index for hit in hits] == [1, 3, 0]
    assert hits[0].text == "cat"
    assert hits[0].score == hits[1].score > hits[2].score == 0
    assert len(BM25Retriever(CORPUS).retrieve("cat", k=9)) == 3


def test_bad_requests_are_refused():
    with pytest.raises(InputError, match="no word"):
        BM25Retriever([])
    with pytest.raises(InputError, match="no word"):
        BM25().fit(["", " . "])
    with pytest.raises(InputError, match="k1"):
        BM25(k1=-1)
    with pytest.raises(InputError, match="fit"):
        BM25()("cat", CORPUS)
    with pytest.raises(InputError, match="at least one"):
        BM25Retriever(CORPUS).retrieve("cat", k=0)
