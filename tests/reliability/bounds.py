"""Limits of a run: a server that hangs, or fails at once for ever, must not use up time and memory of this process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from reliability.memory import anonymous_bytes

LOOK_SECONDS = 0.5


class OutOfBounds(Exception):
    """The time or the memory of a run is used up; says which."""


@contextmanager
def bounded(seconds: float, megabytes: float) -> Iterator[None]:
    """Raise OutOfBounds within, in the main thread, wherever it waits, once either is exceeded."""
    ended, reason = threading.Event(), [""]
    until = time.monotonic() + seconds

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            used = anonymous_bytes(os.getpid()) / 1e6
            if time.monotonic() > until:
                reason[0] = f"not done after {seconds:g} s"
            elif used > megabytes:
                reason[0] = f"this process holds {used:.0f} MB, more than {megabytes:g}"
            if reason[0]:
                signal.pthread_kill(main, signal.SIGUSR1)
                return

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfBounds(reason[0])

    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGUSR1, stop)
    watch = threading.Thread(target=look, name="bounds", daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
        signal.signal(signal.SIGUSR1, before)
