"""The synchronous client: sends what `Schedule` says is due and performs the flows. The wire is `_protocol`'s."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import grpc
import numpy.typing as npt
from tritonclient.utils import InferenceServerException

from . import _flows
from ._base import BaseClient
from ._errors import BratsLDMError
from ._options import check_stream
from ._protocol import STREAM, Request, make_request, outputs_of, parse_rows
from ._schedule import Chunk, RetryBudget, Schedule, stream_event
from ._stream import ResponseStream
from ._types import Generation, Progress, ServerInfo

_GRPC_ERRORS = (InferenceServerException, grpc.RpcError)


class Client(BaseClient):
    """A connection to a server. Close it, or use it in a `with` block. Do not use it after a fork.

    Examples:
        >>> with Client("127.0.0.1:8001") as client:
        ...     client.generate(8, seed=0).save("slices")
    """

    def _new_grpc(self) -> Any:
        from tritonclient.grpc import InferenceServerClient

        return InferenceServerClient(**self._channel)

    def generate(
        self,
        n: int | Sequence[int] | npt.NDArray[Any] | None = None,
        *,
        seeds: Sequence[int] | npt.NDArray[Any] | None = None,
        seed: int | None = None,
        preset: str | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        latents: npt.NDArray[Any] | None = None,
        return_latents: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
        on_images: Callable[[Generation], None] | None = None,
    ) -> Generation:
        """Generate images and wait for all of them.

        A large number is sent as several requests. Ctrl-C or an error cancels all of them.

        Args:
            n: The number of images, or the seeds of the images.
            seeds: The seeds of the images, one seed for one image.
            seed: The first of `n` consecutive seeds; a random number by default.
            preset: "fast", "standard" or "reference" (see `PRESETS`); sets `sampler` and `steps`.
            steps: Denoising steps, 50 by default. If they do not divide 1000, the noisiest part of the schedule is
                left out (300 steps start at timestep 897), and the provenance has a "warning".
            sampler: "ddim" (default), "ddpm" or "dpmpp_2m".
            eta: The share of fresh noise in a step of DDIM, from 0 to 1.
            latents: Start noise of shape (n, 64, 64), used instead of the noise of the seeds.
            return_latents: Also return the final latents.
            on_progress: Called as `on_progress(done, total)` in this thread after each answer.
            on_images: Called with the images that have arrived, in order. Save them there, and a run that ends early
                loses little.

        Returns:
            The images, in the order of the seeds.

        Raises:
            BratsLDMError: The request failed, and so did the retries.
        """
        request = make_request(
            n,
            seeds=seeds,
            seed=seed,
            preset=preset,
            steps=steps,
            sampler=sampler,
            eta=eta,
            latents=latents,
            return_latents=return_latents,
        )
        return self._run(request, on_progress, on_images)

    def _run(
        self,
        request: Request,
        on_progress: Callable[[int, int], None] | None,
        on_images: Callable[[Generation], None] | None,
    ) -> Generation:
        self._connect()
        options = self._options
        schedule = Schedule(
            request,
            rows_per_request=options.rows_per_request,
            concurrency=options.concurrency,
            retry_seconds=options.retry_seconds,
            now=time.monotonic(),
        )
        # No SimpleQueue: with a timeout, that of CPython up to 3.12 may wait for ever on a busy machine.
        answers: queue.Queue[tuple[Chunk, Any, BaseException | None]] = queue.Queue()
        calls: dict[Chunk, Any] = {}
        try:
            while not schedule.finished:
                for chunk in schedule.due(time.monotonic()):
                    calls[chunk] = self._send(schedule.rows(chunk), partial(_report, answers, chunk))
                try:
                    chunk, result, error = answers.get(timeout=schedule.wait(time.monotonic()))
                except queue.Empty:
                    continue
                del calls[chunk]
                self._settle(schedule, chunk, result, error)
                if on_images is not None and (images := schedule.in_order(time.monotonic())) is not None:
                    on_images(images)
                if on_progress is not None and error is None:
                    on_progress(schedule.done, schedule.total)
        finally:
            for call in calls.values():
                call.cancel()
        return schedule.generation(time.monotonic())

    def _send(self, request: Request, callback: Callable[..., None]) -> Any:
        self._check_open()  # another thread may close the client
        try:
            return self._grpc.async_infer(callback=callback, **self._options.infer(request, outputs_of(request)))
        except (*_GRPC_ERRORS, ValueError) as error:  # ValueError: the channel was closed since the check
            raise self._options.error(error) from error

    def _settle(self, schedule: Schedule, chunk: Chunk, result: Any, error: BaseException | None) -> None:
        if error is not None:
            schedule.failed(chunk, self._options.error(error), time.monotonic())
        else:
            schedule.succeeded(chunk, parse_rows(result, schedule.rows(chunk)))

    def stream(
        self,
        n: int | Sequence[int] | npt.NDArray[Any] | None = None,
        *,
        seeds: Sequence[int] | npt.NDArray[Any] | None = None,
        seed: int | None = None,
        preset: str | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        latents: npt.NDArray[Any] | None = None,
        return_latents: bool = False,
        preview_every: int = 1,
    ) -> Generator[Progress | Generation, None, None]:
        """Like `generate` for at most 64 images, with progress on the way.

        Yields `Progress` when an image has done another `preview_every` steps (0: never), then the `Generation`. The
        images need not be at the same step. Leaving the loop, or `close()` of the iterator, cancels the work on the
        server.
        """
        request = make_request(
            n,
            seeds=seeds,
            seed=seed,
            preset=preset,
            steps=steps,
            sampler=sampler,
            eta=eta,
            latents=latents,
            return_latents=return_latents,
        )
        preview_every = check_stream(request, preview_every)
        self._check_open()
        return self._stream(request, preview_every)

    def _stream(self, request: Request, preview_every: int) -> Generator[Progress | Generation, None, None]:
        self._connect()
        budget = RetryBudget(self._options.retry_seconds)
        attempt = 0
        while True:
            events = self._stream_once(request, preview_every)
            began = False
            try:
                for event in events:
                    began = True
                    yield event
                return
            except BratsLDMError as error:
                pause = budget.pause(error, attempt, time.monotonic())
                if began or pause is None:
                    raise
            finally:
                events.close()
            attempt += 1
            time.sleep(pause)

    def _stream_once(self, request: Request, preview_every: int) -> Generator[Progress | Generation, None, None]:
        began = time.monotonic()
        # tritonclient allows one stream a client, and none shared by threads: each stream gets its own.
        grpc_client = self._grpc if self._injected else self._new_grpc()
        try:
            responses = ResponseStream(grpc_client, self._options, self._options.stream(request, preview_every))
            try:
                for result in responses:
                    event = stream_event(result, request, time.monotonic() - began)
                    responses.answered = isinstance(event, Generation)
                    yield event
                    if responses.answered:
                        return
            finally:
                responses.close()
        except _GRPC_ERRORS as error:
            raise self._options.error(error, STREAM) from error
        finally:
            if not self._injected:
                grpc_client.close()

    def info(self) -> ServerInfo:
        """Describe the server, its models and limits, and the digest of its weights. Generates one step."""
        self._connect()
        return self._drive(_flows.info(self._options))

    def is_ready(self) -> bool:
        """Whether the server and both models report that they are ready; False also if nothing answers."""
        return self._drive(_flows.ready(self._options))

    def wait_until_ready(self, timeout: float = 60.0, deep: bool = False, checksum: str | None = None) -> str | None:
        """Return when the server is ready.

        Args:
            timeout: Seconds to wait.
            deep: Also generate the image of seed 0 in one step, and return its checksum ("sha256:…").
            checksum: The checksum that the image must have. On a CPU it depends on the weights and the machine only.
                On a GPU it can vary.

        Raises:
            ServerUnavailable: The server was not ready in time.
        """
        return self._drive(_flows.wait_until_ready(self._options, timeout, deep, checksum))

    def _connect(self) -> None:
        self._check_open()
        if not self._connected:
            self._drive(_flows.connect(self._options))
            self._connected = True

    def _drive(self, flow: _flows.Flow[_flows.T]) -> _flows.T:
        self._check_open()
        try:
            step = next(flow)
            while True:
                try:
                    answer = self._perform(step)
                except BratsLDMError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as stop:
            result: _flows.T = stop.value
            return result

    def _perform(self, step: _flows.Call | _flows.Sleep) -> Any:
        if isinstance(step, _flows.Sleep):
            time.sleep(step.seconds)
            return None
        try:
            return getattr(self._grpc, step.method)(**step.kwargs)
        except _GRPC_ERRORS as error:
            raise self._options.error(error, step.model, step.kwargs.get("client_timeout")) from error

    def close(self) -> None:
        """Cancel the requests in flight and close the connection."""
        if not self._closed:
            self._closed = True
            if not self._injected:
                self._grpc.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _report(
    answers: queue.Queue[tuple[Chunk, Any, BaseException | None]],
    chunk: Chunk,
    result: Any,
    error: BaseException | None,
) -> None:
    answers.put((chunk, result, error))
