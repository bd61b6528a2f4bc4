"""Models that explain a class by human concepts, and stay consistent when somebody corrects one."""

from holdfast.inputs.concepts.bottleneck import ConceptBottleneck
from holdfast.inputs.concepts.classifier import EnergyConceptClassifier
from holdfast.inputs.concepts.energy import EnergyConceptModel
from holdfast.inputs.concepts.joint import ConceptPosterior, JointTable

__all__ = ["ConceptBottleneck", "ConceptPosterior", "EnergyConceptClassifier", "EnergyConceptModel", "JointTable"]
