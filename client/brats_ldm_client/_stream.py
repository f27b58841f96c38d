"""One request on one bidirectional stream of tritonclient's sync client, as an iterator that can be closed.

tritonclient's stream calls back from its own thread. Only this file deals with its three traps.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from tritonclient.utils import InferenceServerException

from ._errors import DeadlineExceeded, ProtocolError
from ._options import Options
from ._protocol import STREAM, has_output, parse_progress, parse_rows
from ._request import Request
from ._schedule import generation_of
from ._types import Generation, Progress

_POLL = 0.5
_HANG_UP = 1.0
_GRACE = 2.0  # seconds past the deadline before the client stops waiting for gRPC's own report of it


class ResponseStream:
    """Iterate for results; errors raise. `close` tells the server to stop unless it has answered.

    answered: whether the last answer has come. An error is one; for a result, the caller sets it.
    """

    def __init__(self, grpc_client: Any, options: Options, call: dict[str, Any]) -> None:
        self._grpc, self._options = grpc_client, options
        self._events: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._deadline = time.monotonic() + options.timeout + _GRACE
        self.answered = False
        grpc_client.start_stream(callback=self._on_event, **options.stream_call())
        try:
            grpc_client.async_stream_infer(**call)
        except InferenceServerException:
            self.close()
            # A stream that found no server says so to the callback, and here only that it is of no use.
            with contextlib.suppress(queue.Empty):
                _, cause = self._events.get(timeout=_POLL)
                raise cause or ProtocolError(f"{STREAM} answered before it was asked") from None
            raise
        except BaseException:
            self.close()
            raise

    def _on_event(self, result: Any, error: BaseException | None) -> None:
        self._thread = threading.current_thread()
        self._events.put((result, error))

    def __iter__(self) -> Iterator[Any]:
        while True:
            result, error = self._next()
            if error is not None:
                self.answered = True
                raise error
            yield result

    def _next(self) -> tuple[Any, BaseException | None]:
        while True:
            ended = self._thread is not None and not self._thread.is_alive()
            late = time.monotonic() > self._deadline
            # What has arrived counts, however late the caller comes for it.
            with contextlib.suppress(queue.Empty):
                return self._events.get(timeout=0 if ended or late else _POLL)
            # Trap 1: a stream that the server closes without an error calls nobody back.
            if ended:
                raise ProtocolError(f"{STREAM} ended the stream without an image")
            if late:
                break
        raise DeadlineExceeded(f"{STREAM} at {self._options.url} sent nothing within {self._options.timeout:g} s")

    def close(self) -> None:
        """Cancel what is still running, and hang up; returns at once, or within _HANG_UP seconds."""
        requests = getattr(getattr(self._grpc, "_stream", None), "_request_queue", None)
        if requests is not None and self.answered and self._thread is not None:
            # Not by cancelling: there is nothing left, and Triton before 24.12 may crash on it (server issue 7368).
            requests.put(None)
            self._thread.join(_HANG_UP)
        # Trap 2: without cancel_requests this would wait for the server to finish the work.
        self._grpc.stop_stream(cancel_requests=True)
        # Trap 3: a cancelled stream leaves gRPC's sending thread waiting on the request queue for ever.
        if requests is not None:
            requests.put(None)


def stream_event(result: Any, request: Request, seconds: float) -> Progress | Generation:
    """One answer of a stream: the last one holds the images."""
    if has_output(result, "image"):
        return generation_of(request, parse_rows(result, request), seconds)
    return parse_progress(result, request)
