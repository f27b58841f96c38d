"""`brats-ldm` as a process of its own, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks import ROOT


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start `brats-ldm` with these arguments."""
    command = [sys.executable, "-m", "brats_ldm_client", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "client")}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> str:
    """Wait; what it printed.

    Raises:
        RuntimeError: it failed; with its last words.
    """
    try:
        printed, complaints = process.communicate()
    finally:
        process.kill()  # if this process is stopped
    if process.returncode:
        raise RuntimeError(f"brats-ldm ended with {process.returncode}: {complaints.strip()[-500:]}")
    return printed.strip()
