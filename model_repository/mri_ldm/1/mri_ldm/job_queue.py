"""The queue of requests: which rows take the next step, and how much may wait. Knows neither networks nor Triton."""

import bisect
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from operator import attrgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import Busy, Draining
from .samplers import SamplerTable

Array = NDArray[np.float32]
SLOWDOWN = 5.0
SMOOTHING = 0.1
ARRIVALS_SECONDS = 1.0


class Listener(Protocol):
    """Receives the results of a job. One of `finished`, `failed`, `cancelled` is called, once. No method may raise."""

    def late(self) -> bool:
        """Whether its deadline has passed."""

    def gone(self) -> bool:
        """Whether the client has gone or has cancelled; asking takes a moment."""

    def preview(self, steps: NDArray[np.int32], estimates: Array) -> None:
        """Steps done [B] and x0 estimates [B, 1, 64, 64] of all rows, when one of them is due."""

    def finished(self, latents: Array, images: Array | None) -> None:
        """Final latents [B, 1, 64, 64] and, where decoding was asked for, images [B, ...]."""

    def failed(self, error: Exception) -> None:
        """A network call with a row of this job has failed."""

    def cancelled(self, rows: int) -> None:
        """`rows` unfinished rows were dropped because the deadline has passed or the client has gone."""


@dataclass(eq=False, slots=True)
class Row:
    """One image in progress: its job, and the steps it has done.

    tiny: for the small decoder. guidance: of its labels (Ho & Salimans 2022); 1 is none. slot: its place in `Slots`
    once it has started.
    """

    job: "Job"
    index: int
    seed: int
    table: SamplerTable
    preview_every: int
    tiny: bool
    guidance: float = 1.0
    step: int = 0
    slot: int = -1

    @property
    def left(self) -> int:
        """Steps still to do."""
        return self.table.steps - self.step

    @property
    def predictions(self) -> int:
        """Rows that it takes in a call of the UNet: with guidance one with its labels and one without."""
        return 1 if self.guidance == 1 else 2

    @property
    def condition(self) -> Array | None:
        """What the UNet sees of its labels, [4, 64, 64]; None without labels."""
        return None if self.job.conditions is None else self.job.conditions[self.index]


@dataclass(eq=False)
class Job:
    """One request of B rows; `latents` [B, 1, 64, 64] are noise at the start, and the result in the end.

    preview_every: steps between two previews of a row, 0 = none; empty = none for all. tiny: whether the small decoder
    makes a row's image; empty = no row's. conditions: of all rows [B, 4, 64, 64], if they have labels; guidance: of
    each, empty = none. arrived, due: see `JobQueue`.
    estimates: the last x0 estimates of the rows that are done, where there are previews.
    steps_left: of all rows; those of a row with guidance count twice.
    """

    listener: Listener
    seeds: InitVar[Sequence[int]]
    tables: InitVar[Sequence[SamplerTable]]
    latents: Array
    preview_every: InitVar[Sequence[int]] = ()
    decode: bool = True
    tiny: InitVar[Sequence[bool]] = ()
    conditions: Array | None = None
    guidance: InitVar[Sequence[float]] = ()
    arrived: float = field(default=0.0, init=False)
    due: float = field(default=0.0, init=False)
    rows: Sequence[Row] = field(init=False)
    estimates: Array | None = field(default=None, init=False)
    images: Array | None = field(default=None, init=False)
    unfinished: int = field(init=False)
    steps_left: int = field(init=False)

    def __post_init__(
        self,
        seeds: Sequence[int],
        tables: Sequence[SamplerTable],
        preview_every: Sequence[int],
        tiny: Sequence[bool],
        guidance: Sequence[float],
    ) -> None:
        count = len(seeds)
        optional = (preview_every or [0] * count, tiny or [False] * count, guidance or [1.0] * count)
        self.rows = [Row(self, *row) for row in zip(range(count), seeds, tables, *optional, strict=True)]
        self.unfinished = len(self.rows)
        self.steps_left = sum(row.table.steps * row.predictions for row in self.rows)
        if any(preview_every):
            self.estimates = np.zeros_like(self.latents)


class JobQueue:
    """The jobs that are not finished, first due first, and the admission of new ones.

    A job is due after SLOWDOWN times what it would take alone: so a short one passes a long one that came shortly
    before it, and no job is passed by later ones for ever. Any row may pause between two steps at no cost.

    `submit` and the properties may be used by any thread; everything else by one.
    """

    def __init__(self, max_rows: int, max_row_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        """max_rows: at once, running or not; max_row_steps: steps still to do, summed over rows."""
        self._max_rows, self._max_row_steps, self._clock = max_rows, max_row_steps, clock
        self._lock = threading.Lock()
        self._jobs: list[Job] = []
        self._seconds_per_row_step = 0.0
        self._arrivals, self._last_arrival = 0.0, clock()
        self._closed = ""

    def close(self, reason: str) -> None:
        """Admit no more jobs, for this reason. Once this has returned, no job is admitted."""
        with self._lock:
            self._closed = reason

    def submit(self, job: Job) -> None:
        """Admit the rows of a job. An empty queue takes any job with at most `max_rows` rows.

        Raises:
            Busy: there is no room for all rows; then no row is admitted.
            Draining: the queue is closed.
        """
        rows, row_steps = len(job.rows), job.steps_left
        with self._lock:
            if self._closed:
                raise Draining(self._closed)
            free, waiting = self._max_rows - self._rows(), self._row_steps()
            if rows > free:
                shortage = (rows - free) / max(self._rows(), 1)
                raise Busy(f"the queue has room for {free} rows, not for {rows}", self._seconds_until(shortage))
            if waiting and waiting + row_steps > self._max_row_steps:
                shortage = (waiting + row_steps - self._max_row_steps) / waiting
                raise Busy(
                    f"the queue holds {waiting} steps of work and takes {self._max_row_steps}, so not {row_steps} more "
                    f"({rows} rows)",
                    self._seconds_until(shortage),
                )
            job.arrived = self._clock()
            if self._jobs:
                self._arrivals, self._last_arrival = self._decayed(job.arrived) + rows, job.arrived
            job.due = job.arrived + SLOWDOWN * row_steps * self._seconds_per_row_step
            bisect.insort(self._jobs, job, key=attrgetter("due"))

    def _seconds_until(self, share: float) -> int:
        """Seconds until this share of the work will have been done, at least 1."""
        return max(1, math.ceil(min(1.0, share) * self._row_steps() * self._seconds_per_row_step))

    @property
    def closed(self) -> bool:
        """Whether no more jobs are admitted."""
        return bool(self._closed)

    @property
    def seconds_left(self) -> float | None:
        """Estimate for the steps still to do; None before the first call."""
        seconds = self._seconds_per_row_step
        return self.row_steps * seconds if seconds else None

    @property
    def jobs(self) -> list[Job]:
        """All that are not finished, first due first."""
        with self._lock:
            return list(self._jobs)

    @property
    def rows(self) -> int:
        """Rows that are not finished."""
        with self._lock:
            return self._rows()

    @property
    def row_steps(self) -> int:
        """Steps still to do, summed over all rows."""
        with self._lock:
            return self._row_steps()

    def _rows(self) -> int:
        return sum(job.unfinished for job in self._jobs)

    def _row_steps(self) -> int:
        return sum(job.steps_left for job in self._jobs)

    def ready(self) -> Iterator[Row]:
        """The rows that have steps to do, first due first."""
        return (row for job in self.jobs for row in job.rows if row.step < row.table.steps)

    @property
    def arriving(self) -> float:
        """Rows that arrived per second lately, while other rows were present."""
        with self._lock:
            return self._decayed(self._clock()) / ARRIVALS_SECONDS

    def _decayed(self, now: float) -> float:
        return self._arrivals * math.exp((self._last_arrival - now) / ARRIVALS_SECONDS)

    def measured(self, row_steps: int, seconds: float) -> None:
        """A call that did `row_steps` steps, summed over its rows, took `seconds`."""
        new, old = seconds / row_steps, self._seconds_per_row_step
        self._seconds_per_row_step = new if old == 0 else old + SMOOTHING * (new - old)

    def remove(self, jobs: Sequence[Job]) -> None:
        """Take jobs out, finished or not, with their rows."""
        with self._lock:
            self._jobs = [job for job in self._jobs if job not in jobs]
        for job in jobs:
            job.rows = ()  # rows and job refer to each other: their memory would wait for the garbage collector
