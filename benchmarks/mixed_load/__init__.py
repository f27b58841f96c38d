"""Requests of 10, 25 and 50 steps side by side: latency of step-level batching against batching whole requests."""

import benchmarks.serving_code  # noqa: F401 - the modules here import mri_ldm
