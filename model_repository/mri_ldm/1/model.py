"""The Triton side of `mri_ldm` and `mri_ldm_stream`: requests in, rows to the batcher, one thread that runs it.

`execute` only admits rows and returns; the answers come from the loop thread through `Responder`. The same code serves
both models; config.pbtxt says which of them may answer more than once.
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mri_ldm.batcher import Batcher
from mri_ldm.drain import POLL_SECONDS, Drain
from mri_ldm.errors import Draining
from mri_ldm.job_queue import Job
from mri_ldm.metrics import Metrics
from mri_ldm.networks import Networks
from mri_ldm.outbox import Outboxes
from mri_ldm.preview_decoder import PreviewDecoder
from mri_ldm.reply import Reply
from mri_ldm.request import conditions_of_request, parse_rows
from mri_ldm.responder import DECODED, Responder, looked_up
from mri_ldm.settings import read_settings
from mri_ldm.stepping import SeveralSteps, SingleSteps, Stepper
from mri_ldm.tracing import Tracer, trace_of

INPUTS = ("seed", "steps", "sampler", "eta", "timestep_grid", "decoder", "latent", "labels", "guidance",
          "preview_every", "preview_decoder")  # fmt: skip
FLUSH_SECONDS = 1.0
"""Time for the last answers of streams when the server stops; a client that does not read gets no more."""


class TritonPythonModel:
    """The interface that Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings and start the loop thread."""
        config = json.loads(args["model_config"])
        self._settings = read_settings(config, Path(__file__).parent)
        self._tracer = Tracer()
        # If the repository is not a local folder, Triton copies only this model: networks are known once they answer.
        repository = Path(args["model_repository"]).parent
        self._networks = Networks(
            self._settings.crop,
            self._settings.image_size,
            self._settings.network_timeout,
            self._tracer,
            repository,
            draws=not self._settings.unrolled,
        )
        streams = pb_utils.using_decoupled_model_transaction_policy(config)
        self._outboxes = Outboxes() if streams else None
        self._batcher = Batcher(
            self._steppers(),
            self._networks.decode,
            max_rows_in_flight=self._settings.max_rows_in_flight,
            max_rows_waiting=self._settings.max_rows_waiting,
            max_row_steps=self._settings.max_row_steps,
            decode_batch=self._settings.decode_batch,
            tiny_decode=self._networks.decode_tiny,
            tiny_decode_batch=self._settings.tiny_decode_batch,
            calling=self._tracer.calling,
        )
        self._name = args["model_name"]
        self._preview_decoder = PreviewDecoder(
            self._networks.decode_preview,
            image_size=self._settings.image_size,
            batch=self._settings.tiny_decode_batch or self._settings.decode_batch,
            warn=lambda words: pb_utils.Logger.log_warn(f"{self._name}: {words}"),
        )
        self._metrics = Metrics(self._name, self._batcher, self._settings)
        self._drain = Drain(args["model_instance_name"])
        self._next_look = 0.0
        self._work, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sampling loop", daemon=True)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Admit the rows of each request; the answers come from the loop thread."""
        for request in requests:
            self._admit(request)
            self._work.set()
            self._metrics.changed()

    def is_ready(self) -> bool:
        """False while draining, so that clients send nothing new. Triton calls this from 26.03 on.

        The networks have no such method: Triton would call it before every call of them.
        """
        return not self._drain.asked()

    def finalize(self) -> None:
        """Stop the loop and answer what is left. A thread left running would hold up the server's exit."""
        self._stopping.set()
        self._work.set()
        self._thread.join()
        self._metrics.stop()

    def _steppers(self) -> list[Stepper]:
        several, unrolled, labels = (
            self._settings.steps_per_call,
            self._settings.unrolled,
            self._settings.takes_labels,
        )
        singly = SingleSteps(self._networks.denoise, labels=labels)
        if not several:
            return [singly]
        return [SeveralSteps(self._networks.advance, several, unrolled=unrolled, labels=labels), singly]

    def _admit(self, request: Any) -> None:
        reply = Reply(request, self._metrics, self._outboxes)
        try:
            tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in INPUTS}
            arrays = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
            rows = parse_rows(arrays, self._settings)
            if reply.is_lookup:
                reply.looked_up(looked_up(rows, self._batcher.state()))
                return
            job = Job(
                Responder(reply, rows, self._settings, self._preview_decoder),
                seeds=[row.seed for row in rows],
                tables=[row.table(self._settings) for row in rows],
                latents=np.stack([row.start() for row in rows]),
                preview_every=[row.preview_every for row in rows],
                decode=not DECODED.isdisjoint(reply.wanted),
                tiny=[row.decoder == "tiny" for row in rows],
                conditions=conditions_of_request(rows, self._settings),
                guidance=[row.guidance for row in rows],
            )
            if self._settings.trace_hold and (trace := trace_of(request)):
                self._admit_traced(job, trace, reply.ended)
            else:
                self._batcher.submit(job)
        except Exception as error:  # whatever it is, it concerns only this request
            reply.failed(error)

    def _admit_traced(self, job: Job, trace: Any, ended: threading.Event) -> None:
        with self._tracer.follow(job, trace):
            self._batcher.submit(job)
            self._work.set()
            self._metrics.changed()
            ended.wait(self._settings.trace_hold)

    def _loop(self) -> None:
        try:
            while not self._stopping.is_set():
                self._work.wait(self._drain.poll_seconds)
                # Before the ticks, so that a request admitted during the last of them wakes the loop again.
                self._work.clear()
                while not self._stopping.is_set() and self._tick():
                    if time.monotonic() >= self._next_look:
                        self._look_for_drain()
                self._look_for_drain()
                self._metrics.changed()
        finally:
            self._refuse_what_is_left()
            self._drained()
            self._networks.close()

    def _look_for_drain(self) -> None:
        self._next_look = time.monotonic() + POLL_SECONDS
        if self._drain.asked():
            self._batcher.close("the server is stopping and takes no more requests")
            if self._drain.time_is_over():
                self._refuse_what_is_left()
            if not any(self._batcher.rows):
                self._drained()

    def _refuse_what_is_left(self) -> None:
        self._batcher.fail_all(Draining("the server is shutting down"))

    def _drained(self) -> None:
        if self._outboxes:
            self._outboxes.flush(FLUSH_SECONDS)
        self._drain.done()

    def _tick(self) -> bool:
        try:
            return self._batcher.tick()
        except Exception as error:  # whatever it is, every request must be answered, and the loop must go on
            pb_utils.Logger.log_error(f"{self._name}: the sampling loop has failed: {error!r}")
            self._batcher.fail_all(error)
            return False
