"""What one slip can make of a word: every function lists all results of one slip, each once, never the word itself.

    swapped     two neighbouring letters change places          word -> owrd
    dropped     a letter is missing                             word -> wrd
    doubled     a letter is typed twice                         word -> woord
    mistyped    the key beside the right one (QWERTY)           word -> qord
    lookalikes  a letter of another script with the same shape  word -> wоrd (Cyrillic о)
    recased     capitals                                        word -> Word, WORD
    misread     what optical character recognition confuses     modern -> modem

A single letter is never dropped, so a word stays a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

#: A word -> everything that may stand in its place.
Options = Callable[[str], list[str]]

#: Rows of a QWERTY keyboard and how far each is shifted to the right, in keys.
_ROWS = (("1234567890", 0.0), ("qwertyuiop", 0.5), ("asdfghjkl", 0.75), ("zxcvbnm", 1.25))
_PLACES = {key: (row, shift + column) for row, (keys, shift) in enumerate(_ROWS) for column, key in enumerate(keys)}
#: The keys that touch a key.
NEIGHBOURS = {
    key: "".join(
        other
        for other, (other_row, other_place) in _PLACES.items()
        if other != key and abs(row - other_row) <= 1 and abs(place - other_place) <= 1
    )
    for key, (row, place) in _PLACES.items()
}
#: Letters of the Cyrillic and Greek scripts that look like Latin ones.
HOMOGLYPHS = dict(zip("aceopxyijsvABCEHIKMOPTXY", "асеорхуіјѕνАВСЕНІКМОРТХУ", strict=True))
#: Shapes that scanners take for one another, either way.
_CONFUSED = (("rn", "m"), ("cl", "d"), ("vv", "w"), ("o", "0"), ("l", "1"), ("s", "5"), ("b", "6"), ("g", "9"))
MISREADINGS = _CONFUSED + tuple((there, here) for here, there in _CONFUSED) + (("e", "c"), ("i", "l"), ("h", "b"))


def swapped(word: str) -> list[str]:
    """Two neighbouring letters change places."""
    return _others(word, (word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)))


def dropped(word: str) -> list[str]:
    """A letter is missing."""
    return _others(word, (word[:i] + word[i + 1 :] for i in range(len(word) if len(word) > 1 else 0)))


def doubled(word: str) -> list[str]:
    """A letter is typed twice."""
    return _others(word, (word[: i + 1] + word[i:] for i in range(len(word))))


def mistyped(word: str) -> list[str]:
    """A key beside the right one on a QWERTY keyboard; capitals stay capitals."""
    return _others(
        word,
        (
            word[:i] + (key.upper() if letter.isupper() else key) + word[i + 1 :]
            for i, letter in enumerate(word)
            for key in NEIGHBOURS.get(letter.lower(), "")
        ),
    )


def lookalikes(word: str) -> list[str]:
    """A letter of another script that looks the same."""
    return _others(
        word,
        (word[:i] + HOMOGLYPHS[letter] + word[i + 1 :] for i, letter in enumerate(word) if letter in HOMOGLYPHS),
    )


def recased(word: str) -> list[str]:
    """Lower case, capitals, or a capital in front."""
    return _others(word, (word.lower(), word.upper(), word[:1].upper() + word[1:].lower()))


def misread(word: str) -> list[str]:
    """One shape taken for another that looks like it on paper."""
    return _others(
        word,
        (
            word[:i] + there + word[i + len(here) :]
            for here, there in MISREADINGS
            for i in range(len(word))
            if word.startswith(here, i)
        ),
    )


def typos(word: str) -> list[str]:
    """The four slips of a typist: a letter swapped, dropped, doubled, or the key beside it."""
    return _others(word, (result for slip in (swapped, dropped, doubled, mistyped) for result in slip(word)))


def _others(word: str, results: Iterable[str]) -> list[str]:
    return [result for result in dict.fromkeys(results) if result != word]
