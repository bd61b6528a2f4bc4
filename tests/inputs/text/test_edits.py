"""Edits keep their budget, their argument and what they do not touch; substitutions are the set they say."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.inputs.text import (
    EDITS,
    Vocabulary,
    WordSubstitution,
    edit_text,
    edits,
    pieces,
    sentences,
    slips,
    typos,
    words,
)
from holdfast.inputs.text.edits import allowance, number_in_words, synonyms, word_places

TEXTS = st.text(alphabet="abcdeHELO rnm.,'12 ", max_size=60)
TEXT = "Tom did not buy 12 red apples. He sold 3 of them, and he kept the rest! Was it a good day?"


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", EDITS)
@given(text=TEXTS, seed=st.integers(0, 99))
def test_an_edit_repeats_itself_and_leaves_its_argument(name, text, seed):
    tokens = pieces(text)
    before = list(tokens)
    assert EDITS[name](tokens, generator(seed)) == EDITS[name](tokens, generator(seed))
    assert tokens == before


@pytest.mark.parametrize("slip", [slips.swapped, slips.dropped, slips.doubled, slips.mistyped, slips.misread])
@given(text=TEXTS, fraction=st.floats(0.01, 1))
def test_replacements_keep_the_budget(slip, text, fraction):
    tokens = pieces(text)
    edited = edits.replace_words(tokens, generator(), options=slip, fraction=fraction)
    changed = [(a, b) for a, b in zip(tokens, edited) if a != b]
    changeable = sum(bool(slip(tokens[place])) for place in word_places(tokens))
    assert len(edited) == len(tokens)
    assert len(changed) == min(changeable, allowance(len(word_places(tokens)), fraction))
    assert all(b in slip(a) for a, b in changed)


@given(st.text(alphabet="abHEo1rn", min_size=1, max_size=8))
def test_slips_are_one_slip_away(word):
    assert all(sorted(other) == sorted(word) and other != word for other in slips.swapped(word))
    assert all(len(other) == len(word) - 1 for other in slips.dropped(word))
    assert all(len(other) == len(word) + 1 for other in slips.doubled(word))
    for other in slips.mistyped(word):
        (place,) = (i for i in range(len(word)) if word[i] != other[i])
        assert other[place].lower() in slips.NEIGHBOURS[word[place].lower()]
    assert len(set(typos(word))) == len(typos(word))
    assert all(other.lower() == word.lower() for other in slips.recased(word))


def test_known_slips():
    assert slips.swapped("word") == ["owrd", "wrod", "wodr"]
    assert slips.dropped("a") == []
    assert set(slips.NEIGHBOURS["g"]) == set("ftyhvb")
    assert all(a in slips.NEIGHBOURS[b] for a, near in slips.NEIGHBOURS.items() for b in near)
    assert "modem" in slips.misread("modern")
    assert slips.lookalikes("word") == ["wоrd"]
    assert slips.lookalikes("word")[0] != "word"


def test_words_are_dropped_doubled_and_moved():
    tokens = pieces(TEXT)
    n = len(words(TEXT))
    assert len(words("".join(edits.drop_words(tokens, generator(), fraction=0.3)))) == n - int(0.3 * n)
    assert len(words("".join(edits.duplicate_words(tokens, generator(), fraction=0.3)))) == n + int(0.3 * n)
    assert edits.drop_words(["word"], generator(), fraction=1) == ["word"]
    assert edits.without_words(pieces("one two three"), [0]) == pieces("two three")
    assert edits.without_words(pieces("one two three"), [4]) == pieces("one two")


@given(st.integers(2, 9), st.integers(0, 20))
def test_words_move_within_their_window_only(window, seed):
    tokens = pieces(TEXT)
    edited = edits.shuffle_words(tokens, generator(seed), window=window)
    places = word_places(tokens)
    for start in range(0, len(places), window):
        block = places[start : start + window]
        assert sorted(tokens[p] for p in block) == sorted(edited[p] for p in block)
    assert [t for t in tokens if not t.isalnum()] == [t for t in edited if not t.isalnum()]


def test_sentences_move_repeat_and_receive_another():
    tokens = pieces(TEXT)
    moved = [edit_text(TEXT, edits.shuffle_sentences, generator(seed)) for seed in range(8)]
    assert {tuple(sorted(sentences(text))) for text in moved} == {tuple(sorted(sentences(TEXT)))}
    assert len(set(moved)) > 1
    assert words("".join(edits.repeat_sentences(tokens, generator()))) == words(TEXT) * 2
    inserted = sentences("".join(edits.insert_sentence(tokens, generator(), choices=["Birds fly."])))
    assert sorted(inserted) == sorted([*sentences(TEXT), "Birds fly."])


def test_phrases_and_numbers():
    assert edit_text(TEXT, edits.contract, generator()).startswith("Tom didn't buy")
    assert edit_text("Don't do it, I'm here.", edits.expand, generator()) == "Do not do it, I am here."
    assert edit_text("12 of 3", edits.spell_numbers, generator()) == "twelve of three"
    assert [number_in_words(n) for n in (0, 21, 300, 1_015, 999_999)] == [
        "zero",
        "twenty-one",
        "three hundred",
        "one thousand fifteen",
        "nine hundred ninety-nine thousand nine hundred ninety-nine",
    ]


@given(TEXTS, st.integers(0, 50))
def test_spaces_are_all_that_varies(text, seed):
    edited = edits.vary_spaces(pieces(text), generator(seed), fraction=0.5)
    assert "".join("".join(edited).split()) == "".join(text.split())


def test_the_set_of_substitutions():
    threat = WordSubstitution(synonyms({"good": ["fine", "nice"], "day": ["night", "day"]}), max_fraction=0.5)
    original = pieces("Good day , friend")
    assert threat.options("Good") == ["Fine", "Nice"]
    assert threat.options("day") == ["night"]
    assert threat.allowance(original) == 1
    assert threat.contains(pieces("Fine day , friend"), original)
    assert not threat.contains(pieces("Fine night , friend"), original)
    assert not threat.contains(pieces("Good day , foe"), original)
    assert WordSubstitution(typos, 1.0, most=2).allowance(pieces("a b c d")) == 2


def test_the_embedded_set_is_the_same_set():
    vocabulary = Vocabulary(("good", "fine", "nice", "day"))
    weight = torch.randn(len(vocabulary), 3, generator=torch.Generator().manual_seed(0))
    threat = WordSubstitution(synonyms({"good": ["fine", "nice", "swell"]}), max_fraction=1.0)
    swap = threat.embedded(["good", "day"], vocabulary, weight)
    assert swap.swaps == 2
    assert swap.allowed.tolist() == [[[True, True], [False, False]]]
    x = weight[vocabulary.encode([["good", "day"]])]
    inside = weight[vocabulary.encode([["nice", "day"], ["good", "good"]])]
    assert swap.contains(inside, x.expand(2, -1, -1)).tolist() == [True, False]


def test_bad_requests_are_refused():
    tokens = pieces(TEXT)
    for call, match in [
        (partial(edits.drop_words, fraction=0), "fraction"),
        (partial(edits.shuffle_words, window=1), "window"),
        (partial(edits.repeat_sentences, times=0), "once"),
        (partial(edits.insert_sentence, choices=[]), "sentence"),
    ]:
        with pytest.raises(InputError, match=match):
            call(tokens, generator())
    with pytest.raises(InputError, match="most"):
        WordSubstitution(typos, most=0)
    with pytest.raises(InputError, match="without words"):
        WordSubstitution(typos).embedded([], Vocabulary(()), torch.zeros(2, 1))
