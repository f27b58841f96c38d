"""The server and what a user would run instead, in one harness; `python -m benchmarks.serving`."""

import benchmarks.serving_code  # noqa: F401 - the modules here import mri_ldm
