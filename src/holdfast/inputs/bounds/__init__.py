"""Certified bounds on what a network computes when its input moves inside a set."""

from holdfast.inputs.bounds.bounding import METHODS, Method, bounds, certify
from holdfast.inputs.bounds.graph import Graph, capture, unsupported
from holdfast.inputs.bounds.region import BoundCertificates, Bounds, Region, margin_spec

__all__ = [
    "METHODS",
    "BoundCertificates",
    "Bounds",
    "Graph",
    "Method",
    "Region",
    "bounds",
    "capture",
    "certify",
    "margin_spec",
    "unsupported",
]
