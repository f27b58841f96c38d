"""What fewer steps cost in quality, and what they save in time."""

import benchmarks.serving_code  # noqa: F401 - the modules here import mri_ldm
