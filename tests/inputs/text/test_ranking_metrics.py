"""Metrics of rankings: known values, ties in expectation, agreement with a library."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from holdfast.core.errors import InputError
from holdfast.inputs.text import ndcg, recall, reciprocal_rank
from holdfast.inputs.text.ranking_metrics import rank_of

METRICS = (ndcg, reciprocal_rank, recall)
PROBLEMS = st.integers(2, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
        st.lists(st.integers(0, 2), min_size=n, max_size=n).filter(any),
        st.integers(1, 7),
    )
)


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_ranking_is_one_and_the_reverse_is_known(metric):
    relevance = np.array([1, 0, 0, 0])
    assert metric(np.array([4.0, 3, 2, 1]), relevance, 4) == pytest.approx(1)
    wanted = {ndcg: 1 / np.log2(5), reciprocal_rank: 0.25, recall: 1.0}[metric]
    assert metric(np.array([1.0, 2, 3, 4]), relevance, 4) == pytest.approx(wanted)
    assert metric(np.array([1.0, 2, 3, 4]), relevance, 3) == 0


@pytest.mark.parametrize("metric", METRICS)
@given(PROBLEMS)
def test_ties_give_the_mean_over_their_orders(metric, problem):
    scores, relevance, k = (np.asarray(part) for part in problem)
    orders = [order for order in permutations(range(len(scores))) if all(np.diff(scores[list(order)]) <= 0)]
    ranked = np.arange(len(scores), 0, -1.0)
    wanted = np.mean([metric(ranked, relevance[list(order)], int(k)) for order in orders])
    assert metric(scores.astype(float), relevance, int(k)) == pytest.approx(wanted)


@given(PROBLEMS)
def test_ndcg_agrees_with_scikit_learn(problem):
    scores, relevance, k = (np.asarray(part) for part in problem)
    gains = np.exp2(relevance) - 1
    assert ndcg(scores.astype(float), relevance, int(k)) == pytest.approx(
        ndcg_score(gains[None], scores[None], k=int(k)), abs=1e-12
    )


def test_ranks_count_from_one():
    scores = np.array([3.0, 1, 2, 1])
    assert [rank_of(scores, place) for place in range(4)] == [1, 3.5, 2, 3.5]


def test_bad_requests_are_refused():
    scores = np.array([1.0, 2])
    with pytest.raises(InputError, match="k=0"):
        ndcg(scores, np.array([1, 0]), 0)
    with pytest.raises(InputError, match="relevant document"):
        recall(scores, np.array([0, 0]))
    with pytest.raises(InputError, match="NaN"):
        reciprocal_rank(np.array([np.nan, 1.0]), np.array([1, 0]))
