"""Telling inputs that do not belong: detectors, scores of logits, and metrics of detection with intervals."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.inputs.detection.layerwise import LayerwiseMahalanobis
    from holdfast.inputs.detection.mahalanobis import MahalanobisDetector

__all__ = ["LayerwiseMahalanobis", "MahalanobisDetector"]

_HOMES = {
    "LayerwiseMahalanobis": "holdfast.inputs.detection.layerwise",
    "MahalanobisDetector": "holdfast.inputs.detection.mahalanobis",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
