"""Search puts the right text first, forgives a slip, and stays silent about what it does not know."""

from hypothesis import given
from hypothesis import strategies as st

from holdfast.papers.search import rank, words

TEXTS = [
    {"title": "Randomised smoothing", "claim": "Certified radius for any classifier"},
    {"title": "Label errors", "claim": "Noise in labels; smoothing is mentioned once"},
    {"title": "Coordinate descent", "claim": "Greedy blocks"},
]
WEIGHTS = {"title": 3.0, "claim": 1.0}


def order(query):
    return [position for position, _ in rank(query, TEXTS, WEIGHTS)]


def test_names_are_taken_apart():
    assert words("MahalanobisDetector solve_forest IBPBounds") == [
        *("mahalanobis", "detector", "mahalanobisdetector", "solve", "forest"),
        *("ibp", "bounds", "ibpbounds"),
    ]


def test_a_word_in_the_title_outweighs_one_in_the_claim():
    assert order("smoothing") == [0, 1]


def test_a_beginning_and_a_slip_are_enough():
    assert order("certif") == [0]
    assert order("coordniate") == [2]


def test_the_unknown_finds_nothing():
    assert order("zebra") == []
    assert rank("zebra", [], WEIGHTS) == []


@given(st.text(max_size=40))
def test_any_query_gives_positive_scores_in_order(query):
    scores = [score for _, score in rank(query, TEXTS, WEIGHTS)]
    assert scores == sorted(scores, reverse=True)
    assert all(score > 0 for score in scores)
