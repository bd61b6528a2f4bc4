"""Text that moves: edits of words, attacks on classifiers and rankers, attributions, and the stability of scores."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.inputs.text.bm25 import BM25, BM25Retriever, Hit
    from holdfast.inputs.text.dirichlet import DirichletLM
    from holdfast.inputs.text.edits import EDITS, WordSubstitution, edit_text
    from holdfast.inputs.text.established import EstablishedClassifier
    from holdfast.inputs.text.exploit import GRUPromptPolicy, PromptPolicy
    from holdfast.inputs.text.feature_selection import LanguageModelFeatureSelector
    from holdfast.inputs.text.greedy import GreedyTextAttack, TextAttackRun
    from holdfast.inputs.text.kernel_pooling import EncodedRanker, KernelPooling
    from holdfast.inputs.text.learning_to_rank import LinearRanker
    from holdfast.inputs.text.mcqa import MCQItem, MCQModel, MCQPrompt, MCQReport
    from holdfast.inputs.text.notes import NotedReader, NoteKind, NoteLoss, NotePrompt, Notes
    from holdfast.inputs.text.promotion import PromoteDocument, PromotionRun
    from holdfast.inputs.text.ranking import RobustnessProfile, robustness_profile
    from holdfast.inputs.text.ranking_metrics import ndcg, recall, reciprocal_rank
    from holdfast.inputs.text.ranking_set import Ranker, RankingSet
    from holdfast.inputs.text.redteam import DiversityReward
    from holdfast.inputs.text.slips import typos
    from holdfast.inputs.text.tokens import Vocabulary, pieces, sentences, words

__all__ = [
    "BM25",
    "EDITS",
    "BM25Retriever",
    "DirichletLM",
    "DiversityReward",
    "EncodedRanker",
    "EstablishedClassifier",
    "GRUPromptPolicy",
    "GreedyTextAttack",
    "Hit",
    "KernelPooling",
    "LanguageModelFeatureSelector",
    "LinearRanker",
    "MCQItem",
    "MCQModel",
    "MCQPrompt",
    "MCQReport",
    "NoteKind",
    "NoteLoss",
    "NotePrompt",
    "NotedReader",
    "Notes",
    "PromoteDocument",
    "PromotionRun",
    "PromptPolicy",
    "Ranker",
    "RankingSet",
    "RobustnessProfile",
    "TextAttackRun",
    "Vocabulary",
    "WordSubstitution",
    "edit_text",
    "ndcg",
    "pieces",
    "recall",
    "reciprocal_rank",
    "robustness_profile",
    "sentences",
    "typos",
    "words",
]

_HOMES = {
    "BM25": "holdfast.inputs.text.bm25",
    "BM25Retriever": "holdfast.inputs.text.bm25",
    "DirichletLM": "holdfast.inputs.text.dirichlet",
    "DiversityReward": "holdfast.inputs.text.redteam",
    "EDITS": "holdfast.inputs.text.edits",
    "EncodedRanker": "holdfast.inputs.text.kernel_pooling",
    "EstablishedClassifier": "holdfast.inputs.text.established",
    "GRUPromptPolicy": "holdfast.inputs.text.exploit",
    "GreedyTextAttack": "holdfast.inputs.text.greedy",
    "Hit": "holdfast.inputs.text.bm25",
    "KernelPooling": "holdfast.inputs.text.kernel_pooling",
    "LanguageModelFeatureSelector": "holdfast.inputs.text.feature_selection",
    "LinearRanker": "holdfast.inputs.text.learning_to_rank",
    "MCQItem": "holdfast.inputs.text.mcqa",
    "MCQModel": "holdfast.inputs.text.mcqa",
    "MCQPrompt": "holdfast.inputs.text.mcqa",
    "MCQReport": "holdfast.inputs.text.mcqa",
    "NoteKind": "holdfast.inputs.text.notes",
    "NoteLoss": "holdfast.inputs.text.notes",
    "NotePrompt": "holdfast.inputs.text.notes",
    "NotedReader": "holdfast.inputs.text.notes",
    "Notes": "holdfast.inputs.text.notes",
    "PromoteDocument": "holdfast.inputs.text.promotion",
    "PromotionRun": "holdfast.inputs.text.promotion",
    "PromptPolicy": "holdfast.inputs.text.exploit",
    "Ranker": "holdfast.inputs.text.ranking_set",
    "RankingSet": "holdfast.inputs.text.ranking_set",
    "RobustnessProfile": "holdfast.inputs.text.ranking",
    "TextAttackRun": "holdfast.inputs.text.greedy",
    "Vocabulary": "holdfast.inputs.text.tokens",
    "WordSubstitution": "holdfast.inputs.text.edits",
    "edit_text": "holdfast.inputs.text.edits",
    "ndcg": "holdfast.inputs.text.ranking_metrics",
    "pieces": "holdfast.inputs.text.tokens",
    "recall": "holdfast.inputs.text.ranking_metrics",
    "reciprocal_rank": "holdfast.inputs.text.ranking_metrics",
    "robustness_profile": "holdfast.inputs.text.ranking",
    "sentences": "holdfast.inputs.text.tokens",
    "typos": "holdfast.inputs.text.slips",
    "words": "holdfast.inputs.text.tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
