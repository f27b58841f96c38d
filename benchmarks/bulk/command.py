"""`brats-ldm` as a process of its own, as a user starts it, and what goes wrong while it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import ROOT
from server.process import TritonServer

POLL_SECONDS = 0.05


def start(*arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
    """Start `brats-ldm` with these arguments, and these variables in its environment."""
    command = [sys.executable, "-m", "brats_ldm_client", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "client")} | variables
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


def await_shards(folder: Path, process: subprocess.Popen[str], shards: int) -> int:
    """Wait until so many shards are written; returns how many there are then.

    Raises:
        RuntimeError: the command has ended before.
    """
    while (there := len(list(folder.glob("shard-??????.json")))) < shards:
        if process.poll() is not None:
            end(process)
            raise RuntimeError(f"the run ended before shard {shards} of those that it was to write")
        time.sleep(POLL_SECONDS)
    return there


def kill(server: TritonServer) -> None:
    """Kill a server and its children at once."""
    for pid in [server.pid, *server.stubs()]:
        os.kill(pid, signal.SIGKILL)
