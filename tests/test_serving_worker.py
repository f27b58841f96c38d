"""Rivals in processes of their own: ended when they take too long, alive after an error. Imports nothing heavy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving.worker import Array, Generate, TookTooLong, Worker


def sleeper(seconds: float) -> Generate:
    def generate(seeds: Sequence[int], steps: int) -> Array:
        if steps == 0:
            raise ValueError("no steps")
        time.sleep(seconds)
        return np.array(seeds)

    return generate


def test_a_worker_that_takes_too_long_is_ended() -> None:
    worker = Worker(sleeper, 60.0)
    began = time.monotonic()
    with pytest.raises(TookTooLong, match="within 1 s"):
        worker.generate([1], 1, limit_s=1)
    assert time.monotonic() - began < 10
    assert not Path("/proc", str(worker.pid)).exists()
    with pytest.raises(RuntimeError, match="the worker's process is gone"):
        worker.generate([1], 1)
    worker.close()


def test_a_worker_answers_after_an_error() -> None:
    worker = Worker(sleeper, 0.0)
    with pytest.raises(RuntimeError, match="ValueError: no steps"):
        worker.generate([1], 0)
    assert worker.generate([5, 6], 1).tolist() == [5, 6]
    worker.close()
