"""Which request is sent when, and where its answer goes: the state of `generate`, the same for both clients.

It neither sends nor sleeps: the clients pass it the time and the answers.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._errors import BratsLDMError, Cancelled, ProtocolError, ServerUnavailable
from ._protocol import Request, Rows, has_output, parse_progress, parse_rows
from ._types import F32, Generation, Progress

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds
_POLL = 1.0  # the longest wait for an answer at a stretch, so that Ctrl-C works on every platform


def backoff(attempt: int, draw: float, retry_after: float = 0.0) -> float:
    """Seconds to wait after failure number `attempt` (from 0); `draw` in [0, 1) is the jitter.

    retry_after: when the server expects room; there is no use in asking much sooner.
    """
    # The exponent is bounded: 2.0**attempt overflows after a few hours of retries.
    pause = max(retry_after, _FIRST_PAUSE * 2.0 ** min(attempt, 16))
    return min(_LONGEST_PAUSE, pause) * (0.5 + 0.5 * draw)


@dataclass
class RetryBudget:
    """Retries end when all answers for `seconds` were "not now"; a success starts the count again.

    "Not now" is ServerUnavailable, and Cancelled: a server that stops answers some requests so, and a client that
    cancels does not ask here.
    """

    seconds: float
    since: float | None = None

    def success(self) -> None:
        self.since = None

    def pause(self, error: BratsLDMError, attempt: int, now: float) -> float | None:
        """Seconds until the next try, or None when there must be none."""
        full = isinstance(error, ServerUnavailable) and error.retryable
        if not full and not isinstance(error, Cancelled):
            return None
        hint = error.retry_after if isinstance(error, ServerUnavailable) else 0.0
        pause = backoff(attempt, random.random(), hint)
        if self.since is None:
            self.since = now
        return pause if now + pause <= self.since + self.seconds else None


@dataclass(frozen=True, order=True)
class Chunk:
    """Rows start..stop of a run: one request to the server."""

    start: int
    stop: int
    attempt: int = 0


class Schedule:
    """Splits a run into chunks, keeps at most `concurrency` in flight, and puts the answers back in order."""

    def __init__(
        self, request: Request, *, rows_per_request: int, concurrency: int, retry_seconds: float, now: float
    ) -> None:
        self.request = request
        self.total = len(request.seeds)
        self.done = 0
        self._began = now
        self._concurrency = concurrency
        self._in_flight = 0
        self._budget = RetryBudget(retry_seconds)
        starts = range(0, self.total, rows_per_request)
        # (not before, chunk): a sorted list is a heap.
        self._waiting = [(now, Chunk(start, min(start + rows_per_request, self.total))) for start in starts]
        self._assembly = Assembly(self.total)
        self._answered: dict[int, int] = {}  # first row to the one after the last, of what `in_order` has yet to give
        self._given = 0

    @property
    def finished(self) -> bool:
        return self.done == self.total

    def due(self, now: float) -> list[Chunk]:
        """The chunks to send now; they count as in flight from here on."""
        chunks = []
        while self._in_flight < self._concurrency and self._waiting and self._waiting[0][0] <= now:
            chunks.append(heapq.heappop(self._waiting)[1])
            self._in_flight += 1
        return chunks

    def wait(self, now: float) -> float:
        """Seconds to wait for an answer before asking again what is due."""
        if not self._waiting or self._in_flight >= self._concurrency:
            return _POLL
        return min(_POLL, max(0.0, self._waiting[0][0] - now))

    def rows(self, chunk: Chunk) -> Request:
        return self.request.rows(chunk.start, chunk.stop)

    def succeeded(self, chunk: Chunk, rows: Rows) -> None:
        self._in_flight -= 1
        self._budget.success()
        self._assembly.put(chunk, rows)
        self._answered[chunk.start] = chunk.stop
        self.done += chunk.stop - chunk.start

    def in_order(self, now: float) -> Generation | None:
        """The images that have come since the last call, as far as none is missing before them."""
        start = self._given
        while self._given in self._answered:
            self._given = self._answered.pop(self._given)
        rows = slice(start, self._given)
        return self._assembly.generation(self.request, now - self._began, rows) if self._given > start else None

    def failed(self, chunk: Chunk, error: BratsLDMError, now: float) -> None:
        """Queue the chunk for another try, or raise what ends the run."""
        self._in_flight -= 1
        pause = self._budget.pause(error, chunk.attempt, now)
        if pause is None:
            raise error
        heapq.heappush(self._waiting, (now + pause, Chunk(chunk.start, chunk.stop, chunk.attempt + 1)))

    def generation(self, now: float) -> Generation:
        return self._assembly.generation(self.request, now - self._began)


class Assembly:
    """Arrays that fill in any order; the first answer tells the size of an image."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._images: F32 | None = None
        self._latents: F32 | None = None
        self._provenance: list[dict[str, Any]] = [{}] * total

    def put(self, chunk: Chunk, rows: Rows) -> None:
        self._images = self._fill(self._images, chunk, rows.images)
        if rows.latents is not None:
            self._latents = self._fill(self._latents, chunk, rows.latents)
        self._provenance[chunk.start : chunk.stop] = rows.provenance

    def _fill(self, whole: F32 | None, chunk: Chunk, part: F32) -> F32:
        if whole is None:
            whole = np.empty((self._total, *part.shape[1:]), np.float32)
        if whole.shape[1:] != part.shape[1:]:
            raise ProtocolError(f"the server sent images of {whole.shape[1:]} and of {part.shape[1:]} in one run")
        whole[chunk.start : chunk.stop] = part
        return whole

    def generation(self, request: Request, seconds: float, rows: slice = slice(None)) -> Generation:
        if self._images is None:
            raise ProtocolError("the server sent no image")
        return Generation(
            images=self._images[rows],
            seeds=request.seeds[rows],
            steps=request.steps,
            sampler=request.sampler,
            eta=request.eta,
            provenance=tuple(self._provenance[rows]),
            seconds=seconds,
            latents=None if self._latents is None else self._latents[rows],
        )


def stream_event(result: Any, request: Request, seconds: float) -> Progress | Generation:
    """One answer of a stream: the last one holds the images."""
    if not has_output(result, "image"):
        step, previews = parse_progress(result, len(request.seeds))
        return Progress(step, request.steps, previews)
    assembly = Assembly(len(request.seeds))
    assembly.put(Chunk(0, len(request.seeds)), parse_rows(result, request))
    return assembly.generation(request, seconds)
