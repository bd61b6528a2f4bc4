"""Randomized smoothing: certificates from the votes of a model on noisy copies of an input."""
