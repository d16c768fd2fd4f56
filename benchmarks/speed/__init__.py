"""Timings against other implementations, as ratios within one run."""
