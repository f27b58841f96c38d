"""Step-level continuous batching: one network call a tick for rows of all requests, each at its own step.

Knows nothing of Triton: a request is a `Job`, its answers go to the job's `Listener`, and the two networks are
functions. Only `submit` may be called from another thread than the one that calls `tick`.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .line import Array, Job, Line, Row
from .noise import standard_normal
from .pace import Pace
from .samplers import advance

Denoise = Callable[[Array, NDArray[np.int32]], Array]
"""(latents [n, 1, 64, 64], timesteps [n]) -> predicted noise [n, 1, 64, 64]"""
Decode = Callable[[Array], Array]
"""scaled latents [n, 1, 64, 64] -> images [n, ...]"""
QUEUE_CHECK_SECONDS = 0.1
BATCH_SIZES = ("1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65+")
"""Rows in a call of the UNet, as `Counters.unet_calls` tells them apart."""


@dataclass
class Counters:
    """What has happened since the start; read by the metrics, from another thread."""

    images: int = 0
    started_rows: int = 0
    queue_seconds: float = 0.0
    steps: int = 0
    unet_calls: list[int] = field(default_factory=lambda: [0] * len(BATCH_SIZES))
    last_unet_batch: int = 0
    step_seconds: float = 0.0
    decoder_calls: int = 0
    decode_seconds: float = 0.0


class Batcher:
    """The rows on their way: which are in the step loop, which at the decoder, which wait.

    At most `max_rows_in_flight` rows take a step together, chosen anew at each (`Line`), as many as suit the device
    (`Pace`); at most `max_rows_waiting` more may be there. A finished row holds a place until it is decoded, so a slow
    decoder holds back others instead of piling up work. One chunk of `decode_batch` rows is decoded a tick: decoding
    never holds the step loop for longer.
    """

    def __init__(
        self,
        denoise: Denoise,
        decode: Decode,
        *,
        max_rows_in_flight: int = 64,
        max_rows_waiting: int = 256,
        max_row_steps: int = 100_000,
        decode_batch: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._denoise, self._decode, self._clock = denoise, decode, clock
        self._max_rows_in_flight, self._decode_batch = max_rows_in_flight, decode_batch
        self._line = Line(max_rows_in_flight + max_rows_waiting, max_row_steps, clock)
        self._pace = Pace(max_rows_in_flight)
        self._in_step: list[Row] = []
        self._decoding: deque[Row] = deque()
        self._next_queue_check = 0.0
        self.counters = Counters()
        self.calling: Sequence[Row] = ()
        """Rows that the last call of a network, or the one now made, is for."""

    def submit(self, job: Job) -> None:
        """Let the rows of a job in; raises Overloaded as `Line.submit`."""
        self._line.submit(job)

    def close(self, reason: str) -> None:
        """Let no more jobs in; those that are there go on."""
        self._line.close(reason)

    @property
    def rows(self) -> tuple[int, int]:
        """Rows that have a place (in the last step or at the decoder), and the others."""
        placed = len(self._in_step) + len(self._decoding)
        return placed, max(0, self._line.rows - placed)

    @property
    def row_steps(self) -> int:
        """Steps still to do, summed over all rows."""
        return self._line.row_steps

    def tick(self) -> bool:
        """One step of as many rows as there are places, then one chunk of decoding. Returns whether there is more."""
        self._drop_cancelled()
        ready = self._line.next(self._max_rows_in_flight - len(self._decoding))
        self._in_step = ready[: self._pace.rows(len(ready), self._line.rows)]
        if self._in_step:
            self._step()
        if self._decoding:
            self._decode_chunk()
        return self._line.rows > 0

    def fail_all(self, error: Exception) -> None:
        """End every job with `error`."""
        self._fail(self._line.jobs, error)

    def _drop_cancelled(self) -> None:
        """Rows with a place are asked about at each step, others ten times a second: asking costs a round trip."""
        jobs = _jobs([*self._in_step, *self._decoding])
        if self._clock() >= self._next_queue_check:
            jobs = self._line.jobs
            self._next_queue_check = self._clock() + QUEUE_CHECK_SECONDS
        leaving = [job for job in jobs if job.listener.wants_out()]
        if leaving:
            self._remove(leaving)
            for job in leaving:
                job.listener.cancelled(job.unfinished)

    def _step(self) -> None:
        rows, began = self._in_step, self._clock()
        self.calling = rows
        self._count_started(rows, began)
        x = np.stack([row.job.latents[row.index] for row in rows])
        timesteps = np.array([row.table.timesteps[row.step] for row in rows], np.int32)
        started = self._clock()
        try:
            eps = self._denoise(x, timesteps)
        except Exception as error:
            self._fail(_jobs(rows), error)
            return
        took = self._clock() - started
        self._line.measured(len(rows), took)
        self._pace.measured(len(rows), took)
        self.counters.unet_calls[min((len(rows) - 1).bit_length(), len(BATCH_SIZES) - 1)] += 1
        self.counters.last_unet_batch = len(rows)
        self.counters.steps += len(rows)
        coefficients = np.stack([row.table.coefficients[row.step] for row in rows])
        h = np.stack([row.job.estimates[row.index] for row in rows])
        latents, estimates = advance(coefficients, x, eps, h, _step_noise(rows, coefficients[:, 3], x))
        for row, latent, estimate in zip(rows, latents, estimates, strict=True):
            row.job.latents[row.index] = latent
            row.job.estimates[row.index] = estimate
            row.job.done[row.index] += 1
        self._send_previews(rows)
        self._retire()
        self.counters.step_seconds += self._clock() - began

    def _count_started(self, rows: Sequence[Row], now: float) -> None:
        waited = [now - row.job.arrived for row in rows if row.step == 0]
        self.counters.started_rows += len(waited)
        self.counters.queue_seconds += sum(waited)

    def _send_previews(self, rows: Sequence[Row]) -> None:
        due = []
        for row in rows:
            every = row.job.preview_every[row.index]
            if every > 0 and row.step % every == 0:
                due.append(row)
        for job in _jobs(due):
            job.listener.preview(job.done.copy(), job.estimates.copy())

    def _retire(self) -> None:
        """Send rows that have done their last step on to the decoder, or out."""
        retired = [row for row in self._in_step if row.step == row.table.steps]
        self._in_step = [row for row in self._in_step if row.step < row.table.steps]
        self._decoding.extend(row for row in retired if row.job.decode)
        for row in retired:
            if not row.job.decode:
                self._finish(row)

    def _decode_chunk(self) -> None:
        rows = [self._decoding[i] for i in range(min(self._decode_batch, len(self._decoding)))]
        self.calling, began = rows, self._clock()
        try:
            images = self._decode(np.stack([row.job.latents[row.index] for row in rows]))
        except Exception as error:
            self._fail(_jobs(rows), error)
            return
        self.counters.decoder_calls += 1
        self.counters.decode_seconds += self._clock() - began
        for row, image in zip(rows, images, strict=True):
            if row.job.images is None:
                row.job.images = np.empty((len(row.job.seeds), *image.shape), np.float32)
            row.job.images[row.index] = image
        for row in rows:
            self._decoding.popleft()
            self._finish(row)

    def _finish(self, row: Row) -> None:
        job = row.job
        job.unfinished -= 1
        self.counters.images += 1
        if job.unfinished == 0:
            self._line.remove([job])
            job.listener.finished(job.latents, job.images)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        self._remove(jobs)
        for job in jobs:
            job.listener.failed(error)

    def _remove(self, jobs: Sequence[Job]) -> None:
        """Take all rows of the jobs out."""
        self._line.remove(jobs)
        self._in_step = [row for row in self._in_step if row.job not in jobs]
        self._decoding = deque(row for row in self._decoding if row.job not in jobs)


def _jobs(rows: Iterable[Row]) -> list[Job]:
    """The jobs of the rows, each once, in order."""
    return list(dict.fromkeys(row.job for row in rows))


def _step_noise(rows: Sequence[Row], scales: Array, like: Array) -> Array:
    """Fresh noise for the rows whose sampler adds some, zeros for the others."""
    noise = np.zeros_like(like)
    for place, (row, scale) in enumerate(zip(rows, scales, strict=True)):
        if scale > 0:
            noise[place] = standard_normal(int(row.job.seeds[row.index]), row.step + 1)
    return noise
