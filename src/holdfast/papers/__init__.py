"""The catalogue of papers: what was built from each, its claim, and the check that reproduces it."""
