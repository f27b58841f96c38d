"""Sends the answers of one stream from a separate thread, so that a client that does not read delays no other.

Knows nothing of Triton. Some servers let a sender wait for as long as the client does not read (Triton from 25.03 on
with --grpc-max-response-pool-size); the sampling loop, which serves everybody, must not be that sender.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

LONGEST_QUEUE = 16
"""Previews that wait to be sent; the oldest gives way to one more."""


class Outboxes:
    """Counts the outboxes that have something left to send."""

    def __init__(self) -> None:
        self._open = 0
        self._changed = threading.Condition()

    def opened(self) -> None:
        """One more."""
        with self._changed:
            self._open += 1

    def closed(self) -> None:
        """One less."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all is sent, at most `seconds`; returns whether it is. Slow clients get no more time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, seconds)


class Outbox:
    """Sends previews in order, then one last answer. Neither method waits or raises; `send` must not raise."""

    def __init__(self, outboxes: Outboxes) -> None:
        self._outboxes = outboxes
        self._previews: deque[Callable[[], object]] = deque(maxlen=LONGEST_QUEUE)
        self._last: Callable[[], object] | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def preview(self, send: Callable[[], object]) -> None:
        """Call `send` soon; never if the client reads so slowly that LONGEST_QUEUE newer previews wait."""
        self._put(lambda: self._previews.append(send))

    def last(self, send: Callable[[], object], *, instead: bool = False, pause: float = 0.0) -> None:
        """Call `send` after the previews, or `instead` of those that wait, and `pause` seconds later; then end."""

        def pause_and_send() -> None:
            time.sleep(pause)
            send()

        def put() -> None:
            if instead:
                self._previews.clear()
            self._last = pause_and_send

        self._put(put)

    def _put(self, change: Callable[[], object]) -> None:
        with self._changed:
            change()
            self._changed.notify()
            if self._thread is None:
                self._outboxes.opened()
                self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._previews or self._last)
                    is_last = not self._previews
                    send = self._last if is_last else self._previews.popleft()
                assert send is not None
                send()
                if is_last:
                    return
        finally:
            self._last = None  # a circle of references, whose tensors would wait for the garbage collector
            self._outboxes.closed()
