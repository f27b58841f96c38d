"""Step-level continuous batching: one network call a tick for rows of all requests, each at its own step.

Knows nothing of Triton: a request is a `Job`, its answers go to the job's `Listener`, and the two networks are
functions. Only `submit` may be called from another thread than the one that calls `tick`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .noise import standard_normal
from .samplers import SamplerTable, advance

Array = NDArray[np.float32]
Denoise = Callable[[Array, NDArray[np.int32]], Array]
"""(latents [n, 1, 64, 64], timesteps [n]) -> predicted noise [n, 1, 64, 64]"""
Decode = Callable[[Array], Array]
"""scaled latents [n, 1, 64, 64] -> images [n, ...]"""
QUEUE_CHECK_SECONDS = 0.1


class Overloaded(Exception):
    """The rows of a request do not fit into the queue; trying again later may work."""


class Listener(Protocol):
    """Who asked for a job. One of `finished`, `failed` and `cancelled` is called, once. No method may raise."""

    def wants_out(self) -> bool:
        """Whether the requester has gone or its deadline has passed."""

    def preview(self, steps: NDArray[np.int32], estimates: Array) -> None:
        """Steps done [B] and x0 estimates [B, 1, 64, 64] of all rows, when one of them is due."""

    def finished(self, latents: Array, images: Array | None) -> None:
        """Final latents [B, 1, 64, 64] and, where decoding was asked for, images [B, ...]."""

    def failed(self, error: Exception) -> None:
        """A network call with a row of this job has failed."""

    def cancelled(self) -> None:
        """The rows have left because `wants_out` said so."""


@dataclass(eq=False)
class Job:
    """One request of B rows with their state; `latents` starts as noise [B, 1, 64, 64].

    preview_every: steps between two previews of a row, 0 = none; empty = none for all.
    """

    listener: Listener
    seeds: Sequence[int]
    tables: Sequence[SamplerTable]
    latents: Array
    preview_every: Sequence[int] = ()
    decode: bool = True
    done: NDArray[np.int32] = field(init=False)
    estimates: Array = field(init=False)
    images: Array | None = field(default=None, init=False)
    unfinished: int = field(init=False)

    def __post_init__(self) -> None:
        self.preview_every = self.preview_every or [0] * len(self.seeds)
        self.done = np.zeros(len(self.seeds), np.int32)
        self.estimates = np.zeros_like(self.latents)
        self.unfinished = len(self.seeds)


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One image on its way: a place in its job."""

    job: Job
    index: int

    @property
    def table(self) -> SamplerTable:
        """The row's coefficients."""
        return self.job.tables[self.index]

    @property
    def step(self) -> int:
        """Steps done so far."""
        return int(self.job.done[self.index])


@dataclass
class Counters:
    """What has happened since the start; read by the metrics."""

    images: int = 0
    steps: int = 0
    unet_calls: int = 0
    last_unet_batch: int = 0
    decoder_calls: int = 0
    cancelled_rows: int = 0


class Batcher:
    """The rows in flight, and the queue in front of them.

    At most `max_rows_in_flight` rows have a place; a request larger than the free places enters row by row, first
    come, first served. At most `max_rows_waiting` wait for one. A row keeps its place until it is decoded, so a slow
    decoder holds back new rows instead of piling up finished ones. One chunk of `decode_batch` rows is decoded a
    tick, so that decoding never holds the step loop for longer than a chunk.
    """

    def __init__(
        self,
        denoise: Denoise,
        decode: Decode,
        *,
        max_rows_in_flight: int = 64,
        max_rows_waiting: int = 256,
        decode_batch: int = 2,
    ) -> None:
        self._denoise, self._decode = denoise, decode
        self._max_rows_in_flight, self._max_rows_waiting = max_rows_in_flight, max_rows_waiting
        self._decode_batch = decode_batch
        self._lock = threading.Lock()
        self._waiting: deque[Row] = deque()
        self._in_flight: list[Row] = []
        self._decoding: deque[Row] = deque()
        self._next_queue_check = 0.0
        self.counters = Counters()

    def submit(self, job: Job) -> None:
        """Queue the rows of a job.

        Raises:
            Overloaded: the queue has no place for all of them; none is queued then.
        """
        rows = len(job.seeds)
        with self._lock:
            taken = len(self._in_flight) + len(self._decoding) + len(self._waiting)
            free = self._max_rows_in_flight + self._max_rows_waiting - taken
            if rows > free:
                raise Overloaded(f"the queue has room for {free} rows, not for {rows}: try again later")
            self._waiting.extend(Row(job, index) for index in range(rows))

    @property
    def rows(self) -> tuple[int, int]:
        """Rows that have a place (in the step loop or at the decoder), and rows that wait for one."""
        return len(self._in_flight) + len(self._decoding), len(self._waiting)

    def tick(self) -> bool:
        """One step of every row in flight, then one chunk of decoding. Returns whether there is more to do."""
        self._drop_cancelled()
        self._admit()
        if self._in_flight:
            self._step()
        if self._decoding:
            self._decode_chunk()
        return any(self.rows)

    def fail_all(self, error: Exception) -> None:
        """End every job with `error`."""
        with self._lock:
            rows = [*self._in_flight, *self._decoding, *self._waiting]
        self._fail(rows, error)

    def _drop_cancelled(self) -> None:
        """Rows with a place are asked about at each step, the queue ten times a second: asking costs a round trip."""
        with self._lock:
            rows = [*self._in_flight, *self._decoding]
            if time.monotonic() >= self._next_queue_check:
                rows += self._waiting
                self._next_queue_check = time.monotonic() + QUEUE_CHECK_SECONDS
        leaving = [job for job in _jobs(rows) if job.listener.wants_out()]
        if leaving:
            self.counters.cancelled_rows += self._remove(leaving)
            for job in leaving:
                job.listener.cancelled()

    def _admit(self) -> None:
        with self._lock:
            while self._waiting and len(self._in_flight) + len(self._decoding) < self._max_rows_in_flight:
                self._in_flight.append(self._waiting.popleft())

    def _step(self) -> None:
        rows = self._in_flight
        x = np.stack([row.job.latents[row.index] for row in rows])
        timesteps = np.array([row.table.timesteps[row.step] for row in rows], np.int32)
        try:
            eps = self._denoise(x, timesteps)
        except Exception as error:
            self._fail(rows, error)
            return
        self.counters.unet_calls += 1
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

    def _send_previews(self, rows: Sequence[Row]) -> None:
        due = []
        for row in rows:
            every = row.job.preview_every[row.index]
            if every > 0 and row.step % every == 0:
                due.append(row)
        for job in _jobs(due):
            job.listener.preview(job.done.copy(), job.estimates.copy())

    def _retire(self) -> None:
        """Move rows that have done their last step on to the decoder, or out."""
        retired = [row for row in self._in_flight if row.step == row.table.steps]
        with self._lock:
            self._in_flight = [row for row in self._in_flight if row.step < row.table.steps]
            self._decoding.extend(row for row in retired if row.job.decode)
        for row in retired:
            if not row.job.decode:
                self._finish(row)

    def _decode_chunk(self) -> None:
        rows = [self._decoding[i] for i in range(min(self._decode_batch, len(self._decoding)))]
        try:
            images = self._decode(np.stack([row.job.latents[row.index] for row in rows]))
        except Exception as error:
            self._fail(rows, error)
            return
        self.counters.decoder_calls += 1
        for row, image in zip(rows, images, strict=True):
            if row.job.images is None:
                row.job.images = np.empty((len(row.job.seeds), *image.shape), np.float32)
            row.job.images[row.index] = image
        with self._lock:
            for _ in rows:
                self._decoding.popleft()
        for row in rows:
            self._finish(row)

    def _finish(self, row: Row) -> None:
        job = row.job
        job.unfinished -= 1
        self.counters.images += 1
        if job.unfinished == 0:
            job.listener.finished(job.latents, job.images)

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        jobs = _jobs(rows)
        self._remove(jobs)
        for job in jobs:
            job.listener.failed(error)

    def _remove(self, jobs: Sequence[Job]) -> int:
        """Take all rows of the jobs out; returns how many those were."""
        with self._lock:
            before = len(self._in_flight) + len(self._decoding) + len(self._waiting)
            self._in_flight = [row for row in self._in_flight if row.job not in jobs]
            self._decoding = deque(row for row in self._decoding if row.job not in jobs)
            self._waiting = deque(row for row in self._waiting if row.job not in jobs)
            return before - len(self._in_flight) - len(self._decoding) - len(self._waiting)


def _jobs(rows: Sequence[Row]) -> list[Job]:
    """The jobs of the rows, each once, in order."""
    return list(dict.fromkeys(row.job for row in rows))


def _step_noise(rows: Sequence[Row], scales: Array, like: Array) -> Array:
    """Fresh noise for the rows whose sampler adds some, zeros for the others."""
    noise = np.zeros_like(like)
    for place, (row, scale) in enumerate(zip(rows, scales, strict=True)):
        if scale > 0:
            noise[place] = standard_normal(int(row.job.seeds[row.index]), row.step + 1)
    return noise
