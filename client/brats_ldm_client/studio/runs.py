"""Requests on their way: the state of each after each event of the server. Knows neither Gradio nor words.

`follow` is one request. `watch` looks at several at intervals, however fast they go, and ends them when it is closed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from .._aio import AsyncClient
from .._errors import BratsLDMError, ServerUnavailable
from .._request import MAX_ROWS
from .._types import F32, Generation, Progress
from .form import How

Phase: TypeAlias = Literal["asked", "running", "busy", "done", "stopped", "failed"]
ENDED: tuple[Phase, ...] = ("done", "stopped", "failed")
_PREVIEW_BYTES = {"latent": 64 * 64 * 4, "tiny": 64 * 64 * 4 + 240 * 240 * 4}
_ROOM = 60 * 2**20  # a little less than the server's usual max_preview_mb, beyond which previews are left out
# Seconds after which `watch` gives a state although nothing has come: clocks go on, and closed tabs are noticed.
_BEAT = 1.0
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, eq=False)
class Asked:
    """One stream: rows that are made in the same way."""

    seeds: tuple[int, ...]
    how: How
    preview_every: int = 5
    preview_decoder: str = "latent"
    latents: F32 | None = None
    """[n, 64, 64]: start noise in place of that of the seeds."""

    def split(self) -> list[Asked]:
        """The same in streams that are small enough for the server to keep all their previews.

        The server bounds the previews of a stream: each answer has one of every row, and each row makes answers due.
        """
        due = max(1, self.how.steps // self.preview_every)
        rows = min(MAX_ROWS, max(1, math.isqrt(_ROOM // (due * _PREVIEW_BYTES[self.preview_decoder]))))
        count = math.ceil(len(self.seeds) / rows)
        size = math.ceil(len(self.seeds) / count)
        return [self._part(slice(first, first + size)) for first in range(0, len(self.seeds), size)]

    def _part(self, rows: slice) -> Asked:
        return replace(self, seeds=self.seeds[rows], latents=None if self.latents is None else self.latents[rows])


@dataclass(frozen=True, eq=False)
class State:
    """What is known of one request at a moment."""

    asked: Asked
    phase: Phase = "asked"
    progress: Progress | None = None
    """The newest; with previews, if any has had some."""
    generation: Generation | None = None
    error: BratsLDMError | None = None
    """Why it has failed, or has to wait."""
    again_at: float | None = None
    """While busy: when it is asked again, by time.monotonic()."""

    def step(self, row: int) -> int:
        """Steps done of a row."""
        if self.generation is not None:
            return self.asked.how.steps
        return 0 if self.progress is None else int(self.progress.step[row])

    @property
    def steps_done(self) -> int:
        """Summed over the rows."""
        return sum(self.step(row) for row in range(len(self.asked.seeds)))

    @property
    def steps_asked(self) -> int:
        return self.asked.how.steps * len(self.asked.seeds)


async def follow(client: AsyncClient, asked: Asked) -> AsyncGenerator[State, None]:
    """The states of one request, which is asked again while the server has no room. Closing it cancels the request."""
    state = State(asked)
    yield state
    while True:
        try:
            async with aclosing(_events(client, asked)) as events:
                async for event in events:
                    state = _after(state, event)
                    yield state
            return
        except BratsLDMError as error:
            pause = _pause(error)
            if pause is None:
                yield replace(state, phase="failed", error=error, again_at=None)
                return
            state = replace(state, phase="busy", error=error, again_at=time.monotonic() + pause)
        yield state
        await asyncio.sleep(pause)


async def _events(client: AsyncClient, asked: Asked) -> AsyncGenerator[Progress | Generation, None]:
    how = asked.how
    stream = client.stream(
        seeds=asked.seeds,
        sampler=how.sampler,
        steps=how.steps,
        eta=how.eta,
        timestep_grid=how.timestep_grid,
        decoder=how.decoder,
        latents=asked.latents,
        preview_every=asked.preview_every,
        preview_decoder=asked.preview_decoder,
    )
    async with aclosing(stream) as events:
        async for event in events:
            yield event


def _after(state: State, event: Progress | Generation) -> State:
    if isinstance(event, Generation):
        return replace(state, phase="done", generation=event, error=None, again_at=None)
    return replace(state, phase="running", progress=event, error=None, again_at=None)


def _pause(error: BratsLDMError) -> float | None:
    """Seconds after which the same request may find room; None if it will not."""
    if isinstance(error, ServerUnavailable) and error.retryable and error.retry_after > 0:
        return min(error.retry_after, _LONGEST_PAUSE)
    return None


async def watch(
    client: AsyncClient, requests: Sequence[Asked], stop: asyncio.Event, interval: float = 0.25
) -> AsyncGenerator[tuple[State, ...], None]:
    """The newest states of requests that run together: at most one every `interval` seconds, the last ones always.

    stop: once set, the requests that run are cancelled on the server, and are "stopped" in the last states.
    """
    states = [State(asked) for asked in requests]
    changed = asyncio.Event()

    async def pump(place: int, asked: Asked) -> None:
        try:
            async with aclosing(follow(client, asked)) as run:
                async for state in run:
                    states[place] = state
                    changed.set()
        finally:
            changed.set()

    tasks = [asyncio.create_task(pump(place, asked)) for place, asked in enumerate(requests)]
    try:
        while not stop.is_set() and not all(task.done() for task in tasks):
            yield tuple(states)
            await _first(_BEAT, stop, changed)
            await _first(interval, stop)
            changed.clear()
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end
    yield tuple(state if state.phase in ENDED else replace(state, phase="stopped") for state in states)


async def _first(timeout: float, *events: asyncio.Event) -> None:
    """Return when one of the events is set, or after `timeout` seconds."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
