"""The greedy attack finds what brute force finds where greed is exact, and keeps threat, budget and constraint."""

from itertools import combinations, product

import numpy as np
import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.inputs.attack.losses import Targeted
from holdfast.inputs.text import GreedyTextAttack, WordSubstitution, pieces, typos, words
from holdfast.inputs.text.edits import synonyms

VALUES = {"good": 2.0, "nice": 1.0, "poor": -1.0, "bad": -2.5, "film": 0.2, "plot": 0.1, "story": -0.3}
TABLE = {"good": ["nice", "poor"], "nice": ["bad"], "film": ["story"], "plot": ["story", "film"]}
TEXTS = ["A good film, nice plot.", "good good nice film", "A bad story", "nice film plot plot plot"]


def scores(texts):
    """A bag of words: class 1 where the values add up to more than nothing."""
    total = np.array([sum(VALUES.get(word, 0.0) for word in words(text)) for text in texts])
    return np.stack([-total, total], axis=1)


def labels(texts):
    return torch.from_numpy(scores(texts)).argmax(1)


Y = labels(TEXTS).numpy()


def strongest(text, y, threat):
    """Largest margin over the whole set, by brute force."""
    tokens = pieces(text)
    places = [place for place, token in enumerate(tokens) if threat.options(token)]
    best = -np.inf
    for size in range(threat.allowance(tokens) + 1):
        for some in combinations(places, size):
            for choice in product(*(threat.options(tokens[place]) for place in some)):
                edited = list(tokens)
                for place, word in zip(some, choice):
                    edited[place] = word
                row = scores(["".join(edited)])[0]
                best = max(best, row[1 - y] - row[y])
    return best


@pytest.mark.parametrize("fraction", [0.2, 0.4, 1.0])
def test_no_more_is_found_than_there_is_and_success_is_true(fraction):
    threat = WordSubstitution(synonyms(TABLE), fraction)
    run = GreedyTextAttack(threat).run(scores, TEXTS, Y)
    for row, text in enumerate(TEXTS):
        assert threat.contains(pieces(run.texts[row]), pieces(text))
        assert run.best_loss[row] <= strongest(text, Y[row], threat) + 1e-12
        assert run.success[row] == (labels([run.texts[row]])[0] != Y[row])
        assert run.changed[row] == sum(a != b for a, b in zip(pieces(text), pieces(run.texts[row])))


def test_with_a_beam_the_strongest_text_is_found():
    threat = WordSubstitution(synonyms(TABLE), 0.4)
    run = GreedyTextAttack(threat, beam=50).run(scores, TEXTS, Y)
    for row, text in enumerate(TEXTS):
        wanted = strongest(text, Y[row], threat)
        assert run.success[row] == (wanted > 0)
        if not run.success[row]:  # it stops at the first success, so only a failure must be the strongest
            assert run.best_loss[row] == pytest.approx(wanted)


def test_important_words_go_first():
    threat = WordSubstitution(synonyms({"good": ["poor"], "film": ["story"]}), 0.1)
    assert GreedyTextAttack(threat)(scores, ["film was good"], np.array([1])) == ("film was poor",)


def test_labels_alone_suffice_and_words_are_put_back():
    threat = WordSubstitution(synonyms(TABLE), 1.0)
    run = GreedyTextAttack(threat, access="labels").run(labels, TEXTS, Y)
    assert run.success.tolist() == [True, True, False, True]
    for row in np.flatnonzero(run.success):
        tokens, edited = pieces(TEXTS[row]), pieces(run.texts[row])
        assert threat.contains(edited, tokens)
        assert int(labels([run.texts[row]])[0]) != Y[row]
    assert run.changed[0] < 4  # all four can change, but not all need to


def test_wrong_answers_are_left_alone_and_budgets_are_kept():
    asked = []

    def counting(texts):
        asked.extend(texts)
        return scores(texts)

    attack = GreedyTextAttack(WordSubstitution(typos, 1.0), queries=7)
    run = attack.run(counting, TEXTS, 1 - Y)
    assert run.queries.tolist() == [0, 0, 0, 0]
    assert run.texts == tuple(TEXTS)
    run = attack.run(counting, TEXTS, Y)
    assert (run.queries <= 7).all()


def test_the_constraint_is_asked_before_the_model():
    asked = []

    def watching(texts):
        asked.extend(texts)
        return scores(texts)

    threat = WordSubstitution(synonyms(TABLE), 1.0)
    attack = GreedyTextAttack(threat, constraint=lambda original, edited: "bad" not in edited)
    run = attack.run(watching, TEXTS[:1], Y[:1])
    assert not any("bad" in text for text in [*asked, *run.texts])


def test_a_target_is_reached_or_not():
    def three(texts):
        return np.concatenate([scores(texts), np.full((len(texts), 1), -1.0)], axis=1)

    threat = WordSubstitution(synonyms(TABLE), 1.0)
    goal = Targeted(torch.tensor([0, 2]))
    run = GreedyTextAttack(threat).run(three, TEXTS[:2], Y[:2], goal=goal)
    assert run.success.tolist() == [True, False]
    assert three([run.texts[0]])[0].argmax() == 0


def test_bad_requests_are_refused():
    attack = GreedyTextAttack(WordSubstitution(typos))
    with pytest.raises(InputError, match="labels"):
        attack(scores, TEXTS, Y[:2])
    with pytest.raises(InputError, match="no word"):
        attack(scores, ["..."], Y[:1])
    with pytest.raises(InputError, match="shape"):
        attack(lambda texts: scores(texts)[:, :1], TEXTS, Y)
    with pytest.raises(InputError, match="classes"):
        attack(scores, TEXTS[:1], np.array([2]))
    with pytest.raises(InputError, match="queries"):
        GreedyTextAttack(WordSubstitution(typos), queries=0)
    assert attack(scores, [], np.zeros(0, dtype=np.int64)) == ()


def test_chunks_change_nothing(monkeypatch):
    attack = GreedyTextAttack(WordSubstitution(synonyms(TABLE), 0.4))
    whole = attack.run(scores, TEXTS, Y)
    monkeypatch.setattr("holdfast.inputs.text.greedy.CHUNK", 3)
    assert attack.run(scores, TEXTS, Y).texts == whole.texts
