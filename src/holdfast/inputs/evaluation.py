"""Evaluations beyond a single number: what each asks, and what it needs of you.

    from holdfast.inputs.evaluation import EVALUATIONS, evaluations, patch_profile

`EVALUATIONS` maps the name of an evaluation to its question and its needs; `evaluations("a policy")` lists those for
what you have.  Every name is importable from here and is the function or class of the module that its entry names,
where its docstring says what goes in and what comes out.  What an audit asks of every model by itself (accuracy under
attack, detection, calibration, ...) are its probes, not listed here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from holdfast.core.errors import InputError

Need = Literal[
    "images",
    "images and masks",
    "images and a generator",
    "predictions",
    "inputs of any kind",
    "a detector",
    "a policy",
    "a text scorer",
    "a ranker",
    "a question set",
    "documents and questions",
    "a language model",
    "a text-conditioned denoiser",
    "a table and several models",
]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: `home` is its import path, `needs` what it runs on, `paper` its key in the catalogue."""

    home: str
    needs: Need
    question: str
    paper: str


_ATTACK, _TEXT = "holdfast.inputs.attack", "holdfast.inputs.text"

EVALUATIONS: Mapping[str, Evaluation] = MappingProxyType(
    {
        "patch_profile": Evaluation(
            f"{_ATTACK}.patch_profile.patch_profile",
            "images",
            "How often do adversarial and naturally corrupted patches fool it, on and off its token grid?",
            "patch-vit",
        ),
        "shift_consistency": Evaluation(
            f"{_ATTACK}.crop.shift_consistency",
            "images",
            "How often does its answer survive a move of one pixel that lets real pixels in?",
            "crop-selection",
        ),
        "adversarial_error_curve": Evaluation(
            f"{_ATTACK}.scaling.adversarial_error_curve",
            "inputs of any kind",
            "With which power of the radius does its adversarial error grow?",
            "logit-gap-scaling",
        ),
        "class_disparity": Evaluation(
            f"{_ATTACK}.disparity.class_disparity",
            "predictions",
            "How far apart are its best and worst served classes or groups, clean and attacked?",
            "accuracy-disparity",
        ),
        "shape_bias": Evaluation(
            f"{_ATTACK}.biases.shape_bias",
            "images and masks",
            "Does it go by shape or by texture where the two disagree?",
            "shape-bias",
        ),
        "oddity_accuracy": Evaluation(
            f"{_ATTACK}.observer.oddity_accuracy",
            "images",
            "Could an observer with a peripheral eye tell its metamers from the originals?",
            "metamers",
        ),
        "fmr": Evaluation(
            f"{_ATTACK}.oracle.fmr",
            "images and a generator",
            "How much of its accuracy is left on images that stronger models still see the same label in?",
            "oracle-robustness",
        ),
        "great_score": Evaluation(
            "holdfast.inputs.global_score.great_score",
            "images and a generator",
            "How large is its confidence margin over samples of a generative model?",
            "great-score",
        ),
        "attribute_report": Evaluation(
            "holdfast.inputs.corruption.attributes.attribute_report",
            "images and masks",
            "How much accuracy does it lose when background, size, position or direction of the object is edited?",
            "attribute-editing",
        ),
        "effective_robustness": Evaluation(
            "holdfast.inputs.boxes.effective.effective_robustness",
            "a detector",
            "How much of its accuracy under shift is not explained by its accuracy without?",
            "detector-shift",
        ),
        "false_positives_by_cause": Evaluation(
            "holdfast.inputs.boxes.causes.false_positives_by_cause",
            "a detector",
            "Which of its false alarms were set off by a nuisance such as fire?",
            "thermal-detect",
        ),
        "regret": Evaluation(
            f"{_ATTACK}.policy.regret",
            "a policy",
            "How much return does it lose on the same episodes when its observations are attacked?",
            "bifurcation",
        ),
        "perturbation_suite": Evaluation(
            f"{_TEXT}.stability.perturbation_suite",
            "a text scorer",
            "Do its scores move where they should, and stay where they should, when the text is edited?",
            "overstability",
        ),
        "overstability_curve": Evaluation(
            f"{_TEXT}.stability.overstability_curve",
            "a text scorer",
            "How few words keep the score?",
            "overstability",
        ),
        "robustness_profile": Evaluation(
            f"{_TEXT}.ranking.robustness_profile",
            "a ranker",
            "How does it fare in five tasks: variance, foreign queries, foreign corpora, edited queries and documents?",
            "ranking-robustness",
        ),
        "stress": Evaluation(
            f"{_TEXT}.mcqa.stress",
            "a question set",
            "Does it answer multiple-choice questions alike when options are moved, renamed or joined by distractors?",
            "sensor-mcqa",
        ),
        "noise_curve": Evaluation(
            f"{_TEXT}.noise_curve.noise_curve",
            "documents and questions",
            "How well does it answer, and how often does it say 'unknown', as retrieved documents become noise?",
            "chain-of-note",
        ),
        "coverage_report": Evaluation(
            f"{_TEXT}.redteam.coverage_report",
            "a language model",
            "How often, and in how many ways, do found prompts elicit what plain samples rarely show?",
            "explore-exploit",
        ),
        "attack_success": Evaluation(
            f"{_ATTACK}.prompt.attack_success",
            "a text-conditioned denoiser",
            "How often does a concept that it unlearned come back, without and with an adversarial prompt?",
            "unlearn-diff-atk",
        ),
        "factor_consistency": Evaluation(
            "holdfast.inputs.explanations.consistency.factor_consistency",
            "a table and several models",
            "Do accurate models agree on which factors matter most?",
            "factor-consistency",
        ),
    }
)


def evaluations(needs: str | None = None) -> dict[str, Evaluation]:
    """Evaluations by name, all or those that need `needs`.  Raises InputError for a need that none has."""
    found = {name: entry for name, entry in EVALUATIONS.items() if needs in (None, entry.needs)}
    if not found:
        known = ", ".join(sorted({repr(entry.needs) for entry in EVALUATIONS.values()}))
        raise InputError(f"no evaluation needs {needs!r}; they need {known}")
    return found


def __getattr__(name: str) -> Any:
    if name not in EVALUATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; see EVALUATIONS")
    module, _, attribute = EVALUATIONS[name].home.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return [*globals(), *EVALUATIONS]
