"""Neural processes: models that are given a few points of a function and say what the rest may look like."""

from holdfast.inputs.processes.martingale import MartingaleNeuralProcess
from holdfast.inputs.processes.meta import MetaRegressor
from holdfast.inputs.processes.neural import ConditionalNeuralProcess
from holdfast.inputs.processes.predictive import FunctionPosterior
from holdfast.inputs.processes.tasks import GaussianProcessTasks, Tasks, exact_log_likelihoods, gathered

__all__ = [
    "ConditionalNeuralProcess",
    "FunctionPosterior",
    "GaussianProcessTasks",
    "MartingaleNeuralProcess",
    "MetaRegressor",
    "Tasks",
    "exact_log_likelihoods",
    "gathered",
]
