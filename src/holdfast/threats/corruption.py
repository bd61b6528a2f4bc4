"""A natural corruption as a threat: its name and strength; the pixels are made by `holdfast.inputs.corruption`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from holdfast.core.errors import InputError
from holdfast.threats.base import Threat

#: The fifteen families of ImageNet-C (Hendrycks and Dietterich, 2019), in the order tables list them.
FAMILIES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)


@dataclass(frozen=True, eq=False)
class Corruption(Threat):
    """One family of natural corruption at `severity` 1 to 5; random, so it has neither projection nor support
    function.
    """

    name: str
    severity: int

    def __post_init__(self) -> None:
        if self.name not in FAMILIES:
            raise InputError(f"unknown corruption {self.name!r}; choose from {', '.join(FAMILIES)}")
        if not 1 <= self.severity <= 5:
            raise InputError(f"the severity of a corruption is 1 to 5, got {self.severity}")

    @property
    def radius(self) -> float:
        return float(self.severity)

    def scaled(self, radius: float | int) -> Corruption:
        return Corruption(self.name, min(5, max(1, math.floor(radius + 0.5))))

    def describe(self) -> str:
        return f"{self.name.replace('_', ' ')} of severity {self.severity} out of 5"
