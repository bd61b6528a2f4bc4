"""Texts become words and come back; vocabularies number words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.inputs.text import Vocabulary, pieces, sentences, words
from holdfast.inputs.text.tokens import is_word


@given(st.text())
def test_pieces_add_up_to_the_text(text):
    assert "".join(pieces(text)) == text


@given(st.text(alphabet="aB1 .,'\n"))
def test_words_are_the_pieces_that_are_words(text):
    assert [piece.lower() for piece in pieces(text) if is_word(piece)] == words(text)


def test_numbers_and_apostrophes_stay_whole():
    assert words("Tom's rent: $1,200.50 (not 12/60).") == ["tom's", "rent", "1,200.50", "not", "12", "60"]


def test_sentences_end_at_marks_and_lines():
    assert sentences('He said "no." Then 0.5 of it!\nEnd') == ['He said "no."', "Then 0.5 of it!", "End"]
    assert sentences(" \n ") == []


def test_vocabulary_by_count_then_alphabet():
    vocabulary = Vocabulary.of(["b a b", "c a b"], most=2)
    assert vocabulary.listed == ("b", "a")
    assert vocabulary.encode([["a", "c"], [], ["b", "b", "a"]], length=2).tolist() == [[3, 1], [0, 0], [2, 2]]
    assert [vocabulary.word(number) for number in range(len(vocabulary))] == ["", "?", "b", "a"]
    assert Vocabulary.of(["b a b"], fewest=2).listed == ("b",)


def test_repeated_words_are_refused():
    with pytest.raises(InputError, match="once"):
        Vocabulary(("a", "a"))
