"""Triton's perf_analyzer: fetched, run and read by one command; and as a scenario of the benchmark (`drive`)."""
