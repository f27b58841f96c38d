"""The answers of a request: tensors that were asked for, or an error with the right code."""

import contextlib
import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from .failures import NetworkError, NetworkGone, ServerStopping
from .line import Array, Closed, Overloaded
from .metrics import Metrics
from .outbox import Outbox, Outboxes
from .request import InvalidRequest, RowParameters
from .settings import Settings
from .shared_memory import check_fits, surely_fits

CANCELLED_ANSWER_SECONDS = 0.1
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
LONGEST_ID = 100
ERRORS: tuple[tuple[type[Exception], str, str], ...] = (
    (InvalidRequest, "INVALID_ARG", "invalid"),
    (Closed, "UNAVAILABLE", "stopping"),
    (Overloaded, "UNAVAILABLE", "overloaded"),
    (ServerStopping, "UNAVAILABLE", "stopping"),
    (NetworkGone, "UNAVAILABLE", "network"),
    (NetworkError, "INTERNAL", "network"),
    (Exception, "INTERNAL", "internal"),
)
"""What an error is answered with, and how it is counted: the first kind that it is of."""


class Responder:
    """Answers one request: the batcher's `Listener`, and the only place that sends. Its methods do not raise.

    Those that the loop calls do not wait for the client either: a stream is answered through an `Outbox`, and for the
    one answer of another request Triton does not wait.
    """

    def __init__(
        self, request: Any, rows: list[RowParameters], settings: Settings, metrics: Metrics, outboxes: Outboxes | None
    ) -> None:
        """outboxes: those of the model's streams, None where it does not stream. Errors on streams have no code."""
        self._arrived = time.monotonic()
        self._sender = request.get_response_sender()
        self._wanted = set(request.requested_output_names())
        self._rows, self._settings, self._metrics = rows, settings, metrics
        self._outbox = Outbox(outboxes) if outboxes is not None else None
        self._preview_bytes = 0
        self._name = f"{metrics.model}, request {_printable_id(request)}"
        microseconds = request.timeout()
        self._deadline = self._arrived + microseconds / 1e6 if microseconds else None
        self._late = False
        self.ended = threading.Event()
        """Set when the request has had its last answer, or has left."""
        metrics.arrived()

    @property
    def wants_image(self) -> bool:
        """Whether decoding is asked for; a caller that needs latents only is spared it."""
        return "image" in self._wanted

    def late(self) -> bool:
        """The request's deadline has passed."""
        self._late = self._deadline is not None and time.monotonic() > self._deadline
        return self._late

    def gone(self) -> bool:
        """The client has cancelled or gone; asks Triton."""
        return bool(self._sender.is_cancelled())

    def preview(self, steps: NDArray[np.int32], estimates: Array) -> None:
        """One response before the image: steps done and x0 estimates, these as far as `max_preview_mb` reaches."""
        tensors: dict[str, NDArray[Any]] = {"step": steps[:, None]}
        if "preview" in self._wanted and self._has_room(steps, estimates):
            tensors["preview"] = estimates
            self._preview_bytes += estimates.nbytes
        if self._outbox and self._wanted & tensors.keys():
            self._outbox.preview(lambda: self._send(tensors, flags=0))

    def _has_room(self, steps: NDArray[np.int32], estimates: Array) -> bool:
        """Triton keeps what a client does not read. Previews are spread over the steps, so that the last come too."""
        most = self._settings.max_preview_mb * 2**20
        if self._previews_due * estimates.nbytes > most:
            most = int(most * steps.sum() / self._steps)
        return self._preview_bytes + estimates.nbytes <= most

    @cached_property
    def _previews_due(self) -> int:
        """How often a row is due: as many responses with previews at most, since one may be for several rows."""
        return sum(row.steps // row.preview_every for row in self._rows if row.preview_every)

    @cached_property
    def _steps(self) -> int:
        return sum(row.steps for row in self._rows)

    def finished(self, latents: Array, images: Array | None) -> None:
        """The last response: what was asked for of image, final latent and provenance."""
        tensors: dict[str, NDArray[Any]] = {"final_latent": latents}
        if images is not None:
            tensors["image"] = images
        if "provenance" in self._wanted:
            records = [[row.provenance(self._settings).encode()] for row in self._rows]
            tensors["provenance"] = np.array(records, dtype=np.object_)
        self._send_last(lambda: self._finish(tensors))

    def failed(self, error: Exception) -> None:
        """The last response: an error whose code tells whether trying again makes sense."""
        code, reason = next((code, reason) for kind, code, reason in ERRORS if isinstance(error, kind))
        self._metrics.failed(reason)
        # What clients bring about must not fill the log.
        log = pb_utils.Logger.log_error if reason in ("network", "internal") else pb_utils.Logger.log_verbose
        log(f"{self._name}: {reason}: {_printable(str(error))}")
        self._send_last(lambda: self._send_error(str(error), getattr(pb_utils.TritonError, code)))

    def cancelled(self, rows: int) -> None:
        """The last response: nobody is expected to read it.

        It waits a moment, while the rows have long left: Triton before 24.12 can crash when the answer meets the thread
        that is still handling the client's cancellation (server issue 7368).
        """
        reason = "deadline" if self._late else "cancelled"
        self._metrics.cancelled(reason, rows)
        pb_utils.Logger.log_verbose(f"{self._name}: {reason} with {rows} of {len(self._rows)} rows unfinished")
        message = "the request was cancelled or its deadline has passed"
        arguments = (message, pb_utils.TritonError.CANCELLED)
        if self._outbox:
            self._outbox.last(lambda: self._send_error(*arguments), instead=True, pause=CANCELLED_ANSWER_SECONDS)
        else:
            threading.Timer(CANCELLED_ANSWER_SECONDS, self._send_error, arguments).start()
        self.ended.set()

    def _send_last(self, send: Callable[[], None]) -> None:
        def send_and_end() -> None:
            send()
            self.ended.set()

        if self._outbox:
            self._outbox.last(send_and_end)
        else:
            send_and_end()

    def _finish(self, tensors: dict[str, NDArray[Any]]) -> None:
        if self._send(tensors, flags=FINAL):
            seconds = time.monotonic() - self._arrived
            self._metrics.finished(seconds)
            self._metrics.changed()  # the loop, which says so otherwise, may have gone idle before
            pb_utils.Logger.log_verbose(f"{self._name}: {len(self._rows)} rows finished in {seconds:.3f} s")

    def _send(self, tensors: dict[str, NDArray[Any]], flags: int) -> bool:
        wanted = {name: array for name, array in tensors.items() if name in self._wanted}
        size = sum(array.nbytes for array in wanted.values())
        try:
            sure = surely_fits(size)
            if not sure:
                check_fits(size)
            response = pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in wanted.items()])
            if sure:
                self._sender.send(response, flags=flags)
            else:  # Triton takes nothing after the last answer, also where that one has found no memory
                self._sender.send(response, flags=0)
                if flags == FINAL:
                    self._sender.send(flags=FINAL)
            return True
        except Exception as error:  # out of shared memory, say: one answer is lost, the loop goes on
            message = f"the answer cannot be sent: {error}"
            pb_utils.Logger.log_error(f"{self._name}: {_printable(message)}")
            if flags == FINAL:
                self._metrics.failed("unsent")
                self._send_error(message, pb_utils.TritonError.INTERNAL)
            return False

    def _send_error(self, message: str, code: int) -> None:
        error = pb_utils.TritonError(f"[{_name(code)}] {message}" if self._outbox else message, code)
        try:
            self._sender.send(pb_utils.InferenceResponse(output_tensors=[], error=error), flags=FINAL)
        except Exception as failure:
            text = f"an error cannot be sent: {failure}; it was: {message}"
            pb_utils.Logger.log_error(f"{self._name}: {_printable(text)}")
            with contextlib.suppress(Exception):  # closed already; if not, Triton makes this an error in its own words
                self._sender.send(flags=FINAL)


def _name(code: int) -> str:
    """What gRPC calls it."""
    known = pb_utils.TritonError  # not there yet when this module is imported
    names = {known.INVALID_ARG: "INVALID_ARGUMENT", known.UNAVAILABLE: "UNAVAILABLE", known.CANCELLED: "CANCELLED"}
    return names.get(code, "INTERNAL")


def _printable(text: str) -> str:
    """One line of ASCII: what a client sends must not start a line of the log, nor colour or turn it."""
    return text.encode("unicode_escape").decode("ascii")


def _printable_id(request: Any) -> str:
    """The request's id in quotes, '' where it has none."""
    try:
        return ascii(request.request_id()[:LONGEST_ID])
    except UnicodeDecodeError:  # HTTP lets any bytes pass
        return "with an id that is not UTF-8"
