"""Requests of 10, 25 and 50 steps side by side: latency of step-level batching against batching whole requests."""
