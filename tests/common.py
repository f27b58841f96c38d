"""Constants and helpers of the tests."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHANTOM_SEED = 100


def run_python(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in the checkout, as a user types it."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
