"""Rivals in processes of their own: ended when they take too long, alive after an error. Imports nothing heavy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving.bench import AMOUNTS, Bench
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


def test_who_has_no_turn_rests() -> None:
    """A server that waits looks for requests all the time, which slows down whoever is timed."""
    bench = Bench("small", AMOUNTS["small"], Path(), Path())
    names = ("one", "other")
    workers = {name: bench.contestant(name, lambda: Worker(sleeper, 0.0)) for name in names}
    try:
        for worker in workers.values():
            worker.generate([1], 1)
        bench.rest()
        with bench.turn("one") as awake:
            assert awake is workers["one"]
            assert list(awake.generate([1], 1)) == [1]
            assert halted(workers["other"].pid)
        assert halted(workers["one"].pid)
        assert bench.contestant("other", lambda: workers["other"]).generate([2], 1) == [2]
    finally:
        bench.close()


def halted(pid: int) -> bool:
    """Within five seconds: a signal does not take effect at once."""
    deadline = time.monotonic() + 5
    while Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "T":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
