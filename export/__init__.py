"""A snapshot to a model repository. Run from a checkout: python -m export."""
