"""Cascades of models that leave early where more members could not change a threshold decision."""

from holdfast.inputs.cascades.cost import CostCurve, cost_curve
from holdfast.inputs.cascades.stream import stream
from holdfast.inputs.cascades.tasks import TPR, CoverageAtRisk, RiskAtCoverage, Task
from holdfast.inputs.cascades.window import CascadeResult, Window, WindowCascade

__all__ = [
    "TPR",
    "CascadeResult",
    "CostCurve",
    "CoverageAtRisk",
    "RiskAtCoverage",
    "Task",
    "Window",
    "WindowCascade",
    "cost_curve",
    "stream",
]
