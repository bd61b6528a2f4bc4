"""Threats: what may be perturbed, and by how much."""
