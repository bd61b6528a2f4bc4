"""Papers of the group `inputs`: catalogue entries and their checks."""
