"""Shows calls of the networks as child spans of a request. Knows only the traces of Triton.

Triton ends the trace of a request once `execute` has returned, and a call with an ended trace crashes the server. So
`execute` of a traced request returns only when the request is answered. Meanwhile the loop goes on with all admitted
requests, and only new requests wait in Triton. So one request is traced at a time, and a shared call belongs to its
trace. If it takes longer than the parameter `trace_hold`, its later calls have no spans, and new requests come in.
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
        """In the block, calls for `job` get `trace`. The end of the block waits for such a call."""
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
