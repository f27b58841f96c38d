"""Calls of the networks as child spans of the request that they are made for. Knows Triton's traces and nothing else.

Triton ends the trace of a request once `execute` has returned, and a call that is handed an ended trace crashes the
server. So a traced request holds `execute` until it is answered: the loop goes on with everything that is there, only
new requests wait in Triton. That leaves one traced request at a time, and no question whose span a shared call is.
Where it takes longer than the parameter `trace_hold`, the rest of it has no spans, and others are let in again.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .job_queue import Job, Row


def trace_of(request: Any) -> Any | None:
    """The trace of a request that Triton has chosen for tracing in mode `opentelemetry`; None for all others.

    In mode `triton` a model cannot see which requests are traced, so their traces end with `execute`.
    """
    trace = request.trace()
    return trace if trace.get_context() else None


class Tracer:
    """Hands the trace of a held request to the calls that are made for it."""

    def __init__(self) -> None:
        self._rows: Sequence[Row] = ()
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._trace: Any = None

    def calling(self, rows: Sequence[Row]) -> None:
        """The next calls of networks are made for these rows."""
        self._rows = rows

    @contextmanager
    def follow(self, job: Job, trace: Any) -> Iterator[None]:
        """Within, `trace` is that of `job`. Leaving waits for a call that has it."""
        with self._lock:
            self._job, self._trace = job, trace
        try:
            yield
        finally:
            with self._lock:
                self._job = self._trace = None

    @contextmanager
    def current(self) -> Iterator[Any | None]:
        """The trace that the call now made belongs to, if any; it does not end within."""
        with self._lock:
            followed = self._job is not None and any(row.job is self._job for row in self._rows)
            yield self._trace if followed else None
