"""perf_analyzer that never ends, with processes in its place: the fault is a race and cannot be called up."""

import os
import subprocess
from itertools import count
from pathlib import Path

import pytest

from benchmarks.serving.analyzer import attempts

HANGS_ONCE = ["/bin/sh", "-c", "[ -e started ] && echo done || { touch started; exec sleep 60; }"]
HANGS = ["/bin/sleep", "60"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "LOOK_S", 0.2)


def test_a_process_that_waits_for_nothing_is_started_again(tmp_path: Path) -> None:
    done = attempts.run_to_end(HANGS_ONCE, tmp_path, os.environ, count(step=5).__next__, requests=5)
    assert done is not None
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_one_that_never_ends_is_given_up(tmp_path: Path) -> None:
    assert attempts.run_to_end(HANGS, tmp_path, os.environ, count(step=5).__next__, requests=5) is None


def test_one_whose_requests_are_not_answered_goes_on_until_its_time_is_over(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        attempts.run_to_end(HANGS, tmp_path, os.environ, lambda: 4, requests=5, timeout_s=1)
