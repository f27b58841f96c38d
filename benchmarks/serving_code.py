"""Where things are, and the serving code as the package `mri_ldm`, since Triton's "1" is no Python name."""

import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO_SNAPSHOT = ROOT / "runs/demo/diffusion/snapshot"  # of `make demo-weights`

if "mri_ldm" not in sys.modules:
    _package = types.ModuleType("mri_ldm")
    _package.__path__ = [str(ROOT / "model_repository" / "mri_ldm" / "1")]
    sys.modules["mri_ldm"] = _package
