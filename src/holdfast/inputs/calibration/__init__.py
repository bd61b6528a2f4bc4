"""Is a forecast of 80 % right 80 % of the time?  Balance score, calibration errors, Brier score, temperature."""

from holdfast.inputs.calibration.balance import (
    BalancePart,
    BalanceProfile,
    balance_profile,
    balance_score,
    balance_test,
    gains,
)
from holdfast.inputs.calibration.reliability import (
    BrierParts,
    ReliabilityBins,
    brier_parts,
    classwise_calibration_error,
    expected_calibration_error,
    reliability_bins,
)
from holdfast.inputs.calibration.temperature import TemperatureScaled, fit_temperature

__all__ = [
    "BalancePart",
    "BalanceProfile",
    "BrierParts",
    "ReliabilityBins",
    "TemperatureScaled",
    "balance_profile",
    "balance_score",
    "balance_test",
    "brier_parts",
    "classwise_calibration_error",
    "expected_calibration_error",
    "fit_temperature",
    "gains",
    "reliability_bins",
]
