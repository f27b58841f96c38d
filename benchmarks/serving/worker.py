"""A way to make images in a process of its own: it can be ended when it takes too long, and its memory is its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from concurrent.futures import TimeoutError as NoAnswer
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Generate = Callable[[Sequence[int], int], Array]
"""(seeds, steps) -> images [n, 240, 240]"""
_generate: Generate


class TookTooLong(Exception):
    """A call was given up, and its process ended."""


class Worker:
    """Runs `make(*arguments)`, and then its result, in another process. Close it."""

    def __init__(self, make: Callable[..., Generate], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks of gRPC's and OpenMP's threads
        self._pool = ProcessPoolExecutor(1, context, initializer=os.setsid)
        self.pid = self._pool.submit(os.getpid).result()  # the leader of its processes
        self._made = self._pool.submit(_make, make, arguments)

    def generate(self, seeds: Sequence[int], steps: int, limit_s: float = 900.0) -> Array:
        """Images of `seeds`.

        Raises:
            TookTooLong: no answer within `limit_s`; the worker is of no more use.
            RuntimeError: with what was raised there.
        """
        try:
            answer = self._pool.submit(_call, list(seeds), steps)
            self._made.result(limit_s)
            return answer.result(limit_s)
        except NoAnswer as error:
            self.close()
            raise TookTooLong(f"no answer within {limit_s:.0f} s") from error
        except BrokenExecutor as error:
            raise RuntimeError(f"the worker's process is gone: {error!r}") from error
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """End the process and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._pool.shutdown()


def _make(make: Callable[..., Generate], arguments: tuple[Any, ...]) -> None:
    global _generate
    _generate = make(*arguments)


def _call(seeds: Sequence[int], steps: int) -> Array:
    return _generate(seeds, steps)
