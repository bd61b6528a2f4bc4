"""Telling inputs that do not belong: detectors, scores of logits, and metrics of detection with intervals."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.inputs.detection.expected_perturbation import ExpectedPerturbationScore
    from holdfast.inputs.detection.guard import Guard
    from holdfast.inputs.detection.layerwise import LayerwiseMahalanobis
    from holdfast.inputs.detection.learned_temperature import (
        AblatedEnergy,
        LearnedTemperatureHead,
        attach_temperature_head,
    )
    from holdfast.inputs.detection.linear_head import LinearHead
    from holdfast.inputs.detection.mahalanobis import MahalanobisDetector
    from holdfast.inputs.detection.mmd import DeepKernel, mmd_statistic
    from holdfast.inputs.detection.neighbours import NeighbourDetector
    from holdfast.inputs.detection.rectified import RectifiedEnergy
    from holdfast.inputs.detection.virtual_logit import VirtualLogit

__all__ = [
    "AblatedEnergy",
    "DeepKernel",
    "ExpectedPerturbationScore",
    "Guard",
    "LayerwiseMahalanobis",
    "LearnedTemperatureHead",
    "LinearHead",
    "MahalanobisDetector",
    "NeighbourDetector",
    "RectifiedEnergy",
    "VirtualLogit",
    "attach_temperature_head",
    "mmd_statistic",
]

_HOMES = {
    "AblatedEnergy": "holdfast.inputs.detection.learned_temperature",
    "DeepKernel": "holdfast.inputs.detection.mmd",
    "ExpectedPerturbationScore": "holdfast.inputs.detection.expected_perturbation",
    "Guard": "holdfast.inputs.detection.guard",
    "LayerwiseMahalanobis": "holdfast.inputs.detection.layerwise",
    "LearnedTemperatureHead": "holdfast.inputs.detection.learned_temperature",
    "LinearHead": "holdfast.inputs.detection.linear_head",
    "MahalanobisDetector": "holdfast.inputs.detection.mahalanobis",
    "NeighbourDetector": "holdfast.inputs.detection.neighbours",
    "RectifiedEnergy": "holdfast.inputs.detection.rectified",
    "VirtualLogit": "holdfast.inputs.detection.virtual_logit",
    "attach_temperature_head": "holdfast.inputs.detection.learned_temperature",
    "mmd_statistic": "holdfast.inputs.detection.mmd",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
