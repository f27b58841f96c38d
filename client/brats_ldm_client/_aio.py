"""The asynchronous client: the same schedule as `_client`, with `await`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any

import numpy.typing as npt

from ._aio_connection import AsyncGrpcConnection
from ._base import BaseClient
from ._errors import BratsLDMError
from ._options import check_stream
from ._presets import GUIDANCE, resolve
from ._protocol import Rows
from ._request import ONE_STEP, Previews, Request, make_request, requests_for
from ._schedule import Assembly, Chunk, RetryBudget, Schedule
from ._transport import AsyncTransportConnection
from ._types import F32, Generation, Progress, QueueInfo, ServerInfo, Slice
from .labels.source import Labels


class AsyncClient(BaseClient):
    """`Client` for asyncio, with the same methods. Cancelling the task cancels the work on the server.

    Examples:
        >>> async with AsyncClient("127.0.0.1:8001") as client:
        ...     generation = await client.generate(8, seed=0)
    """

    def _open(self) -> None:
        self._connection: AsyncGrpcConnection | AsyncTransportConnection
        if self._transport is not None:
            self._connection = AsyncTransportConnection(self._transport)
        else:
            self._connection = AsyncGrpcConnection(self._options, self._channel)

    async def generate(
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
        """See `Client.generate`."""
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
        return await self._generate(request, on_progress, on_images)

    async def _generate(
        self,
        request: Request,
        on_progress: Callable[[int, int], None] | None,
        on_images: Callable[[Generation], None] | None,
    ) -> Generation:
        began, total = time.monotonic(), len(request.seeds)
        whole = Assembly(request)
        report = None if on_progress is None else lambda done: on_progress(done, total)
        async with aclosing(self._parts(request.split(self._options.rows_per_request), report)) as parts:
            async for part in parts:
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
    ) -> AsyncGenerator[Slice, None]:
        """See `Client.iter_images`, and `stream` for how to leave the loop."""
        how = resolve(preset, steps, sampler, eta, timestep_grid, decoder)
        first = make_request(1, how, seed=0, return_latents=return_latents)
        requests = requests_for(seeds, self._options.rows_per_request, first, labels, guidance)
        self._check_open()
        return self._iter(requests)

    async def _iter(self, requests: Iterator[Request]) -> AsyncGenerator[Slice, None]:
        async with aclosing(self._parts(requests)) as parts:
            async for part in parts:
                for made in part:
                    yield made

    async def _parts(
        self, requests: Iterator[Request], on_answer: Callable[[int], None] | None = None
    ) -> AsyncGenerator[Generation, None]:
        """See `Client._parts`."""
        await self._connect()
        options = self._options
        schedule = Schedule(
            requests, concurrency=options.concurrency, retry_seconds=options.retry_seconds, now=time.monotonic()
        )
        calls: dict[asyncio.Task[Rows], Chunk] = {}
        try:
            while True:
                for chunk in schedule.due(time.monotonic()):
                    calls[asyncio.create_task(self._send(schedule.request(chunk)))] = chunk
                for part in schedule.in_order(time.monotonic()):
                    yield part
                if schedule.finished:
                    return
                for call in await _first(calls, schedule.wait(time.monotonic())):
                    if schedule.settle(calls.pop(call), call.result, time.monotonic()) and on_answer is not None:
                        on_answer(schedule.done)
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _send(self, request: Request) -> Rows:
        self._check_open()
        return await self._connection.send(request)

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
    ) -> AsyncGenerator[Progress | Generation, None]:
        """See `Client.stream`.

        To cancel the work at once, iterate inside `contextlib.aclosing(…)`: after a bare `break`, Python closes an
        async generator only when it collects it.
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

    async def _stream(self, request: Request, previews: Previews) -> AsyncGenerator[Progress | Generation, None]:
        await self._connect()
        budget = RetryBudget(self._options.retry_seconds)
        attempt = 0
        while True:
            events = self._connection.stream(request, previews)
            began = False
            try:
                async for event in events:
                    began = True
                    yield event
                return
            except BratsLDMError as error:
                pause = budget.pause(error, attempt, time.monotonic())
                if began or pause is None:
                    raise
            finally:
                await events.aclose()
            attempt += 1
            await asyncio.sleep(pause)

    async def info(self) -> ServerInfo:
        """See `Client.info`."""
        self._check_open()
        return await self._connection.info()

    async def queue(self) -> tuple[QueueInfo, ...]:
        """See `Client.queue`."""
        self._check_open()
        return await self._connection.queue()

    async def start_noise(self, seeds: Sequence[int] | npt.NDArray[Any]) -> F32:
        """See `Client.start_noise`."""
        self._check_open()
        return await self._connection.start_noise(make_request(None, ONE_STEP, seeds=seeds))

    async def is_ready(self) -> bool:
        """See `Client.is_ready`."""
        self._check_open()
        return await self._connection.is_ready()

    async def wait_until_ready(
        self, timeout: float = 60.0, deep: bool = False, checksum: str | None = None
    ) -> str | None:
        """See `Client.wait_until_ready`."""
        self._check_open()
        return await self._connection.wait_until_ready(timeout, deep, checksum)

    async def _connect(self) -> None:
        self._check_open()
        await self._connection.connect()

    async def close(self) -> None:
        """See `Client.close`."""
        if not self._closed:
            self._closed = True
            await self._connection.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _first(calls: dict[asyncio.Task[Rows], Chunk], timeout: float) -> set[asyncio.Task[Rows]]:
    """The calls that have ended, after at most `timeout` seconds."""
    if not calls:
        await asyncio.sleep(timeout)
        return set()
    done, _ = await asyncio.wait(calls, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    return done
