"""Ctrl-C and SIGTERM end a run between two iterations, with everything saved."""

import signal
from types import FrameType

from training.processes import Processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """In this context the first SIGINT or SIGTERM is only recorded; a second one ends the process as usual."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._received = False

    def __enter__(self) -> "Interrupt":
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._record)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        self._restore()

    def asked(self) -> bool:
        """Whether the first process got a signal. All processes get the same answer at the same iteration."""
        return bool(self._processes.agree(self._received))
