"""Which request is sent when, and whose answer is next: the state of a run, the same for both clients.

It neither sends nor sleeps: the clients pass it the time and the answers.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._errors import BratsLDMError, Cancelled, ProtocolError, ServerUnavailable, WeightsChanged
from ._protocol import Rows
from ._request import Request
from ._types import F32, Generation

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds
_LEAD = 4  # answers that wait for one before them, for each request in flight: this bounds the memory of a run
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
    """One request of a run: its place among them, and how often it has failed."""

    index: int
    attempt: int = 0


class Window:
    """How many requests may be in flight: fewer after the server had no room, and slowly more again.

    Additive increase, multiplicative decrease in effect: what the server has accepted stays in flight, and no more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = float(most)
        self._closed_until = 0.0

    def has_room(self, in_flight: int, now: float) -> bool:
        return in_flight < int(self._size) and now >= self._closed_until

    def busy(self, in_flight: int, again: float) -> None:
        """The server had no room, with `in_flight` others accepted. With none of ours inside, only time tells when."""
        self._size = float(max(1, in_flight))
        if not in_flight:
            self._closed_until = again

    def success(self) -> None:
        self._size = min(self._most, self._size + 1 / self._size)

    def opens(self, now: float) -> float:
        """Seconds until requests may be sent, as far as time decides it."""
        return max(0.0, self._closed_until - now)


class Schedule:
    """Keeps at most `concurrency` requests in flight, tries again what failed, gives the answers in order.

    requests: are taken one by one, when there is room for one. An answer waits until those before it are there; no
        more than a few times `concurrency` wait, however many requests there are.
    """

    def __init__(self, requests: Iterable[Request], *, concurrency: int, retry_seconds: float, now: float) -> None:
        self._source = iter(requests)
        self._exhausted = False
        self._began = now
        self._most_open = _LEAD * concurrency
        self._window = Window(concurrency)
        self._budget = RetryBudget(retry_seconds)
        self._in_flight = 0
        self._retries: list[tuple[float, Chunk]] = []  # (not before, chunk), a heap
        self._open: dict[int, Request] = {}  # begun, and not given yet
        self._answers: dict[int, Rows] = {}
        self._begun = self._given = 0
        self._weights = Weights()
        self.done = 0
        """Images that have come."""

    @property
    def finished(self) -> bool:
        return self._exhausted and not self._open

    def due(self, now: float) -> list[Chunk]:
        """The chunks to send now; they count as in flight from here on."""
        chunks = []
        while self._window.has_room(self._in_flight, now) and (chunk := self._next(now)) is not None:
            chunks.append(chunk)
            self._in_flight += 1
        return chunks

    def _next(self, now: float) -> Chunk | None:
        if self._retries and self._retries[0][0] <= now:
            return heapq.heappop(self._retries)[1]
        if self._exhausted or len(self._open) >= self._most_open:
            return None
        request = next(self._source, None)
        if request is None:
            self._exhausted = True
            return None
        self._open[self._begun] = request
        self._begun += 1
        return Chunk(self._begun - 1)

    def request(self, chunk: Chunk) -> Request:
        return self._open[chunk.index]

    def wait(self, now: float) -> float:
        """Seconds to wait for an answer before asking again what is due."""
        if (closed := self._window.opens(now)) > 0:
            return min(_POLL, closed)
        if not self._retries or not self._window.has_room(self._in_flight, now):
            return _POLL
        return min(_POLL, max(0.0, self._retries[0][0] - now))

    def settle(self, chunk: Chunk, outcome: Callable[[], Rows], now: float) -> bool:
        """Take in an answer, which `outcome` returns or raises; returns whether there are images in it."""
        try:
            rows = outcome()
        except BratsLDMError as error:
            self.failed(chunk, error, now)
            return False
        self.succeeded(chunk, rows)
        return True

    def succeeded(self, chunk: Chunk, rows: Rows) -> None:
        self._in_flight -= 1
        self._budget.success()
        self._window.success()
        self._weights.check(rows.provenance)
        self._answers[chunk.index] = rows
        self.done += len(rows.images)

    def failed(self, chunk: Chunk, error: BratsLDMError, now: float) -> None:
        """Queue the chunk for another try, or raise what ends the run."""
        self._in_flight -= 1
        pause = self._budget.pause(error, chunk.attempt, now)
        if pause is None:
            raise error
        if isinstance(error, ServerUnavailable):
            self._window.busy(self._in_flight, now + pause)
        heapq.heappush(self._retries, (now + pause, Chunk(chunk.index, chunk.attempt + 1)))

    def in_order(self, now: float) -> Iterator[Generation]:
        """The answers that have come, as far as none is missing before them; each is given once."""
        while self._given in self._answers:
            request, rows = self._open.pop(self._given), self._answers.pop(self._given)
            self._given += 1
            yield generation_of(request, rows, now - self._began)


class Weights:
    """The weights of a run, which must not change."""

    def __init__(self) -> None:
        self._digest: str | None = None

    def check(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Raises WeightsChanged if images of this run were made by other weights."""
        for record in records:
            digest = record.get("model_digest", self._digest)
            if self._digest not in (None, digest):
                raise WeightsChanged(
                    f"the weights changed during the run: {self._digest} made the first images, and now {digest} "
                    "answers. Start again with servers that all have the same weights"
                )
            self._digest = digest


def generation_of(request: Request, rows: Rows, seconds: float) -> Generation:
    return Generation(
        images=rows.images,
        seeds=request.seeds,
        steps=request.steps,
        sampler=request.sampler,
        eta=request.eta,
        provenance=tuple(rows.provenance),
        seconds=seconds,
        latents=rows.latents,
        timestep_grid=request.timestep_grid,
        decoder=request.decoder,
        labels=request.labels,
        guidance=request.guidance,
    )


class Assembly:
    """Puts the parts of a run together; the first tells the size of an image."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._filled = 0
        self._images: F32 | None = None
        self._latents: F32 | None = None
        self._provenance: list[Any] = []

    def add(self, part: Generation) -> None:
        self._images = self._fill(self._images, part.images)
        if part.latents is not None:
            self._latents = self._fill(self._latents, part.latents)
        self._provenance += part.provenance
        self._filled += len(part)

    def _fill(self, whole: F32 | None, part: F32) -> F32:
        if whole is None:
            whole = np.empty((len(self._request.seeds), *part.shape[1:]), np.float32)
        if whole.shape[1:] != part.shape[1:]:
            raise ProtocolError(f"the server sent images of {whole.shape[1:]} and of {part.shape[1:]} in one run")
        whole[self._filled : self._filled + len(part)] = part
        return whole

    def generation(self, seconds: float) -> Generation:
        if self._images is None:
            raise ProtocolError("the server sent no image")
        return generation_of(self._request, Rows(self._images, self._provenance, self._latents), seconds)
