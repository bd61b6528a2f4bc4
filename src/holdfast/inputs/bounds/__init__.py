"""Certified bounds on what a network computes when its input moves inside a set."""

from holdfast.inputs.bounds.bounding import METHODS, Method, bounds, certify
from holdfast.inputs.bounds.graph import Graph, capture, unsupported
from holdfast.inputs.bounds.region import BoundCertificates, Bounds, Region, margin_spec
from holdfast.inputs.bounds.verify import Counterexample, Unknown, Verdict, Verified, minimum, verify
from holdfast.inputs.bounds.vnnlib import Property
from holdfast.inputs.bounds.weights import WeightPerturbation, weight_bounds

__all__ = [
    "METHODS",
    "BoundCertificates",
    "Bounds",
    "Counterexample",
    "Graph",
    "Method",
    "Property",
    "Region",
    "Unknown",
    "Verdict",
    "Verified",
    "WeightPerturbation",
    "bounds",
    "capture",
    "certify",
    "margin_spec",
    "minimum",
    "unsupported",
    "verify",
    "weight_bounds",
]
