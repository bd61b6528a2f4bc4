"""Ours and a peer, side by side: `python -m benchmarks` runs, checks, times and writes the table."""
