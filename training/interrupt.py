"""Ctrl-C and SIGTERM end a run between two iterations, with everything saved."""

import signal
from types import FrameType

from training.processes import Processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """While entered, the first SIGINT or SIGTERM is only noted; a second one ends the process as usual."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._noted = False

    def __enter__(self) -> "Interrupt":
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
        self._restore()

    def asked(self) -> bool:
        """Whether the first process was asked to stop: all processes get the same answer, at the same iteration."""
        return bool(self._processes.agree(self._noted))
