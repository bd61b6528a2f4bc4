"""Attacks: search a threat's set around an input for a point where the model errs."""
