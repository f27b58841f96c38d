"""Constants and helpers of the tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHANTOM_SEED = 100


def run_python(*arguments: str, timeout: float = 120, threads: int | None = None) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in the checkout, as a user types it; `threads` of OpenMP, None = as the environment says."""
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)
