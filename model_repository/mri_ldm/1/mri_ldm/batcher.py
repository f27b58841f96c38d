"""Step-level continuous batching: one network call a tick for rows of all requests, each at its own step.

Knows nothing of Triton: a request is a `Job`, its answers go to the job's `Listener`, and the networks are functions.
Only `submit`, `state` and the properties may be used by another thread than the one that calls `tick`.
"""

import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

import numpy as np

from .call_sizer import CallSizer
from .job_queue import Array, Job, JobQueue, Row
from .previews import previews_due, send_previews
from .slots import Slots
from .stepping import Stepper

Decode = Callable[[Array], Array]
"""scaled latents [n, 1, 64, 64] -> images [n, ...]"""
QUEUE_CHECK_SECONDS = 0.1
MOST_ESTIMATES = 320
"""Most estimates in the answer of one call: 5 MB, which must fit into shared memory."""
LONGEST_CALL_SECONDS = 0.5
"""For a call of several steps, since new rows, cancellations and deadlines wait for its end."""
ASKING_SHARE = 20
"""After each round of asking, pause this many times as long as the round took: it costs a twentieth of the time."""
LONGEST_UNASKED_SECONDS = 1.0
"""The longest such pause: a round may have taken long because the machine was busy."""
BATCH_SIZES = ("1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65+")
"""Rows in a call of the UNet, as `Counters.unet_calls` groups them."""


@dataclass
class Counters:
    """What has happened since the start; read by the metrics, from another thread."""

    images: int = 0
    started_rows: int = 0
    queue_seconds: float = 0.0
    steps: int = 0
    unet_calls: list[int] = field(default_factory=lambda: [0] * len(BATCH_SIZES))
    call_steps: int = 0
    last_unet_batch: int = 0
    step_seconds: float = 0.0
    preview_seconds: float = 0.0
    decoder_calls: int = 0
    decode_seconds: float = 0.0


class Batcher:
    """All unfinished rows: in the step loop, at the decoder, or waiting.

    At most `max_rows_in_flight` rows take steps together; one with guidance counts as two. At each call `JobQueue` says
    which are first, and `CallSizer` how many rows and steps suit the device. At most `max_rows_waiting` more rows may
    wait. A finished row keeps its place until it is decoded, so a slow decoder delays other rows instead of piling up
    work. For each step of a call at most one chunk of `decode_batch` rows is decoded before the next call; rows for the
    small decoder go in chunks of their own, of `tiny_decode_batch`.
    """

    def __init__(
        self,
        steppers: Sequence[Stepper],
        decode: Decode,
        *,
        max_rows_in_flight: int = 64,
        max_rows_waiting: int = 256,
        max_row_steps: int = 100_000,
        decode_batch: int = 2,
        tiny_decode: Decode | None = None,
        tiny_decode_batch: int = 1,
        calling: Callable[[Sequence[Row]], object] = lambda rows: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """steppers: a row is advanced by the first one that accepts it; the last one accepts every row.

        tiny_decode: makes the images of rows that are `tiny`; needed where there are any.
        calling: called with the rows of each call of a network before it is made, and with none after the last.
        """
        self._steppers, self._calling, self._clock = steppers, calling, clock
        self._decoders = {False: (decode, decode_batch), True: (tiny_decode or decode, tiny_decode_batch)}
        self._max_rows_in_flight = max_rows_in_flight
        self._max_rows_waiting = max_rows_waiting
        self._queue = JobQueue(max_rows_in_flight + max_rows_waiting, max_row_steps, clock)
        self._sizer = CallSizer(max(max_rows_in_flight, 2), LONGEST_CALL_SECONDS)  # one row may take two predictions
        self._slots = Slots(max_rows_in_flight)
        self._in_step: Sequence[Row] = []
        self._decoding: deque[Row] = deque()
        self._next_check = self._next_queue_check = 0.0
        self.counters = Counters()

    def submit(self, job: Job) -> None:
        """Admit the rows of a job; raises Busy or Draining as `JobQueue.submit`."""
        self._queue.submit(job)

    def close(self, reason: str) -> None:
        """Admit no more jobs; admitted jobs go on."""
        self._queue.close(reason)

    @property
    def rows(self) -> tuple[int, int]:
        """Rows that have a place (in the last step or at the decoder), and the others."""
        placed = len(self._in_step) + len(self._decoding)
        return placed, max(0, self._queue.rows - placed)

    @property
    def row_steps(self) -> int:
        """Steps still to do, summed over all rows."""
        return self._queue.row_steps

    def state(self) -> dict[str, int | float | bool | None]:
        """What there is to do, as the output `queue` tells it."""
        in_flight, waiting = self.rows
        seconds = self._queue.seconds_left
        return {
            "rows_in_flight": in_flight,
            "rows_waiting": waiting,
            "row_steps_left": self.row_steps,
            "max_rows_in_flight": self._max_rows_in_flight,
            "max_rows_waiting": self._max_rows_waiting,
            "draining": self._queue.closed,
            "seconds_left": None if seconds is None else round(seconds, 3),
        }

    def tick(self) -> bool:
        """One call for as many rows as there are places, and a chunk of decoding for each of its steps.

        Returns whether there is more to do.
        """
        self._drop_leavers()
        stepper, self._in_step = self._choose()
        steps = self._advance(stepper) if self._in_step else 1
        for _ in range(steps):
            if self._decoding:
                self._decode_chunk()
                self._drop_leavers()
        self._calling(())  # do not keep finished rows alive
        return self._queue.rows > 0

    def fail_all(self, error: Exception) -> None:
        """End every job with `error`."""
        self._fail(self._queue.jobs, error)

    def _drop_leavers(self) -> None:
        """Remove jobs whose deadline has passed or whose client has gone.

        Rows with a place are checked before each call of a network, others ten times a second. Asking
        about a client costs a round trip, so with many jobs it is done less often, but at least once a second.
        """
        began = self._clock()
        look_at_all = began >= self._next_queue_check
        jobs = self._queue.jobs if look_at_all else _jobs([*self._in_step, *self._decoding])
        leaving = [job for job in jobs if job.listener.late()]
        if look_at_all or began >= self._next_check:
            leaving += [job for job in jobs if job not in leaving and job.listener.gone()]
            now = self._clock()
            self._next_check = now + min(ASKING_SHARE * (now - began), LONGEST_UNASKED_SECONDS)
            if look_at_all:
                self._next_queue_check = max(self._next_check, now + QUEUE_CHECK_SECONDS)
        if leaving:
            self._remove(leaving)
            for job in leaving:
                job.listener.cancelled(job.unfinished)

    def _choose(self) -> tuple[Stepper, Sequence[Row]]:
        """The rows of the next call, and the stepper that advances them: that of the first row in the queue."""
        ready = self._queue.ready()
        first = next(ready, None)
        places = self._max_rows_in_flight - len(self._decoding)
        if first is None or places <= 0:
            return self._steppers[-1], []
        stepper = self._stepper(first)
        alike = (row for row in ready if self._stepper(row) is stepper)
        rows = _fitting([first, *islice(alike, places - 1)], places)
        if stepper.computed > 1 and any(row.preview_every for row in rows):
            rows = rows[: max(1, MOST_ESTIMATES // stepper.computed)]
        wanted = self._sizer.rows(_predictions(rows), self._queue.rows, least=first.predictions)
        return stepper, _reaching(rows, wanted)

    def _stepper(self, row: Row) -> Stepper:
        return next(stepper for stepper in self._steppers if stepper.takes(row))

    def _advance(self, stepper: Stepper) -> int:
        """Make one call; returns its steps."""
        rows, began = self._in_step, self._clock()
        self._calling(rows)
        self._start(rows, began)
        steps = self._steps(stepper, rows)
        counts = [min(steps, row.left) for row in rows]
        due = previews_due(rows, counts)
        state = self._slots.take(rows)
        started = self._clock()
        try:
            estimates = stepper.advance(rows, state, steps, bool(due))
        except Exception as error:
            self._fail(_jobs(rows), error)
            return steps
        took = self._clock() - started
        self._sizer.measured(_predictions(rows), stepper.computed or steps, took)
        predicted = sum(count * row.predictions for row, count in zip(rows, counts, strict=True))
        self._queue.measured(predicted, took)
        self._count_call(_predictions(rows), max(counts), predicted)
        self._slots.put(rows, state)
        shown = self._show(due, rows, counts, estimates)
        for row, count in zip(rows, counts, strict=True):
            row.step += count
            row.job.steps_left -= count * row.predictions
        self._retire()
        self.counters.step_seconds += self._clock() - began - shown
        return max(counts)

    def _show(
        self, due: Mapping[Job, Sequence[int]], rows: Sequence[Row], counts: Sequence[int], estimates: Array | None
    ) -> float:
        """Tell listeners of the previews that are due; returns the seconds that this took: one may decode them."""
        began = self._clock()
        if estimates is not None:
            send_previews(due, rows, counts, estimates, self._slots)
        seconds = self._clock() - began
        self.counters.preview_seconds += seconds
        return seconds

    def _start(self, rows: Sequence[Row], now: float) -> None:
        """Places for the rows that take their first steps."""
        for row in rows:
            if row.step == 0:
                self._slots.start(row)
                self.counters.started_rows += 1
                self.counters.queue_seconds += now - row.job.arrived

    def _steps(self, stepper: Stepper, rows: Sequence[Row]) -> int:
        """The steps of the next call; fewer do not make the call of an unrolled network shorter."""
        if stepper.computed:
            return stepper.most
        # If rows wait for a place, a new row waits for a place too, and not for the end of this call.
        arriving = self._queue.arriving if self._queue.rows <= self._max_rows_in_flight else 0.0
        shown = any(row.preview_every for row in rows)
        most = max(1, min(stepper.most, MOST_ESTIMATES // len(rows))) if shown else stepper.most
        return self._sizer.steps([row.left for row in rows], most, arriving)

    def _count_call(self, rows: int, steps: int, predicted: int) -> None:
        self.counters.unet_calls[min((rows - 1).bit_length(), len(BATCH_SIZES) - 1)] += 1
        self.counters.last_unet_batch = rows
        self.counters.call_steps += steps
        self.counters.steps += predicted

    def _retire(self) -> None:
        """Send rows that have done their last step to the decoder, or finish them."""
        retired = [row for row in self._in_step if not row.left]
        self._in_step = [row for row in self._in_step if row.left]
        for row in retired:
            row.job.latents[row.index], estimate = self._slots.of(row)
            if row.job.estimates is not None:
                row.job.estimates[row.index] = estimate
            self._slots.release(row)
            if row.job.decode:
                self._decoding.append(row)
            else:
                self._finish(row)

    def _decode_chunk(self) -> None:
        tiny = self._decoding[0].tiny
        decode, most = self._decoders[tiny]
        rows = [*islice((row for row in self._decoding if row.tiny == tiny), most)]
        self._calling(rows)
        began = self._clock()
        try:
            images = decode(np.stack([row.job.latents[row.index] for row in rows]))
        except Exception as error:
            self._fail(_jobs(rows), error)
            return
        self.counters.decoder_calls += 1
        self.counters.decode_seconds += self._clock() - began
        for row, image in zip(rows, images, strict=True):
            if row.job.images is None:
                row.job.images = np.empty((len(row.job.rows), *image.shape), np.float32)
            row.job.images[row.index] = image
        self._decoding = deque(row for row in self._decoding if row not in rows)
        for row in rows:
            self._finish(row)

    def _finish(self, row: Row) -> None:
        job = row.job
        job.unfinished -= 1
        self.counters.images += 1
        if job.unfinished == 0:
            self._queue.remove([job])
            job.listener.finished(job.latents, job.images)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        self._remove(jobs)
        for job in jobs:
            job.listener.failed(error)

    def _remove(self, jobs: Sequence[Job]) -> None:
        """Take all rows of the jobs out."""
        for row in (row for job in jobs for row in job.rows):
            self._slots.release(row)
        self._queue.remove(jobs)
        self._in_step = [row for row in self._in_step if row.job not in jobs]
        self._decoding = deque(row for row in self._decoding if row.job not in jobs)


def _predictions(rows: Iterable[Row]) -> int:
    """The rows in a call of the UNet."""
    return sum(row.predictions for row in rows)


def _fitting(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """The first rows that take `most` predictions or fewer together; the first row in any case."""
    taken = list(accumulate(row.predictions for row in rows))
    return rows[: max(1, bisect_right(taken, most))]


def _reaching(rows: Sequence[Row], least: int) -> Sequence[Row]:
    """As few of the first rows as take `least` predictions together."""
    taken = list(accumulate(row.predictions for row in rows))
    return rows[: bisect_left(taken, least) + 1]


def _jobs(rows: Iterable[Row]) -> list[Job]:
    """The jobs of the rows, each once, in order."""
    return list(dict.fromkeys(row.job for row in rows))
