"""Nouns every floor shares: errors, estimates, findings, exhibits, seeds, progress, intervals."""
