"""Edits of a text as functions (pieces, generator) -> pieces, each with its budget, and the set that attacks search.

Pieces are those of `tokens.pieces`: words, runs of space, punctuation.  An edit that touches a share of the words takes
`fraction`; it changes at most max(1, floor(fraction * words)) of them, chosen at random among those it can change.
No edit changes its argument.  Settings are fixed with functools.partial:

    edit_text("Do not do that.", partial(replace_words, options=typos, fraction=0.5), generator)

`WordSubstitution` is the set of texts in which some words were replaced by their candidates.  Its twin on embedded
sentences, with certificates, is `holdfast.threats.WordSwap`; `WordSubstitution.embedded` makes that from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.inputs.text.slips import Options, doubled, dropped, lookalikes, misread, mistyped, recased, swapped
from holdfast.inputs.text.tokens import Vocabulary, is_word, pieces, sentences
from holdfast.threats.wordswap import WordSwap

Edit = Callable[[Sequence[str], np.random.Generator], list[str]]

_CONTRACTIONS = {
    "do not": "don't", "does not": "doesn't", "did not": "didn't", "is not": "isn't", "are not": "aren't",
    "was not": "wasn't", "were not": "weren't", "has not": "hasn't", "have not": "haven't", "had not": "hadn't",
    "will not": "won't", "would not": "wouldn't", "could not": "couldn't", "should not": "shouldn't",
    "cannot": "can't", "i am": "i'm", "you are": "you're", "we are": "we're", "they are": "they're",
    "i will": "i'll", "you will": "you'll", "he will": "he'll", "she will": "she'll", "they will": "they'll",
    "i have": "i've", "you have": "you've", "we have": "we've", "they have": "they've", "let us": "let's",
}  # fmt: skip
_EXPANSIONS = {short: long for long, short in _CONTRACTIONS.items()}
_UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def allowance(words: int, fraction: float | int) -> int:
    """How many of so many words may change: max(1, floor(fraction * words)), and none of none.

    Raises InputError unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"the fraction of words to be edited must lie in (0, 1], got {fraction}")
    return min(words, max(1, math.floor(fraction * words + 1e-9)))


def edit_text(text: str, edit: Edit, generator: np.random.Generator) -> str:
    """The edited text."""
    return "".join(edit(pieces(text), generator))


def replace_words(
    tokens: Sequence[str],
    generator: np.random.Generator,
    *,
    options: Options,
    fraction: float | int = 0.1,
    count: int | None = None,
) -> list[str]:
    """Words that have options take one of them at random; `count` says how many words instead of `fraction`."""
    edited = list(tokens)
    choices = {place: found for place in word_places(tokens) if (found := options(tokens[place]))}
    most = allowance(len(word_places(tokens)), fraction) if count is None else count
    for place in _chosen(list(choices), most, generator):
        edited[place] = choices[place][int(generator.integers(len(choices[place])))]
    return edited


def drop_words(tokens: Sequence[str], generator: np.random.Generator, *, fraction: float | int = 0.1) -> list[str]:
    """Words are left out, with the space before them; the last word of a text stays."""
    places = word_places(tokens)
    gone = _chosen(places, min(allowance(len(places), fraction), max(len(places) - 1, 0)), generator)
    return without_words(tokens, gone)


def duplicate_words(tokens: Sequence[str], generator: np.random.Generator, *, fraction: float | int = 0.1) -> list[str]:
    """Words are said twice."""
    places = word_places(tokens)
    twice = set(_chosen(places, allowance(len(places), fraction), generator))
    return [
        part for place, token in enumerate(tokens) for part in ((token, " ", token) if place in twice else (token,))
    ]


def shuffle_words(tokens: Sequence[str], generator: np.random.Generator, *, window: int | None = None) -> list[str]:
    """Words change places within blocks of `window` words (None: all over the text); punctuation stays.

    Raises InputError for a window below 2.
    """
    if window is not None and window < 2:
        raise InputError(f"a window of at least 2 words is needed to shuffle, got {window}")
    edited, places = list(tokens), word_places(tokens)
    for start in range(0, len(places), window or max(len(places), 1)):
        block = places[start : start + window] if window else places
        for place, source in zip(block, generator.permutation(block)):
            edited[place] = tokens[int(source)]
    return edited


def shuffle_sentences(tokens: Sequence[str], generator: np.random.Generator) -> list[str]:
    """Sentences change places."""
    parts = sentences("".join(tokens))
    return pieces(" ".join(parts[int(place)] for place in generator.permutation(len(parts))))


def repeat_sentences(tokens: Sequence[str], generator: np.random.Generator, *, times: int = 1) -> list[str]:
    """The text says itself again `times` times over.  Raises InputError for times below 1."""
    if times < 1:
        raise InputError(f"a text is repeated at least once, got {times}")
    return pieces(" ".join(["".join(tokens).strip()] * (times + 1)))


def insert_sentence(tokens: Sequence[str], generator: np.random.Generator, *, choices: Sequence[str]) -> list[str]:
    """One of the given sentences, chosen at random, stands at a random place between sentences.

    Raises InputError when there is none to choose from.
    """
    if not choices:
        raise InputError("there is no sentence to insert; give at least one")
    parts = sentences("".join(tokens))
    parts.insert(int(generator.integers(len(parts) + 1)), choices[int(generator.integers(len(choices)))])
    return pieces(" ".join(parts))


def vary_spaces(tokens: Sequence[str], generator: np.random.Generator, *, fraction: float | int = 0.1) -> list[str]:
    """Spaces are doubled, or lost between two words, at random."""
    edited = list(tokens)
    places = [place for place, token in enumerate(tokens) if token.isspace()]
    for place in _chosen(places, allowance(len(places), fraction), generator):
        edited[place] = "" if generator.random() < 0.5 else edited[place] * 2
    return edited


def contract(tokens: Sequence[str], generator: np.random.Generator) -> list[str]:
    """Every "do not" becomes "don't"."""
    return _rephrased(tokens, _CONTRACTIONS)


def expand(tokens: Sequence[str], generator: np.random.Generator) -> list[str]:
    """Every "don't" becomes "do not"."""
    return _rephrased(tokens, _EXPANSIONS)


def spell_numbers(tokens: Sequence[str], generator: np.random.Generator) -> list[str]:
    """Whole numbers below a million are written in words."""
    return [number_in_words(int(token)) if re.fullmatch(r"[0-9]{1,6}", token) else token for token in tokens]


def number_in_words(number: int) -> str:
    """A number from 0 to 999 999 in English words."""
    if number < 20:
        return _UNITS[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (f"-{_UNITS[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    return f"{number_in_words(number // size)} {name}" + (f" {number_in_words(number % size)}" if number % size else "")


def synonyms(table: Mapping[str, Sequence[str]]) -> Options:
    """Options from a map of lower-case words; a capital in front is kept."""

    def options(word: str) -> list[str]:
        found = table.get(word.lower(), ())
        capital = word[:1].isupper()
        return [other[:1].upper() + other[1:] if capital else other for other in found if other != word.lower()]

    return options


def except_words(options: Options, spared: Collection[str]) -> Options:
    """The same options, none for the spared words (lower case), such as stop words, and for numbers."""
    return lambda word: [] if word.lower() in spared or word[0].isdigit() else options(word)


def in_front(added: Sequence[str]) -> Options:
    """Insertion as a replacement: any of the words may be put in front of a word."""
    return lambda word: [f"{other} {word}" for other in added]


#: Edits after which a reader still follows, at their usual strength.
EDITS: dict[str, Edit] = {
    "letters swapped": partial(replace_words, options=swapped),
    "letters dropped": partial(replace_words, options=dropped),
    "letters doubled": partial(replace_words, options=doubled),
    "keys beside": partial(replace_words, options=mistyped),
    "lookalike letters": partial(replace_words, options=lookalikes),
    "capitals": partial(replace_words, options=recased),
    "scanned": partial(replace_words, options=misread),
    "words doubled": duplicate_words,
    "words dropped": drop_words,
    "words out of order": partial(shuffle_words, window=3),
    "spaces": vary_spaces,
    "contracted": contract,
    "expanded": expand,
    "numbers in words": spell_numbers,
}


@dataclass(frozen=True)
class WordSubstitution:
    """The texts in which at most max(1, floor(max_fraction * words)) words were replaced by one of their candidates.

    `candidates` maps a word as it stands to what may stand in its place: `slips.typos`, `synonyms(table)`, or any other
    function.  `most` caps the number of words replaced whatever the text's length.

    Raises InputError unless 0 < max_fraction <= 1, and for most < 1.
    """

    candidates: Options
    max_fraction: float | int = 0.1
    most: int | None = None

    def __post_init__(self) -> None:
        allowance(1, self.max_fraction)
        if self.most is not None and self.most < 1:
            raise InputError(f"at least one word must be free to change, got most={self.most}")

    def allowance(self, tokens: Sequence[str]) -> int:
        """How many words of this text may be replaced."""
        allowed = allowance(len(word_places(tokens)), self.max_fraction)
        return allowed if self.most is None else min(allowed, self.most)

    def options(self, word: str) -> list[str]:
        """What may stand in place of a word, each once, never the word itself."""
        return [other for other in dict.fromkeys(self.candidates(word)) if other != word]

    def random_text(self, text: str, generator: np.random.Generator) -> str:
        """The text with as many words replaced as may be, words and replacements drawn at random."""
        tokens = pieces(text)
        return "".join(replace_words(tokens, generator, options=self.options, count=self.allowance(tokens)))

    def contains(self, edited: Sequence[str], original: Sequence[str]) -> bool:
        """Whether `edited` is one of the texts that may be made of `original`, piece for piece."""
        changed = [(there, here) for there, here in zip(edited, original) if there != here]
        return (
            len(edited) == len(original)
            and len(changed) <= self.allowance(original)
            and all(is_word(here) and there in self.candidates(here) for there, here in changed)
        )

    def embedded(self, tokens: Sequence[str], vocabulary: Vocabulary, weight: Float[Tensor, "words width"]) -> WordSwap:
        """The same set for one sentence of embedded words, for attacks by gradient and for certificates.

        `tokens` are the words that the model sees, one row of `weight` each; candidates outside the vocabulary are
        left out.  Raises InputError for a sentence without words.
        """
        if not tokens:
            raise InputError("a sentence without words has nothing to be swapped")
        known = [
            [vocabulary.index[other] for other in self.options(token) if other in vocabulary.index] for token in tokens
        ]
        choices = max(1, max(len(found) for found in known))
        numbers = torch.zeros(1, len(tokens), choices, dtype=torch.int64)
        allowed = torch.zeros(1, len(tokens), choices, dtype=torch.bool)
        for place, found in enumerate(known):
            numbers[0, place, : len(found)] = torch.tensor(found, dtype=torch.int64)
            allowed[0, place, : len(found)] = True
        return WordSwap(self.allowance(tokens), weight.detach()[numbers.to(weight.device)], allowed)


def word_places(tokens: Sequence[str]) -> list[int]:
    """Where the words stand among the pieces."""
    return [place for place, token in enumerate(tokens) if is_word(token)]


def without_words(tokens: Sequence[str], places: Sequence[int]) -> list[str]:
    """The pieces without those words, each taken away with the space before it (or, at the start, after it)."""
    gone = set(places)
    for place in places:
        if place and tokens[place - 1].isspace():
            gone.add(place - 1)
        elif place == 0 and len(tokens) > 1 and tokens[1].isspace():
            gone.add(1)
    return [token for place, token in enumerate(tokens) if place not in gone]


def _chosen(places: Sequence[int], count: int, generator: np.random.Generator) -> list[int]:
    if not places:
        return []
    picked = generator.choice(len(places), min(count, len(places)), replace=False)
    return [places[int(number)] for number in picked]


def _rephrased(tokens: Sequence[str], table: Mapping[str, str]) -> list[str]:
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, table))})\b", re.IGNORECASE)

    def other(match: re.Match[str]) -> str:
        said = table[match.group().lower()]
        return said[:1].upper() + said[1:] if match.group()[:1].isupper() else said

    return pieces(pattern.sub(other, "".join(tokens)))
