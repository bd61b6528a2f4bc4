"""Text that moves: edits of words, attacks on classifiers and rankers, attributions, and the stability of scores."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.inputs.text.attribution import Attribution, IntegratedGradients, leave_one_out, per_word
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
    from holdfast.inputs.text.stability import (
        SUITE,
        Oversensitivity,
        OverstabilityCurve,
        Perturbation,
        SuiteResult,
        bag_of_words_fidelity,
        oversensitivity,
        overstability_curve,
        perturbation_suite,
    )
    from holdfast.inputs.text.tokens import Vocabulary, pieces, sentences, words
    from holdfast.inputs.text.triggers import Trigger, UniversalTrigger
    from holdfast.inputs.text.unusual import AttributionDetector, FluencyDetector

__all__ = [
    "BM25",
    "EDITS",
    "SUITE",
    "Attribution",
    "AttributionDetector",
    "BM25Retriever",
    "DirichletLM",
    "DiversityReward",
    "EncodedRanker",
    "EstablishedClassifier",
    "FluencyDetector",
    "GRUPromptPolicy",
    "GreedyTextAttack",
    "Hit",
    "IntegratedGradients",
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
    "Oversensitivity",
    "OverstabilityCurve",
    "Perturbation",
    "PromoteDocument",
    "PromotionRun",
    "PromptPolicy",
    "Ranker",
    "RankingSet",
    "RobustnessProfile",
    "SuiteResult",
    "TextAttackRun",
    "Trigger",
    "UniversalTrigger",
    "Vocabulary",
    "WordSubstitution",
    "bag_of_words_fidelity",
    "edit_text",
    "leave_one_out",
    "ndcg",
    "oversensitivity",
    "overstability_curve",
    "per_word",
    "perturbation_suite",
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
    "EDITS": "holdfast.inputs.text.edits",
    "SUITE": "holdfast.inputs.text.stability",
    "Attribution": "holdfast.inputs.text.attribution",
    "AttributionDetector": "holdfast.inputs.text.unusual",
    "BM25Retriever": "holdfast.inputs.text.bm25",
    "DirichletLM": "holdfast.inputs.text.dirichlet",
    "DiversityReward": "holdfast.inputs.text.redteam",
    "EncodedRanker": "holdfast.inputs.text.kernel_pooling",
    "EstablishedClassifier": "holdfast.inputs.text.established",
    "FluencyDetector": "holdfast.inputs.text.unusual",
    "GRUPromptPolicy": "holdfast.inputs.text.exploit",
    "GreedyTextAttack": "holdfast.inputs.text.greedy",
    "Hit": "holdfast.inputs.text.bm25",
    "IntegratedGradients": "holdfast.inputs.text.attribution",
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
    "Oversensitivity": "holdfast.inputs.text.stability",
    "OverstabilityCurve": "holdfast.inputs.text.stability",
    "Perturbation": "holdfast.inputs.text.stability",
    "PromoteDocument": "holdfast.inputs.text.promotion",
    "PromotionRun": "holdfast.inputs.text.promotion",
    "PromptPolicy": "holdfast.inputs.text.exploit",
    "Ranker": "holdfast.inputs.text.ranking_set",
    "RankingSet": "holdfast.inputs.text.ranking_set",
    "RobustnessProfile": "holdfast.inputs.text.ranking",
    "SuiteResult": "holdfast.inputs.text.stability",
    "TextAttackRun": "holdfast.inputs.text.greedy",
    "Trigger": "holdfast.inputs.text.triggers",
    "UniversalTrigger": "holdfast.inputs.text.triggers",
    "Vocabulary": "holdfast.inputs.text.tokens",
    "WordSubstitution": "holdfast.inputs.text.edits",
    "bag_of_words_fidelity": "holdfast.inputs.text.stability",
    "edit_text": "holdfast.inputs.text.edits",
    "leave_one_out": "holdfast.inputs.text.attribution",
    "ndcg": "holdfast.inputs.text.ranking_metrics",
    "oversensitivity": "holdfast.inputs.text.stability",
    "overstability_curve": "holdfast.inputs.text.stability",
    "per_word": "holdfast.inputs.text.attribution",
    "perturbation_suite": "holdfast.inputs.text.stability",
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
