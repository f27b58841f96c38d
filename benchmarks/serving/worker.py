"""A way to make images in a process of its own: it can be ended when it takes too long, and its memory is its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Generate = Callable[[Sequence[int], int], Array]
"""(seeds, steps) -> images [n, 240, 240]"""


class TookTooLong(Exception):
    """A call was given up, and its process ended."""


class Worker:
    """Runs `make(*arguments)`, and then what that returned, elsewhere. Close it."""

    def __init__(self, make: Callable[..., Generate], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks of gRPC's and OpenMP's threads
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make, arguments))
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The leader of its processes."""
        return self._process.pid or 0

    def generate(self, seeds: Sequence[int], steps: int, limit_s: float = 900.0) -> Array:
        """Images of `seeds`.

        Raises:
            TookTooLong: no answer within `limit_s`; the worker is of no more use.
            RuntimeError: with the traceback of what was raised there.
        """
        try:
            self._ours.send((list(seeds), steps))
            if not self._ours.poll(limit_s):
                self.close()
                raise TookTooLong(f"no answer within {limit_s:.0f} s")
            answer: Array | str = self._ours.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the worker's process is gone: {error!r}") from error
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """End the process and what it started."""
        self._ours.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()


def _work(pipe: Connection, make: Callable[..., Generate], arguments: tuple[Any, ...]) -> None:
    os.setsid()
    made: Generate | str
    try:
        made = make(*arguments)
    except Exception:
        made = traceback.format_exc()
    while True:
        try:
            seeds, steps = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(made if isinstance(made, str) else made(seeds, steps))
        except Exception:
            pipe.send(traceback.format_exc())
