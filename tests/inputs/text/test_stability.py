"""Curves, the suite and the bag-of-words test on scorers whose behaviour is known."""

import numpy as np
import pytest

from holdfast.core.errors import InputError
from holdfast.inputs.text import (
    SUITE,
    Perturbation,
    bag_of_words_fidelity,
    leave_one_out,
    oversensitivity,
    overstability_curve,
    perturbation_suite,
    words,
)
from holdfast.inputs.text.edits import contract, repeat_sentences, shuffle_words
from holdfast.inputs.text.stability import OverstabilityCurve, overstability_figure

VALUES = {"good": 2.0, "fine": 1.0, "bad": -3.0}
TEXTS = ["a good film and a fine plot", "fine fine good then bad", "good good good film film film"]


def bag(some):
    return np.array([5 + sum(VALUES.get(word, 0.0) for word in words(text)) for text in some])


def first_word(some):
    return np.array([VALUES.get(words(text)[0], 0.0) for text in some])


def test_keeping_all_words_keeps_the_score_and_the_best_come_first():
    values = leave_one_out(bag, TEXTS)
    curve = overstability_curve(bag, TEXTS, values, shares=(0.3, 1.0))
    np.testing.assert_allclose(curve.scores[:, 1], curve.full)
    np.testing.assert_allclose(curve.scores[:, 0], [8, 8, 9])  # two words each: "good fine" twice, "good good"
    np.testing.assert_allclose(curve.preserved()[:, 1], 1)


def test_the_order_of_words_is_kept_in_place_and_lost_by_rank():
    seen = []

    def watching(some):
        seen.extend(some)
        return bag(some)

    values = [np.array([0.0, 3, 1, 2])]
    for kept in ("in place", "by rank"):
        overstability_curve(watching, ["one two three four"], values, shares=(0.5,), kept=kept)
    assert seen[0] == "two four"
    assert seen[2] == "two four"
    overstability_curve(watching, ["one two three four"], [np.array([0.0, 1, 2, 3])], shares=(0.5,), kept="by rank")
    assert seen[4] == "four three"


def test_the_share_needed_is_where_the_score_stays():
    scores = np.array([[10.0, 5, 9.5, 10], [9.2, 9.4, 9.6, 10], [0, 0, 0, 0.0]])
    curve = OverstabilityCurve((0.25, 0.5, 0.75, 1.0), scores, np.array([10.0, 10, 10]))
    assert curve.share_needed(0.9).tolist() == [0.75, 0.25, np.inf]
    figure = overstability_figure({"ours": curve})
    assert figure.series[0].x == (0.25, 0.5, 0.75, 1.0)
    assert figure.series[0].y[3] == pytest.approx(np.mean([1, 1, 0]))


def test_one_word_deleted_or_inserted():
    values = leave_one_out(bag, TEXTS)
    found = oversensitivity(bag, TEXTS, values, np.random.default_rng(0), insert=["bad", "film"])
    assert found.most_positive_deleted.tolist() == [-2, -2, -2]
    assert found.most_negative_deleted.tolist() == [0, 3, 0]
    assert found.inserted["bad"].tolist() == [-3, -3, -3]
    assert found.inserted["film"].tolist() == [0, 0, 0]
    assert set(found.random_deleted.tolist()) <= {0, -1, -2, 3}


def test_the_suite_measures_on_a_scale_of_a_hundred():
    suite = {
        "shuffled": Perturbation(shuffle_words, -1),
        "twice": Perturbation(repeat_sentences, 1),
        "contracted": Perturbation(contract, 0),
    }
    result = perturbation_suite(bag, TEXTS, suite, scale=(0, 25), rubric_point=2.5)
    np.testing.assert_allclose(result.changes["shuffled"], 0, atol=1e-12)
    np.testing.assert_allclose(result.changes["twice"], 4 * (bag(TEXTS) - 5))
    assert result.rubric_point == 10
    assert result.against_expectation("shuffled").tolist() == [1, 1, 1]  # it should have fallen
    assert result.against_expectation("contracted").tolist() == [0, 0, 0]
    row = dict(zip(result.table().columns, result.table().rows[1]))
    assert row["raised"].value == pytest.approx(2 / 3 if bag(TEXTS)[1] <= 5 else 1)
    assert row["mean change"].value == pytest.approx(4 * (bag(TEXTS) - 5).mean())
    assert row["beyond one point"].value == pytest.approx(np.mean(np.abs(4 * (bag(TEXTS) - 5)) > 10))


def test_the_default_suite_runs_on_a_scorer_that_reads_order():
    table = perturbation_suite(first_word, TEXTS, scale=(-5, 10)).table()
    assert [row[0] for row in table.rows] == list(SUITE)
    assert {row[1] for row in table.rows} == {"fall", "stay"}


def test_a_bag_of_words_is_told_from_a_scorer_that_reads_order():
    stream = np.random.default_rng(0)
    vocabulary = [*VALUES, "film", "plot", "then", "so", "very"]
    some = [" ".join(stream.choice(vocabulary, 8)) for _ in range(200)]
    assert bag_of_words_fidelity(bag, some).value > 0.99
    assert bag_of_words_fidelity(first_word, some).high < 0.5


def test_bad_requests_are_refused():
    values = leave_one_out(bag, TEXTS)
    with pytest.raises(InputError, match="empty"):
        overstability_curve(bag, [""], [np.zeros(0)])
    with pytest.raises(InputError, match="7 words but 2"):
        overstability_curve(bag, TEXTS[:1], [np.zeros(2)])
    with pytest.raises(InputError, match="score 0"):
        OverstabilityCurve((1.0,), np.ones((2, 1)), np.array([1.0, 0.0])).preserved()
    with pytest.raises(InputError, match="shares"):
        overstability_curve(bag, TEXTS, values, shares=(0.0,))
    with pytest.raises(InputError, match="outside the declared range"):
        perturbation_suite(bag, TEXTS, scale=(0, 6))
    with pytest.raises(InputError, match="empty"):
        perturbation_suite(bag, ["..."], scale=(0, 6))
    with pytest.raises(InputError, match="low < high"):
        perturbation_suite(bag, TEXTS, scale=(6, 6))
    with pytest.raises(InputError, match="ten texts"):
        bag_of_words_fidelity(bag, TEXTS)
    with pytest.raises(InputError, match="means nothing"):
        bag_of_words_fidelity(lambda some: np.zeros(len(some)), TEXTS * 5)
