"""Randomized smoothing: certificates from the votes of a model on noisy copies of an input."""

from holdfast.inputs.smoothing.dual import DualSmoothed
from holdfast.inputs.smoothing.gaussian import (
    Smoothed,
    SmoothedCertificate,
    average_certified_radius,
    certified_accuracy,
    certified_curve,
)
from holdfast.inputs.smoothing.lvm import MarginSmoothed
from holdfast.inputs.smoothing.simplex import SimplexMap
from holdfast.inputs.smoothing.stopping import FixedN, Planned, Precision, RadiusTarget, Stopping

__all__ = [
    "DualSmoothed",
    "FixedN",
    "MarginSmoothed",
    "Planned",
    "Precision",
    "RadiusTarget",
    "SimplexMap",
    "Smoothed",
    "SmoothedCertificate",
    "Stopping",
    "average_certified_radius",
    "certified_accuracy",
    "certified_curve",
]
