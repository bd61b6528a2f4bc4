"""Text as words, as sentences, and as pieces that add up to the text again.

A word is a run of letters, digits and underscores, with inner apostrophes ("don't") and, between digits, inner points
and commas ("1,200", "0.5").  `pieces` splits a text into words, runs of space and single other characters without
losing any, so an edited list is turned back by "".join.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from holdfast.core.errors import InputError

Tokenise = Callable[[str], list[str]]

_WORD = r"\d+(?:[.,]\d+)+|\w+(?:['’]\w+)*"
_WORDS = re.compile(_WORD)
_PIECES = re.compile(rf"{_WORD}|\s+|[^\w\s]")
_SENTENCES = re.compile(r".+?(?:[.!?]+[\"'”’)\]]*(?=\s)|\n|\Z)", re.DOTALL)


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORDS.findall(text.lower())


def pieces(text: str) -> list[str]:
    """Words, runs of space and single punctuation marks as they stand; "".join(pieces(text)) == text."""
    return _PIECES.findall(text)


def is_word(piece: str) -> bool:
    """Whether a piece is a word, not space or punctuation."""
    return bool(piece) and (piece[0].isalnum() or piece[0] == "_")


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped: they end at . ! ? before a space, or at the end of a line."""
    return [stripped for part in _SENTENCES.findall(text) if (stripped := part.strip())]


def remembered(tokenise: Tokenise = words, most: int = 50_000) -> Tokenise:
    """The same function with a memory of its last `most` texts; whoever asks must not change the list it gets."""
    return lru_cache(most)(tokenise)


@dataclass(frozen=True)
class Vocabulary:
    """Words with numbers: 0 is the pad, 1 every word that is not known, then the words by falling count."""

    listed: tuple[str, ...]
    index: dict[str, int] = field(init=False, repr=False, compare=False)

    PAD = 0
    UNKNOWN = 1

    def __post_init__(self) -> None:
        index = {word: number for number, word in enumerate(self.listed, start=2)}
        if len(index) != len(self.listed):
            raise InputError("a vocabulary lists every word once, got repeated words")
        object.__setattr__(self, "index", index)

    @classmethod
    def of(
        cls, texts: Iterable[str], *, most: int | None = None, fewest: int = 1, tokenise: Tokenise = words
    ) -> Vocabulary:
        """The `most` frequent words that occur at least `fewest` times; equal counts in alphabetical order."""
        counts = Counter(word for text in texts for word in tokenise(text))
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return cls(tuple(word for word, count in ranked[:most] if count >= fewest))

    def __len__(self) -> int:
        """Number of rows that an embedding needs."""
        return len(self.listed) + 2

    def word(self, number: int) -> str:
        """The word of a number; "" for the pad and "?" for an unknown word."""
        return ("", "?")[number] if number < 2 else self.listed[number - 2]

    def encode(self, tokens: Sequence[Sequence[str]], length: int | None = None) -> Int[Tensor, "texts length"]:
        """Numbers of the words of every text, cut at `length` and padded with 0 to the longest."""
        longest = max((len(text) for text in tokens), default=0)
        width = max(1, longest if length is None else min(length, longest))
        numbers = torch.zeros(len(tokens), width, dtype=torch.int64)
        for row, text in enumerate(tokens):
            kept = [self.index.get(token, self.UNKNOWN) for token in text[:width]]
            numbers[row, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
        return numbers
