"""Answers one request: with tensors or an error, once or on a stream. Knows its deadline, but not its rows."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from .errors import AnswerLost, Cancelled, DeadlinePassed, RequestError, as_request_error
from .metrics import Metrics
from .outbox import Outbox, Outboxes
from .shared_memory import check_fits, size_of, surely_fits

CANCELLED_ANSWER_SECONDS = 0.1
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
LONGEST_ID = 100
LOOKED_UP = frozenset(("queue", "start_latent"))
"""The outputs of a look-up: a request that asks for nothing else takes no step."""
Tensors = dict[str, NDArray[Any]]


class Reply:
    """The only place that sends. No method raises.

    No method waits for the client: answers of a stream go through an `Outbox`, and Triton does not block on the single
    answer of other requests.
    """

    def __init__(self, request: Any, metrics: Metrics, outboxes: Outboxes | None) -> None:
        """outboxes: those of the model's streams; None if the model does not stream."""
        self._arrived = time.monotonic()
        self._sender = request.get_response_sender()
        self.wanted = frozenset(request.requested_output_names())
        self.is_lookup = self.wanted <= LOOKED_UP
        self._metrics = metrics
        self._outbox = Outbox(outboxes) if outboxes is not None else None
        self._name = f"{metrics.model}, request {_printable_id(request)}"
        microseconds = request.timeout()
        self._deadline = self._arrived + microseconds / 1e6 if microseconds else None
        self._late = False
        self.ended = threading.Event()
        """Set when the request has had its last answer, or has left."""
        # Look-ups have a metric of their own: many of them must not hide that other requests fail.
        if self.is_lookup:
            metrics.looked_up()
        else:
            metrics.arrived()

    def late(self) -> bool:
        """Whether the request's deadline has passed."""
        self._late = self._deadline is not None and time.monotonic() > self._deadline
        return self._late

    def gone(self) -> bool:
        """Whether the client has cancelled or gone; asks Triton."""
        return bool(self._sender.is_cancelled())

    def preview(self, tensors: Tensors) -> None:
        """One answer of a stream before the last."""
        if self._outbox and self.wanted & tensors.keys():
            self._outbox.preview(lambda: self._send(tensors, flags=0))

    def finished(self, tensors: Tensors, rows: int) -> None:
        """The last answer: the requested tensors."""
        self._send_last(lambda: self._finish(tensors, f"{rows} rows finished"))

    def looked_up(self, tensors: Tensors) -> None:
        """The only answer, of a request that takes no step."""
        self._send_last(lambda: self._finish(tensors, "answered without a step"))

    def failed(self, error: Exception) -> None:
        """The last answer: an error. Its token and code say whether trying again makes sense."""
        answer = as_request_error(error)
        self._count_failure(answer)
        # Errors that clients cause must not fill the log.
        log = pb_utils.Logger.log_error if answer.reason in ("network", "internal") else pb_utils.Logger.log_verbose
        log(f"{self._name}: {answer.reason}: {_printable(str(answer))}")
        self._send_last(lambda: self._send_error(answer))

    def cancelled(self, unfinished: int, rows: int) -> None:
        """The last answer: nobody is expected to read it.

        It waits a moment, while the rows have long left: Triton before 24.12 can crash when the answer meets the thread
        that is still handling the client's cancellation (server issue 7368).
        """
        late, cancelled = DeadlinePassed("the deadline has passed"), Cancelled("the request was cancelled")
        error: RequestError = late if self._late else cancelled
        self._metrics.cancelled(error.reason, unfinished)
        pb_utils.Logger.log_verbose(f"{self._name}: {error.reason} with {unfinished} of {rows} rows unfinished")
        if self._outbox:
            self._outbox.last(lambda: self._send_error(error), instead=True, pause=CANCELLED_ANSWER_SECONDS)
        else:
            threading.Timer(CANCELLED_ANSWER_SECONDS, self._send_error, (error,)).start()
        self.ended.set()

    def _count_failure(self, error: RequestError) -> None:
        if not self.is_lookup:
            self._metrics.failed(error.reason)

    def _send_last(self, send: Callable[[], None]) -> None:
        def send_and_end() -> None:
            send()
            self.ended.set()

        if self._outbox:
            self._outbox.last(send_and_end)
        else:
            send_and_end()

    def _finish(self, tensors: Tensors, what: str) -> None:
        if self._send(tensors, flags=FINAL):
            seconds = time.monotonic() - self._arrived
            if not self.is_lookup:
                self._metrics.finished(seconds)
            self._metrics.changed()  # the loop publishes the metrics otherwise, but may be idle already
            pb_utils.Logger.log_verbose(f"{self._name}: {what} in {seconds:.3f} s")

    def _send(self, tensors: Tensors, flags: int) -> bool:
        """Send the requested tensors; returns whether that worked. A last answer that fails becomes an error."""
        try:
            self._send_tensors({name: array for name, array in tensors.items() if name in self.wanted}, flags)
            return True
        except Exception as cause:  # out of shared memory, for example: one answer is lost, the loop goes on
            error = AnswerLost(f"the answer cannot be sent: {cause}")
            pb_utils.Logger.log_error(f"{self._name}: {_printable(str(error))}")
            if flags == FINAL:
                self._count_failure(error)
                self._send_error(error)
            return False

    def _send_tensors(self, tensors: Tensors, flags: int) -> None:
        size = sum(map(size_of, tensors.values()))
        sure = surely_fits(size)
        if not sure:
            check_fits(size)
        response = pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])
        if sure:
            self._sender.send(response, flags=flags)
        else:  # Triton accepts nothing after the last answer, even if there was no memory for it
            self._sender.send(response, flags=0)
            if flags == FINAL:
                self._sender.send(flags=FINAL)

    def _send_error(self, error: RequestError) -> None:
        answer = pb_utils.TritonError(error.message, getattr(pb_utils.TritonError, error.code))
        try:
            self._sender.send(pb_utils.InferenceResponse(output_tensors=[], error=answer), flags=FINAL)
        except Exception as failure:
            text = f"an error cannot be sent: {failure}; it was: {error}"
            pb_utils.Logger.log_error(f"{self._name}: {_printable(text)}")
            with contextlib.suppress(Exception):  # closed already; if not, Triton turns this into an error of its own
                self._sender.send(flags=FINAL)


def _printable(text: str) -> str:
    """One line of ASCII: text from a client must not start a new line of the log, or change its colour or direction."""
    return text.encode("unicode_escape").decode("ascii")


def _printable_id(request: Any) -> str:
    """The request's id in quotes; '' if it has none."""
    try:
        return ascii(request.request_id()[:LONGEST_ID])
    except UnicodeDecodeError:  # HTTP lets any bytes pass
        return "with an id that is not UTF-8"
