"""Ranked search over short texts: BM25 on words, with prefixes and small typing errors forgiven.

    score(d, q) = Σ_{t in q} idf(t) · f(t, d) (k + 1) / (f(t, d) + k (1 - b + b |d| / mean |d|))

where f counts the words of document d that match the query term t, each weighted by how well it matches (1 for the word
itself, less for a word that t begins, less again for a word one slip away) and by the field it stands in
(Robertson and Zaragoza, 2009).
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

PREFIX_MATCH = 0.7
TYPO_MATCH = 0.5
TYPO_RATIO = 0.8
SATURATION = 1.2
LENGTH_WEIGHT = 0.5


def words(text: str) -> list[str]:
    """Lower-case words; CamelCase, snake_case and dotted names are also taken apart."""
    found: list[str] = []
    for token in re.findall(r"[A-Za-z0-9]+", text):
        parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", token)
        found.extend(part.lower() for part in parts)
        if len(parts) > 1:
            found.append(token.lower())
    return found


def rank(query: str, documents: Sequence[Mapping[str, str]], weights: Mapping[str, float]) -> list[tuple[int, float]]:
    """Positions and scores of the documents that match any word of `query`, best first; ties keep their order.

    A document is its fields (name -> text); `weights` says how much a word counts in each field.
    """
    bags = [_weighted_bag(document, weights) for document in documents]
    lengths = [sum(bag.values()) for bag in bags]
    mean_length = (sum(lengths) / len(lengths) if lengths else 0.0) or 1.0
    vocabulary = sorted({word for bag in bags for word in bag})
    scores = [0.0] * len(bags)
    for term in dict.fromkeys(words(query)):
        matches = _matching_words(term, vocabulary)
        counts = [sum(share * bag[word] for word, share in matches.items() if word in bag) for bag in bags]
        hits = sum(count > 0 for count in counts)
        rarity = math.log(1 + (len(bags) - hits + 0.5) / (hits + 0.5))
        for position, count in enumerate(counts):
            damping = SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * lengths[position] / mean_length)
            scores[position] += rarity * count * (SATURATION + 1) / (count + damping)
    order = sorted(range(len(bags)), key=lambda position: -scores[position])
    return [(position, scores[position]) for position in order if scores[position] > 0]


def _weighted_bag(document: Mapping[str, str], weights: Mapping[str, float]) -> dict[str, float]:
    bag: Counter[str] = Counter()
    for name, text in document.items():
        for word in words(text):
            bag[word] += weights[name]  # type: ignore[assignment]  # Counter adds floats as well
    return dict(bag)


def _matching_words(term: str, vocabulary: Sequence[str]) -> dict[str, float]:
    matches = {word: PREFIX_MATCH for word in vocabulary if len(term) > 1 and word.startswith(term)}
    if len(term) > 3 and not matches:
        matches = dict.fromkeys(difflib.get_close_matches(term, vocabulary, n=5, cutoff=TYPO_RATIO), TYPO_MATCH)
    if term in vocabulary:
        matches[term] = 1.0
    return matches
