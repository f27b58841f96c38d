"""A snapshot, or MONAI's weights, to a model repository. Run from a checkout: `python -m export --help`."""
