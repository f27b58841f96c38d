"""Stops a tritonserver: asks its models to finish, and kills the processes that are left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from server.proc import group_alive


def drain(command: Path, folder: Path, grace_s: float, *, refuse: bool, enough: Callable[[], bool]) -> bool:
    """Run the `command` drain.py of a model repository on the folder where its models listen, until it ends or
    `enough` returns true. Returns whether all models have finished."""
    waiting = subprocess.Popen(
        [sys.executable, "-Es", str(command), str(folder), f"--grace={grace_s}", *["--refuse"] * refuse],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while waiting.poll() is None and not enough():
            time.sleep(0.02)
        return waiting.returncode == 0
    finally:
        waiting.kill()
        waiting.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the server's process group, stubs included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 1
    while group_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)


def describe(status: int) -> str:
    """An exit status of Popen in words."""
    if status >= 0:
        return f"exit status {status}"
    hint = " (as where memory runs out)" if status == -signal.SIGKILL else ""
    return f"signal {signal.Signals(-status).name}{hint}"
