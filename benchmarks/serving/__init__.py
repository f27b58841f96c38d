"""The server and what a user would run instead, in one harness; `python -m benchmarks.serving`."""
