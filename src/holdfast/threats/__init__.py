"""Threats: what may be perturbed, and by how much."""

from holdfast.threats.balls import L0, L1, L2, Box, Linf
from holdfast.threats.base import Threat, Valid
from holdfast.threats.corruption import Corruption
from holdfast.threats.parse import parse
from holdfast.threats.places import Patch, Translation
from holdfast.threats.wordswap import WordSwap

__all__ = [
    "L0",
    "L1",
    "L2",
    "Box",
    "Corruption",
    "Linf",
    "Patch",
    "Threat",
    "Translation",
    "Valid",
    "WordSwap",
    "parse",
]
