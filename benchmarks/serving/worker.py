"""Contestants as processes: one in a server, and one that runs a function and is ended when it takes too long."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Generate = Callable[[Sequence[int], int], Array]
"""(seeds, steps) -> images [n, 240, 240]"""
_generate: Generate


@dataclass(frozen=True)
class Running:
    """A contestant in a group of processes of its own, whose leader is `pid`. `close` ends them."""

    pid: int
    generate: Generate
    close: Callable[[], object]


def one_request_each(image: Callable[[int, int], Array]) -> Generate:
    """All seeds at once, each in a request of its own; `image` makes one of (seed, steps)."""

    def generate(seeds: Sequence[int], steps: int) -> Array:
        with ThreadPoolExecutor(len(seeds)) as pool:
            return np.stack(list(pool.map(lambda seed: image(seed, steps), seeds)))

    return generate


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
