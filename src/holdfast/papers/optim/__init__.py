"""Papers of the group `optim`: catalogue entries and their checks."""
