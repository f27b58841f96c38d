"""Work in other threads: a function that takes items as they come, and results in the order of their items."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END, _ABANDON = object(), object()
_POLL = 0.5  # seconds: a thread that waits looks this often whether the other has failed


class _Abandoned(Exception):
    """Ends the function of the thread when the block has failed."""


class Background(Generic[T]):
    """`consume` runs in a thread, with an iterator over what `put` gets. A full queue makes `put` wait.

    As a context manager: the block's end waits for the thread. An error in the block ends `consume`, after what it has
    been given, with an exception out of its iterator. An error of `consume` comes out of `put` or of the block's end.
    """

    def __init__(self, consume: Callable[[Iterator[T]], None], length: int) -> None:
        self._consume = consume
        self._queue: queue.Queue[Any] = queue.Queue(length)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._consume(self._items())
        except _Abandoned:
            pass
        except BaseException as error:  # raised again in the thread that puts
            self._error = error

    def _items(self) -> Iterator[T]:
        while (item := self._queue.get()) is not _END:
            if item is _ABANDON:
                raise _Abandoned
            yield item

    def put(self, item: T) -> None:
        """Hand over an item; raises what has ended the thread."""
        self._put(item)
        self._check()

    def _put(self, item: object) -> None:
        while self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=_POLL)
                return

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Background[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._put(_END if kind is None else _ABANDON)
        self._thread.join()
        if kind is None:
            self._check()


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """As `map`, in several threads, a few items ahead."""
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
