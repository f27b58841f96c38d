"""What was measured, as records, and the commands that measure it again."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO_SNAPSHOT = ROOT / "runs/demo/diffusion/snapshot"  # of `make demo-weights`
COMMITTED = ROOT / "model_repository"  # with the demo weights

# The version folder, as Triton's stub has it on its path: here is the package `mri_ldm`.
sys.path.append(str(COMMITTED / "mri_ldm" / "1"))
