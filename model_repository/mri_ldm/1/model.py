"""The Triton side of `mri_ldm` and `mri_ldm_stream`: requests in, rows to the batcher, answers out.

`execute` only admits rows and returns; one thread per instance runs the batcher and calls `unet` and `vae_decoder`
through BLS. The same code serves both models; config.pbtxt says which of them may answer more than once.
"""

import json
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from .batcher import Array, Batcher, Job, Overloaded
from .metrics import Metrics
from .request import InvalidRequest, RowParameters, parse_rows
from .settings import Settings, read_settings

INPUTS = ("seed", "steps", "sampler", "eta", "latent", "preview_every")
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class NetworkError(Exception):
    """A call of `unet` or `vae_decoder` has failed; the message names the model."""


def call_network(model: str, inputs: dict[str, NDArray[Any]], output: str) -> Array:
    """One BLS call: named arrays in, one float32 array out.

    Raises:
        NetworkError: the model is missing, or has answered with an error.
    """
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=[output],
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        # A GPU model would leave its output there, where NumPy cannot read it.
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    try:
        response = request.exec()
    except pb_utils.TritonModelException as error:
        raise NetworkError(f"model {model!r} cannot be called: {error}") from error
    if response.has_error():
        raise NetworkError(f"model {model!r} has failed: {response.error().message()}")
    # A copy: the tensor's memory goes back to the pool with the response.
    return np.array(pb_utils.get_output_tensor_by_name(response, output).as_numpy())


def denoise(latents: Array, timesteps: NDArray[np.int32]) -> Array:
    """Predicted noise [n, 1, 64, 64] of latents [n, 1, 64, 64], each at its own timestep [n]."""
    return call_network("unet", {"latent": latents, "timesteps": timesteps[:, None]}, "pred")


def decode(latents: Array, crop: int) -> Array:
    """Images [n, 1, 240, 240] of scaled latents [n, 1, 64, 64]; the padding of training is cut off."""
    images = call_network("vae_decoder", {"latent": latents}, "image")
    return images[:, :, crop:-crop, crop:-crop] if crop else images


class Responder:
    """Answers one request: the batcher's `Listener`, and the only place that sends."""

    def __init__(self, request: Any, rows: list[RowParameters], settings: Settings, stopping: threading.Event) -> None:
        self._sender = request.get_response_sender()
        self._wanted = set(request.requested_output_names())
        self._rows, self._settings, self._stopping = rows, settings, stopping
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
        elif isinstance(error, Overloaded) or self._stopping.is_set():
            code = pb_utils.TritonError.UNAVAILABLE
        else:
            code = pb_utils.TritonError.INTERNAL
        self._send_error(str(error), code)

    def cancelled(self) -> None:
        """The last response: nobody is expected to read it."""
        self._send_error("the request was cancelled or its deadline has passed", pb_utils.TritonError.CANCELLED)

    def _send(self, tensors: dict[str, NDArray[Any]], flags: int) -> None:
        outputs = [pb_utils.Tensor(name, array) for name, array in tensors.items() if name in self._wanted]
        try:
            self._sender.send(pb_utils.InferenceResponse(output_tensors=outputs), flags=flags)
        except pb_utils.TritonModelException as error:
            if flags == FINAL:
                self._send_error(f"the answer cannot be sent: {error}", pb_utils.TritonError.INTERNAL)

    def _send_error(self, message: str, code: int) -> None:
        error = pb_utils.TritonError(message, code)
        try:
            self._sender.send(pb_utils.InferenceResponse(output_tensors=[], error=error), flags=FINAL)
        except pb_utils.TritonModelException as failure:
            pb_utils.Logger.log_error(f"an error cannot be sent: {failure}; it was: {message}")


class TritonPythonModel:
    """The interface that Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings and start the loop thread."""
        config = json.loads(args["model_config"])
        self._settings = read_settings(config, Path(__file__).parent)
        self._batcher = Batcher(
            denoise,
            partial(decode, crop=self._settings.crop),
            max_rows_in_flight=self._settings.max_rows_in_flight,
            max_rows_waiting=self._settings.max_rows_waiting,
            decode_batch=self._settings.decode_batch,
        )
        self._name = args["model_name"]
        self._metrics = Metrics(self._name)
        self._work, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sampling loop", daemon=True)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Admit the rows of each request; the answers come from the loop thread."""
        for request in requests:
            self._admit(request)
        self._work.set()

    def finalize(self) -> None:
        """Stop the loop; whoever still waits is told so. A thread left running would hold the server's exit."""
        self._stopping.set()
        self._work.set()
        self._thread.join()

    def _admit(self, request: Any) -> None:
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in INPUTS}
        arrays = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
        rows: list[RowParameters] = []
        responder = Responder(request, rows, self._settings, self._stopping)
        try:
            rows += parse_rows(arrays, self._settings.noise_schedule.num_train_timesteps)
            self._batcher.submit(
                Job(
                    responder,
                    seeds=[row.seed for row in rows],
                    tables=[row.table(self._settings) for row in rows],
                    latents=np.stack([row.start() for row in rows]),
                    preview_every=[row.preview_every for row in rows],
                    decode=responder.wants_image,
                )
            )
        except (InvalidRequest, Overloaded) as error:
            responder.failed(error)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._work.wait()
            # Before the ticks, so that a request admitted during the last of them wakes the loop again.
            self._work.clear()
            while not self._stopping.is_set() and self._tick():
                pass
        self._batcher.fail_all(Overloaded("the server is shutting down: try again later"))

    def _tick(self) -> bool:
        try:
            return self._batcher.tick()
        except Exception as error:  # whatever it is, every request must be answered and the loop go on
            pb_utils.Logger.log_error(f"{self._name}: the sampling loop has failed: {error!r}")
            self._batcher.fail_all(error)
            return False
        finally:
            self._metrics.update(self._batcher)
