"""Text that moves: edits of words, attacks on classifiers and rankers, attributions, and the stability of scores."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.inputs.text.bm25 import BM25, BM25Retriever, Hit
    from holdfast.inputs.text.tokens import Vocabulary, pieces, sentences, words

__all__ = ["BM25", "BM25Retriever", "Hit", "Vocabulary", "pieces", "sentences", "words"]

_HOMES = {
    "BM25": "holdfast.inputs.text.bm25",
    "BM25Retriever": "holdfast.inputs.text.bm25",
    "Hit": "holdfast.inputs.text.bm25",
    "Vocabulary": "holdfast.inputs.text.tokens",
    "pieces": "holdfast.inputs.text.tokens",
    "sentences": "holdfast.inputs.text.tokens",
    "words": "holdfast.inputs.text.tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
