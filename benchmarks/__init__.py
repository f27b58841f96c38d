"""Measurements, each with the command that repeats it; README.md holds the tables."""
