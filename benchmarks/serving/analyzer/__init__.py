"""Triton's perf_analyzer against the real server."""
