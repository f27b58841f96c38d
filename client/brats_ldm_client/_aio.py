"""The asynchronous client: the same schedule, flows and wire format as `_client`, with `await`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy.typing as npt
from tritonclient.utils import InferenceServerException

from . import _flows
from ._base import BaseClient
from ._errors import BratsLDMError, ProtocolError
from ._options import check_stream
from ._protocol import STREAM, Request, make_request, outputs_of, parse_rows
from ._schedule import Chunk, RetryBudget, Schedule, stream_event
from ._types import Generation, Progress, ServerInfo

_GRPC_ERRORS = (InferenceServerException, grpc.RpcError)


class AsyncClient(BaseClient):
    """`Client` for asyncio, with the same methods. Cancelling the task cancels the work on the server.

    Examples:
        >>> async with AsyncClient("127.0.0.1:8001") as client:
        ...     generation = await client.generate(8, seed=0)
    """

    def _new_grpc(self) -> Any:
        from tritonclient.grpc.aio import InferenceServerClient

        return InferenceServerClient(**self._channel)

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
        latents: npt.NDArray[Any] | None = None,
        return_latents: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
        on_images: Callable[[Generation], None] | None = None,
    ) -> Generation:
        """See `Client.generate`."""
        request = make_request(
            n,
            seeds=seeds,
            seed=seed,
            preset=preset,
            steps=steps,
            sampler=sampler,
            eta=eta,
            latents=latents,
            return_latents=return_latents,
        )
        return await self._run(request, on_progress, on_images)

    async def _run(
        self,
        request: Request,
        on_progress: Callable[[int, int], None] | None,
        on_images: Callable[[Generation], None] | None,
    ) -> Generation:
        await self._connect()
        options = self._options
        schedule = Schedule(
            request,
            rows_per_request=options.rows_per_request,
            concurrency=options.concurrency,
            retry_seconds=options.retry_seconds,
            now=time.monotonic(),
        )
        calls: dict[asyncio.Task[Any], Chunk] = {}
        try:
            while not schedule.finished:
                for chunk in schedule.due(time.monotonic()):
                    calls[asyncio.create_task(self._send(schedule.rows(chunk)))] = chunk
                answered = await _first(calls, schedule.wait(time.monotonic()))
                for call in answered:
                    self._settle(schedule, calls.pop(call), call)
                if on_images is not None and (images := schedule.in_order(time.monotonic())) is not None:
                    on_images(images)
                if answered and on_progress is not None:
                    on_progress(schedule.done, schedule.total)
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        return schedule.generation(time.monotonic())

    async def _send(self, request: Request) -> Any:
        self._check_open()
        try:
            return await self._grpc.infer(**self._options.infer(request, outputs_of(request)))
        except _GRPC_ERRORS as error:
            raise self._options.error(error) from error

    def _settle(self, schedule: Schedule, chunk: Chunk, call: asyncio.Task[Any]) -> None:
        error = call.exception()
        if isinstance(error, BratsLDMError):
            schedule.failed(chunk, error, time.monotonic())
        else:
            schedule.succeeded(chunk, parse_rows(call.result(), schedule.rows(chunk)))

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
        latents: npt.NDArray[Any] | None = None,
        return_latents: bool = False,
        preview_every: int = 1,
    ) -> AsyncGenerator[Progress | Generation, None]:
        """See `Client.stream`.

        To cancel the work at once, iterate inside `contextlib.aclosing(…)`: after a bare `break`, Python closes an
        async generator only when it collects it.
        """
        request = make_request(
            n,
            seeds=seeds,
            seed=seed,
            preset=preset,
            steps=steps,
            sampler=sampler,
            eta=eta,
            latents=latents,
            return_latents=return_latents,
        )
        preview_every = check_stream(request, preview_every)
        self._check_open()
        return self._stream(request, preview_every)

    async def _stream(self, request: Request, preview_every: int) -> AsyncGenerator[Progress | Generation, None]:
        await self._connect()
        budget = RetryBudget(self._options.retry_seconds)
        attempt = 0
        while True:
            events = self._stream_once(request, preview_every)
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

    async def _stream_once(self, request: Request, preview_every: int) -> AsyncGenerator[Progress | Generation, None]:
        began = time.monotonic()
        call = self._options.stream(request, preview_every)
        responses: Any = None
        try:
            responses = self._grpc.stream_infer(_one(call), **self._options.stream_call())
            async for result, error in responses:
                if error is not None:
                    raise error
                event = stream_event(result, request, time.monotonic() - began)
                yield event
                if isinstance(event, Generation):
                    return
            raise ProtocolError(f"{STREAM} ended the stream without an image")
        except _GRPC_ERRORS as error:
            raise self._options.error(error, STREAM) from error
        finally:
            if responses is not None:
                responses.cancel()

    async def info(self) -> ServerInfo:
        """See `Client.info`."""
        await self._connect()
        return await self._drive(_flows.info(self._options))

    async def is_ready(self) -> bool:
        """See `Client.is_ready`."""
        return await self._drive(_flows.ready(self._options))

    async def wait_until_ready(
        self, timeout: float = 60.0, deep: bool = False, checksum: str | None = None
    ) -> str | None:
        """See `Client.wait_until_ready`."""
        return await self._drive(_flows.wait_until_ready(self._options, timeout, deep, checksum))

    async def _connect(self) -> None:
        self._check_open()
        if not self._connected:
            await self._drive(_flows.connect(self._options))
            self._connected = True

    async def _drive(self, flow: _flows.Flow[_flows.T]) -> _flows.T:
        self._check_open()
        try:
            step = next(flow)
            while True:
                try:
                    answer = await self._perform(step)
                except BratsLDMError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as stop:
            result: _flows.T = stop.value
            return result

    async def _perform(self, step: _flows.Call | _flows.Sleep) -> Any:
        if isinstance(step, _flows.Sleep):
            return await asyncio.sleep(step.seconds)
        try:
            return await getattr(self._grpc, step.method)(**step.kwargs)
        except _GRPC_ERRORS as error:
            raise self._options.error(error, step.model, step.kwargs.get("client_timeout")) from error

    async def close(self) -> None:
        """See `Client.close`."""
        if not self._closed:
            self._closed = True
            if not self._injected:
                await self._grpc.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _first(calls: dict[asyncio.Task[Any], Chunk], timeout: float) -> set[asyncio.Task[Any]]:
    """The calls that have ended, after at most `timeout` seconds."""
    if not calls:
        await asyncio.sleep(timeout)
        return set()
    done, _ = await asyncio.wait(calls, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    return done


async def _one(call: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The one request of a stream; then the sending side stays open, for its end would look like a hang-up."""
    yield call
    await asyncio.Event().wait()
