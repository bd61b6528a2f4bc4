"""The probes, one question a module, in the order a report tells them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import cast

from holdfast.audit.probe import Probe
from holdfast.core.errors import InputError

#: Name of the probe -> class in the module of that name.
PROBES = {
    "accuracy": "AccuracyProbe",
    "calibration": "CalibrationProbe",
    "adversarial": "AdversarialProbe",
    "certified": "CertifiedProbe",
    "availability": "AvailabilityProbe",
    "corruption": "CorruptionProbe",
    "detection": "DetectionProbe",
    "labels": "LabelsProbe",
    "leakage": "LeakageProbe",
    "weights": "WeightsProbe",
    "conformal": "ConformalProbe",
    "disparity": "DisparityProbe",
}


def chosen_names(names: Sequence[str] | None = None) -> list[str]:
    """`names` in report order, each once; all when None.  Raises InputError on an unknown name."""
    wanted = list(PROBES) if names is None else list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in PROBES]
    if unknown or not wanted:
        got = ", ".join(map(repr, unknown)) or "none"
        raise InputError(f"unknown probe {got}; choose from {', '.join(PROBES)}")
    return [name for name in PROBES if name in wanted]


def load_probes(names: Sequence[str] | None = None) -> list[Probe]:
    """The probes called `names`, in report order; all when None.  Raises InputError on an unknown name."""
    return [
        cast(Probe, getattr(import_module(f"holdfast.audit.probes.{name}"), PROBES[name])())
        for name in chosen_names(names)
    ]
