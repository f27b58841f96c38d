"""The servers and workers of a simulated fleet, as SimPy runs them. Times are in seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from brats_ldm_client import BratsLDMError, ServerUnavailable
from brats_ldm_client._protocol import Rows
from brats_ldm_client._request import Request, make_request
from brats_ldm_client._schedule import Chunk, Schedule

if TYPE_CHECKING:
    from benchmarks.scale.fleet import Run

Events = Generator[simpy.Event, Any, None]
Outcomes = Callable[[], Rows]
NEVER = float("inf")
_HOW = make_request(1, seed=0)
_BUSY_PAUSE = 5.0  # the longest that a client waits for a server that is full


@dataclass
class Attempt:
    """What a worker did about a shard. `made`: how many of its images the worker had when it died or had finished."""

    worker: int
    shard: int
    began: float
    ended: float = 0.0
    made: int = 0
    whole: bool = False


class _Ask:
    """A request at a server. `answer` gets the outcome: a function that returns the rows or raises."""

    def __init__(self, rows: int, answer: Callable[[Outcomes], None]) -> None:
        self.rows, self.answer, self.wanted, self.left_s = rows, answer, True, 0.0


class Server:
    """Works on what it has been asked, in that order."""

    def __init__(self, run: Run, index: int, speed: float) -> None:
        self._run, self._index, self._speed = run, index, speed
        self._queue: deque[_Ask] = deque()
        self._rows = 0
        self._woken = run.env.event()
        self._sound = True
        self.up, self.crashes, self.computed, self.busy_s = True, 0, 0, 0.0
        self._process = run.env.process(self._work())

    def ask(self, ask: _Ask) -> None:
        fleet = self._run.fleet
        if not self.up or self._rows + ask.rows > fleet.room_rows:
            ask.answer(_refusal(_BUSY_PAUSE if self.up else 0.0))
            return
        ask.left_s = ask.rows * fleet.image_s / self._speed
        self._queue.append(ask)
        self._rows += ask.rows
        self._run.requests[self._index] += 1
        if not self._woken.triggered:
            self._woken.succeed()

    def disturb(self, stall_s: float | None) -> None:
        """Freeze it for so long, or crash it (None), unless it is frozen or down."""
        if self._sound:
            self._process.interrupt(stall_s)

    def _work(self) -> Events:
        env = self._run.env
        while True:
            began, ask = env.now, self._queue[0] if self._queue else None
            try:
                if ask is None:
                    self._woken = env.event()
                    yield self._woken
                    continue
                if ask.wanted:
                    yield env.timeout(ask.left_s)
                    self.computed += ask.rows
                    self.busy_s += env.now - began
                self._answer(ask)
            except simpy.Interrupt as interrupt:
                if ask is not None:
                    ask.left_s -= env.now - began
                    self.busy_s += env.now - began
                yield from self._disturbed(interrupt.cause)

    def _answer(self, ask: _Ask) -> None:
        self._queue.popleft()
        self._rows -= ask.rows
        self._run.requests[self._index] -= 1
        ask.answer(lambda: _rows(ask.rows))

    def _disturbed(self, stall_s: float | None) -> Events:
        env = self._run.env
        self._sound = False
        if stall_s is not None:
            yield env.timeout(stall_s)
        else:
            self.up, self.crashes, self._run.requests[self._index] = False, self.crashes + 1, NEVER
            lost, self._queue, self._rows = self._queue, deque(), 0
            for ask in lost:
                ask.answer(_refusal(0.0))
            yield env.timeout(self._run.fleet.server_repair_s)
            self.up, self._run.requests[self._index] = True, 0
        self._sound = True


@cache
def _rows(count: int) -> Rows:
    """An answer of so many images, which nobody looks at."""
    return Rows(np.zeros((count, 1, 1), np.float32), [], None)


def _refusal(retry_after: float) -> Outcomes:
    def refuse() -> Rows:
        error = ServerUnavailable("the simulated server is full or down")
        error.retry_after = retry_after
        raise error

    return refuse


class Worker:
    """Makes the shards that it is given, or the next one that is missing."""

    def __init__(self, run: Run, index: int) -> None:
        self._run, self._index = run, index
        self._next = run.draw.randrange(len(run.servers))
        self._mail: list[tuple[Chunk, Outcomes]] = []
        self._asked: dict[Chunk, _Ask] = {}
        self._arrived = run.env.event()
        self._making = False
        self._process = run.env.process(self._work())

    def kill(self) -> None:
        if self._making:
            self._process.interrupt()

    def _work(self) -> Events:
        env, run = self._run.env, self._run
        shards = run.shards_of(self._index)
        while True:
            if not shards:
                yield run.idle()
                continue
            attempt = Attempt(self._index, shards.popleft(), env.now)
            run.attempts.append(attempt)
            self._making = True
            try:
                yield from self._make(attempt)
                attempt.whole = True
            except (simpy.Interrupt, BratsLDMError):
                pass
            self._making, attempt.ended = False, env.now
            if attempt.whole:
                run.whole()
            else:
                self._forget()
                run.lost(attempt)
                yield env.timeout(run.fleet.worker_restart_s)

    def _make(self, attempt: Attempt) -> Events:
        env, fleet = self._run.env, self._run.fleet
        if fleet.shard_s:
            yield env.timeout(fleet.shard_s)
        schedule = Schedule(
            replace(_HOW, seeds=np.array(fleet.shard(attempt.shard))).split(fleet.rows),
            concurrency=fleet.concurrency, retry_seconds=fleet.retry_s, now=env.now,
        )  # fmt: skip
        to_retry = 0
        while True:
            for chunk in schedule.due(env.now):
                to_retry -= chunk.attempt > 0
                self._send(chunk, schedule.request(chunk))
            attempt.made += sum(len(part) for part in schedule.in_order(env.now))
            if schedule.finished:
                return
            if not self._mail:
                self._arrived = env.event()
                # Only time can tell when a retry is due, and when the window opens that a busy server has closed.
                timed = to_retry or not self._asked
                yield self._arrived | env.timeout(schedule.wait(env.now)) if timed else self._arrived
            mail, self._mail = self._mail, []
            for chunk, outcome in mail:
                to_retry += not schedule.settle(chunk, outcome, env.now)

    def _send(self, chunk: Chunk, request: Request) -> None:
        def answered(outcome: Outcomes) -> None:
            if ask.wanted:
                del self._asked[chunk]
                self._mail.append((chunk, outcome))
                if not self._arrived.triggered:
                    self._arrived.succeed()

        ask = self._asked[chunk] = _Ask(len(request.seeds), answered)
        self._server().ask(ask)

    def _server(self) -> Server:
        servers, finding = self._run.servers, self._run.fleet.finding
        if finding == "own server":
            return servers[self._index]
        if finding == "least busy":
            return servers[int(self._run.requests.argmin())]
        for _ in servers:
            self._next = (self._next + 1) % len(servers)
            if servers[self._next].up:
                break
        return servers[self._next]

    def _forget(self) -> None:
        """The requests of a dead worker are dropped; the one that a server works on ends first."""
        for ask in self._asked.values():
            ask.wanted = False
        self._asked, self._mail = {}, []
