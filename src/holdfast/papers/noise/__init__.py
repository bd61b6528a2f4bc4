"""Papers of the group `noise`: catalogue entries and their checks."""
