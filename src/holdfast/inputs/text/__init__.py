"""Text that moves: edits of words, attacks on classifiers and rankers, attributions, and the stability of scores."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.inputs.text.bm25 import BM25, BM25Retriever, Hit
    from holdfast.inputs.text.edits import EDITS, WordSubstitution, edit_text
    from holdfast.inputs.text.feature_selection import LanguageModelFeatureSelector
    from holdfast.inputs.text.greedy import GreedyTextAttack, TextAttackRun
    from holdfast.inputs.text.mcqa import MCQItem, MCQModel, MCQPrompt, MCQReport
    from holdfast.inputs.text.slips import typos
    from holdfast.inputs.text.tokens import Vocabulary, pieces, sentences, words

__all__ = [
    "BM25",
    "EDITS",
    "BM25Retriever",
    "GreedyTextAttack",
    "Hit",
    "LanguageModelFeatureSelector",
    "MCQItem",
    "MCQModel",
    "MCQPrompt",
    "MCQReport",
    "TextAttackRun",
    "Vocabulary",
    "WordSubstitution",
    "edit_text",
    "pieces",
    "sentences",
    "typos",
    "words",
]

_HOMES = {
    "BM25": "holdfast.inputs.text.bm25",
    "BM25Retriever": "holdfast.inputs.text.bm25",
    "EDITS": "holdfast.inputs.text.edits",
    "GreedyTextAttack": "holdfast.inputs.text.greedy",
    "Hit": "holdfast.inputs.text.bm25",
    "LanguageModelFeatureSelector": "holdfast.inputs.text.feature_selection",
    "MCQItem": "holdfast.inputs.text.mcqa",
    "MCQModel": "holdfast.inputs.text.mcqa",
    "MCQPrompt": "holdfast.inputs.text.mcqa",
    "MCQReport": "holdfast.inputs.text.mcqa",
    "TextAttackRun": "holdfast.inputs.text.greedy",
    "Vocabulary": "holdfast.inputs.text.tokens",
    "WordSubstitution": "holdfast.inputs.text.edits",
    "edit_text": "holdfast.inputs.text.edits",
    "pieces": "holdfast.inputs.text.tokens",
    "sentences": "holdfast.inputs.text.tokens",
    "typos": "holdfast.inputs.text.slips",
    "words": "holdfast.inputs.text.tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
