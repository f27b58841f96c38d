"""The answers of a request: tensors that were asked for, or an error with the right code."""

import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from .line import Array, Overloaded
from .networks import NetworkGone
from .request import InvalidRequest, RowParameters
from .settings import Settings

CANCELLED_ANSWER_SECONDS = 0.1
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Responder:
    """Answers one request: the batcher's `Listener`, and the only place that sends. Its methods do not raise."""

    def __init__(self, request: Any, rows: list[RowParameters], settings: Settings, streams: bool) -> None:
        """streams: Triton sends errors as text without a code."""
        self._sender = request.get_response_sender()
        self._wanted = set(request.requested_output_names())
        self._rows, self._settings, self._streams = rows, settings, streams
        microseconds = request.timeout()
        self._deadline = time.monotonic() + microseconds / 1e6 if microseconds else None

    @property
    def wants_image(self) -> bool:
        """Whether decoding is asked for; a caller that needs latents only is spared it."""
        return "image" in self._wanted

    def wants_out(self) -> bool:
        """The client has cancelled or gone, or its deadline has passed."""
        late = self._deadline is not None and time.monotonic() > self._deadline
        return late or bool(self._sender.is_cancelled())

    def preview(self, steps: NDArray[np.int32], estimates: Array) -> None:
        """One response before the image: steps done and x0 estimates."""
        if self._wanted & {"step", "preview"}:
            self._send({"step": steps[:, None], "preview": estimates}, flags=0)

    def finished(self, latents: Array, images: Array | None) -> None:
        """The last response: what was asked for of image, final latent and provenance."""
        tensors: dict[str, NDArray[Any]] = {"final_latent": latents}
        if images is not None:
            tensors["image"] = images
        if "provenance" in self._wanted:
            records = [[row.provenance(self._settings).encode()] for row in self._rows]
            tensors["provenance"] = np.array(records, dtype=np.object_)
        self._send(tensors, flags=FINAL)

    def failed(self, error: Exception) -> None:
        """The last response: an error whose code tells whether trying again makes sense."""
        if isinstance(error, InvalidRequest):
            code = pb_utils.TritonError.INVALID_ARG
        elif isinstance(error, (Overloaded, NetworkGone)):
            code = pb_utils.TritonError.UNAVAILABLE
        else:
            code = pb_utils.TritonError.INTERNAL
        self._send_error(str(error), code)

    def cancelled(self) -> None:
        """The last response: nobody is expected to read it.

        It waits a moment, while the rows have long left: Triton before 24.12 can crash when the answer meets the thread
        that is still handling the client's cancellation (server issue 7368).
        """
        message = "the request was cancelled or its deadline has passed"
        arguments = (message, pb_utils.TritonError.CANCELLED)
        threading.Timer(CANCELLED_ANSWER_SECONDS, self._send_error, arguments).start()

    def _send(self, tensors: dict[str, NDArray[Any]], flags: int) -> None:
        try:
            outputs = [pb_utils.Tensor(name, array) for name, array in tensors.items() if name in self._wanted]
            self._sender.send(pb_utils.InferenceResponse(output_tensors=outputs), flags=flags)
        except Exception as error:  # out of shared memory, say: one answer is lost, the loop goes on
            if flags == FINAL:
                self._send_error(f"the answer cannot be sent: {error}", pb_utils.TritonError.INTERNAL)

    def _send_error(self, message: str, code: int) -> None:
        error = pb_utils.TritonError(f"[{_name(code)}] {message}" if self._streams else message, code)
        try:
            self._sender.send(pb_utils.InferenceResponse(output_tensors=[], error=error), flags=FINAL)
        except Exception as failure:
            pb_utils.Logger.log_error(f"an error cannot be sent: {failure}; it was: {message}")


def _name(code: int) -> str:
    """What gRPC calls it."""
    known = pb_utils.TritonError  # not there yet when this module is imported
    names = {known.INVALID_ARG: "INVALID_ARGUMENT", known.UNAVAILABLE: "UNAVAILABLE", known.CANCELLED: "CANCELLED"}
    return names.get(code, "INTERNAL")
