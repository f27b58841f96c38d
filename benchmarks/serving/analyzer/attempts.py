"""Runs perf_analyzer to its end, and again where it never ends.

2.51 misses a request that is answered before it begins to count. Then it waits for that request for ever.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

LOOK_S = 10.0
"""Between two looks at a process that runs."""
ATTEMPTS = 3


def run_to_end(
    command: list[str],
    folder: Path,
    env: Mapping[str, str],
    answers: Callable[[], int],
    requests: int,
    timeout_s: float | None = None,
) -> subprocess.CompletedProcess[str] | None:
    """The process once it has ended; None if ATTEMPTS processes have waited for ever.

    answers: the number of requests that the server has answered. A process still running LOOK_S after the last of its
    `requests` was answered is killed.

    Raises:
        subprocess.TimeoutExpired: it has not ended after `timeout_s`.
    """
    ends = time.monotonic() + (timeout_s or math.inf)
    for _ in range(ATTEMPTS):
        if done := _attempt(command, folder, env, answers, answers() + requests, ends):
            return done
    return None


def _attempt(
    command: list[str], folder: Path, env: Mapping[str, str], answers: Callable[[], int], expected: int, ends: float
) -> subprocess.CompletedProcess[str] | None:
    pipe, waits = subprocess.PIPE, False
    with subprocess.Popen(command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            while True:
                try:
                    output, errors = process.communicate(timeout=min(LOOK_S, max(0.1, ends - time.monotonic())))
                    return subprocess.CompletedProcess(command, process.returncode, output, errors)
                except subprocess.TimeoutExpired:
                    if time.monotonic() >= ends:
                        raise
                    if waits:
                        return None
                    waits = answers() >= expected
        finally:
            process.kill()  # does nothing if it has ended
