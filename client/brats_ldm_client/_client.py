"""The synchronous client: sends what `Schedule` says is due. `_connection` knows how."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from types import TracebackType
from typing import Any

import numpy.typing as npt

from ._base import BaseClient
from ._connection import Cancellable, GrpcConnection, Outcome
from ._errors import BratsLDMError
from ._options import check_stream
from ._presets import GUIDANCE, resolve
from ._request import ONE_STEP, Previews, Request, make_request, requests_for
from ._schedule import Assembly, Chunk, RetryBudget, Schedule
from ._transport import TransportConnection
from ._types import F32, Generation, Progress, QueueInfo, ServerInfo, Slice
from .labels.source import Labels


class Client(BaseClient):
    """A connection to a server. Close it, or use it in a `with` block. Do not use it after a fork.

    Examples:
        >>> with Client("127.0.0.1:8001") as client:
        ...     client.generate(8, seed=0).save("slices")
    """

    def _open(self) -> None:
        self._connection: GrpcConnection | TransportConnection
        if self._transport is not None:
            self._connection = TransportConnection(self._transport, self._options.concurrency)
        else:
            self._connection = GrpcConnection(self._options, self._channel)

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
        timestep_grid: str | None = None,
        decoder: str | None = None,
        latents: npt.NDArray[Any] | None = None,
        labels: Labels | None = None,
        guidance: float = GUIDANCE,
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
            preset: "draft", "fast", "standard" or "reference" (see `PRESETS`); stands for all of the next five. A
                `decoder` beside it takes the place of its own.
            steps: Denoising steps, 50 by default. If they do not divide 1000, the grid "leading" leaves out the
                noisiest part of the schedule (300 steps start at timestep 897), and the provenance has a "warning".
            sampler: "ddim" (default), "ddpm", "dpmpp_2m", "dpmpp_3m" or "unipc".
            eta: The share of fresh noise in a step of DDIM, from 0 to 1.
            timestep_grid: Which timesteps the steps are at: "leading" (default), "log_snr", "karras", or "aligned",
                which is made for the weights and which not every server has.
            decoder: "full" (default), or "tiny", which is faster and less exact, and which not every server has.
            latents: Start noise of shape (n, 64, 64), used instead of the noise of the seeds.
            labels: Where the images have a lesion, if the weights were trained with labels: integers of shape
                (240, 240), the same for all images, or (n, 240, 240); 0 background, 1 oedema, 2 non-enhancing tumour,
                3 enhancing tumour; all 0 for a slice without a lesion. Or the path of a NIfTI file, of a library of
                `brats-ldm labels`, or of a folder of such, whose maps are used in turn. Or a function that gives the
                map of a seed, such as `labels.LabelSampler(library).draw`.
            guidance: How strongly the images follow the labels, from 1 (default) to 10. Others than 1 need labels, and
                twice the work.
            return_latents: Also return the final latents.
            on_progress: Called as `on_progress(done, total)` in this thread after each answer.
            on_images: Called with the images that have arrived, in order. Save them there, and a run that ends early
                loses little.

        Returns:
            The images, in the order of the seeds.

        Raises:
            BratsLDMError: The request failed, and so did the retries.
        """
        how = resolve(preset, steps, sampler, eta, timestep_grid, decoder)
        request = make_request(
            n,
            how,
            seeds=seeds,
            seed=seed,
            latents=latents,
            labels=labels,
            guidance=guidance,
            return_latents=return_latents,
        )
        return self._generate(request, on_progress, on_images)

    def _generate(
        self,
        request: Request,
        on_progress: Callable[[int, int], None] | None,
        on_images: Callable[[Generation], None] | None,
    ) -> Generation:
        began, total = time.monotonic(), len(request.seeds)
        whole = Assembly(request)
        report = None if on_progress is None else lambda done: on_progress(done, total)
        with closing(self._parts(request.split(self._options.rows_per_request), report)) as parts:
            for part in parts:
                whole.add(part)
                if on_images is not None:
                    on_images(part)
        return whole.generation(time.monotonic() - began)

    def iter_images(
        self,
        seeds: Iterable[int],
        *,
        preset: str | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        timestep_grid: str | None = None,
        decoder: str | None = None,
        labels: Labels | None = None,
        guidance: float = GUIDANCE,
        return_latents: bool = False,
    ) -> Generator[Slice, None, None]:
        """Generate images one after the other, in the order of the seeds, in bounded memory.

        Several requests are in flight at once. No new one is sent while the caller works on an image. Leaving the
        loop, or `close()` of the iterator, cancels those in flight.

        Args:
            seeds: The seeds, such as `range(1_000_000)` or `itertools.count()`; taken when they are needed.
            preset: See `generate`, as for the five that follow it.
            labels: See `generate`. Maps are used in turn, however many there are.
            guidance: See `generate`.
            return_latents: Also give the final latent of each image.

        Raises:
            WeightsChanged: A server with other weights answered.
            BratsLDMError: A request failed, and so did the retries.
        """
        how = resolve(preset, steps, sampler, eta, timestep_grid, decoder)
        first = make_request(1, how, seed=0, return_latents=return_latents)
        requests = requests_for(seeds, self._options.rows_per_request, first, labels, guidance)
        self._check_open()
        return self._iter(requests)

    def _iter(self, requests: Iterator[Request]) -> Generator[Slice, None, None]:
        with closing(self._parts(requests)) as parts:
            for part in parts:
                yield from part

    def _parts(
        self, requests: Iterator[Request], on_answer: Callable[[int], None] | None = None
    ) -> Generator[Generation, None, None]:
        """The answers to requests, in their order. on_answer: gets the number of images that have come."""
        self._connect()
        options = self._options
        schedule = Schedule(
            requests, concurrency=options.concurrency, retry_seconds=options.retry_seconds, now=time.monotonic()
        )
        # No SimpleQueue: with a timeout, that of CPython up to 3.12 may wait for ever on a busy machine.
        answers: queue.Queue[tuple[Chunk, Outcome]] = queue.Queue()
        calls: dict[Chunk, Cancellable] = {}
        try:
            while True:
                for chunk in schedule.due(time.monotonic()):
                    calls[chunk] = self._send(schedule.request(chunk), partial(_report, answers, chunk))
                yield from schedule.in_order(time.monotonic())
                if schedule.finished:
                    return
                try:
                    chunk, outcome = answers.get(timeout=schedule.wait(time.monotonic()))
                except queue.Empty:
                    continue
                del calls[chunk]
                if schedule.settle(chunk, outcome, time.monotonic()) and on_answer is not None:
                    on_answer(schedule.done)
        finally:
            for call in calls.values():
                call.cancel()

    def _send(self, request: Request, answered: Callable[[Outcome], None]) -> Cancellable:
        self._check_open()  # another thread may close the client
        return self._connection.send(request, answered)

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
        timestep_grid: str | None = None,
        decoder: str | None = None,
        latents: npt.NDArray[Any] | None = None,
        labels: Labels | None = None,
        guidance: float = GUIDANCE,
        return_latents: bool = False,
        preview_every: int = 1,
        preview_decoder: str = "latent",
    ) -> Generator[Progress | Generation, None, None]:
        """Like `generate` for at most 64 images, with progress on the way.

        Yields `Progress` when an image has done another `preview_every` steps (0: never), then the `Generation`. The
        images need not be at the same step. With `preview_decoder="tiny"` they are shown as images, decoded by the
        server's small decoder if it has one; `Progress.source` says so. Leaving the loop, or `close()` of the iterator,
        cancels the work on the server.
        """
        how = resolve(preset, steps, sampler, eta, timestep_grid, decoder)
        request = make_request(
            n,
            how,
            seeds=seeds,
            seed=seed,
            latents=latents,
            labels=labels,
            guidance=guidance,
            return_latents=return_latents,
        )
        previews = check_stream(request, preview_every, preview_decoder)
        self._check_open()
        return self._stream(request, previews)

    def _stream(
        self, request: Request, previews: Previews, again: bool = False
    ) -> Generator[Progress | Generation, None, None]:
        """again: also try again when the stream breaks after it has begun; its steps then come once more."""
        self._connect()
        budget = RetryBudget(self._options.retry_seconds)
        attempt = 0
        while True:
            events = self._connection.stream(request, previews)
            began = False
            try:
                for event in events:
                    began = True
                    yield event
                return
            except BratsLDMError as error:
                pause = budget.pause(error, attempt, time.monotonic())
                if (began and not again) or pause is None:
                    raise
            finally:
                events.close()
            attempt += 1
            time.sleep(pause)

    def info(self) -> ServerInfo:
        """Describe the server, its models and limits, and the digest of its weights. Generates one step."""
        self._check_open()
        return self._connection.info()

    def queue(self) -> tuple[QueueInfo, ...]:
        """What the server has to do now, for each of its two models. Generates nothing, and is answered at once.

        Raises:
            InvalidRequest: The server is older than this client.
        """
        self._check_open()
        return self._connection.queue()

    def start_noise(self, seeds: Sequence[int] | npt.NDArray[Any]) -> F32:
        """The noise [n, 64, 64] from which the images of these seeds start: any number of seeds. Takes no step.

        `generate(seeds=seeds, latents=noise)` makes the images of `generate(seeds=seeds)`, bit for bit on a CPU.
        Noise between that of two seeds (`interpolation.slerp`) makes images between those of the seeds.

        Raises:
            InvalidRequest: The server is older than this client.
        """
        self._check_open()
        return self._connection.start_noise(make_request(None, ONE_STEP, seeds=seeds))

    def is_ready(self) -> bool:
        """Whether the server and both models report that they are ready; False also if nothing answers."""
        self._check_open()
        return self._connection.is_ready()

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
        self._check_open()
        return self._connection.wait_until_ready(timeout, deep, checksum)

    def _connect(self) -> None:
        self._check_open()
        self._connection.connect()

    def close(self) -> None:
        """Cancel the requests in flight and close the connection."""
        if not self._closed:
            self._closed = True
            self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _report(answers: queue.Queue[tuple[Chunk, Outcome]], chunk: Chunk, outcome: Outcome) -> None:
    answers.put((chunk, outcome))
