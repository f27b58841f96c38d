"""How the asynchronous client reaches a server: the methods of `GrpcConnection`, with `await`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from . import _flows
from ._connection import GRPC_ERRORS
from ._errors import BratsLDMError, ProtocolError
from ._options import Options
from ._protocol import STREAM, Rows, outputs_of, parse_rows
from ._request import Previews, Request
from ._stream import stream_event
from ._types import F32, Generation, Progress, QueueInfo, ServerInfo

_REASON_LOST = "Internal error from Core"  # grpc.aio's words for a request that it could not write
_TRIES = 10  # on a busy machine one in five loses the reason


class AsyncGrpcConnection:
    """A gRPC channel to a server, made by tritonclient when it is first used."""

    def __init__(self, options: Options, channel: dict[str, Any]) -> None:
        from tritonclient.grpc.aio import InferenceServerClient

        self._options = options
        self._grpc: Any = InferenceServerClient(**channel)
        self._answered = False

    async def connect(self) -> None:
        """See `GrpcConnection.connect`."""
        if not self._answered:
            await self._drive(_flows.connect(self._options))
            self._answered = True

    async def send(self, request: Request) -> Rows:
        """The answer to a request."""
        try:
            result = await self._grpc.infer(**self._options.infer(request, outputs_of(request)))
        except GRPC_ERRORS as error:
            raise self._options.error(error) from error
        return parse_rows(result, request)

    async def stream(self, request: Request, previews: Previews) -> AsyncGenerator[Progress | Generation, None]:
        """The events of one stream, tried once."""
        began = time.monotonic()
        call = self._options.stream(request, previews)
        try:
            async with aclosing(self._answers(call, asyncio.Event(), self._options)) as answers:
                async for result, error in answers:
                    if error is not None:
                        raise error
                    event = stream_event(result, request, time.monotonic() - began)
                    yield event
                    if isinstance(event, Generation):
                        return
            raise ProtocolError(f"{STREAM} ended the stream without an image")
        except GRPC_ERRORS as error:
            raise self._options.error(error, STREAM) from error

    async def _answers(
        self, call: dict[str, Any], answered: asyncio.Event, options: Options
    ) -> AsyncGenerator[tuple[Any, BaseException | None], None]:
        """What comes on the stream of one request. Closing it cancels a stream that has not ended.

        A server that refuses the stream itself, as it does for a wrong secret, may end it before the request is
        written. grpc.aio then loses the reason. The server has not seen the request, so it is sent again.
        """
        for tries_left in reversed(range(_TRIES)):
            responses = self._grpc.stream_infer(_one(call, answered), **options.stream_call())
            try:
                async for answer in responses:
                    yield answer
                return
            except GRPC_ERRORS as error:
                if _REASON_LOST not in str(error) or not tries_left:
                    raise
            finally:
                responses.cancel()

    async def info(self) -> ServerInfo:
        await self.connect()
        return await self._drive(_flows.info(self._options))

    async def is_ready(self) -> bool:
        return await self._drive(_flows.ready(self._options))

    async def wait_until_ready(self, timeout: float, deep: bool, checksum: str | None) -> str | None:
        return await self._drive(_flows.wait_until_ready(self._options, timeout, deep, checksum))

    async def queue(self) -> tuple[QueueInfo, ...]:
        await self.connect()
        return await self._drive(_flows.queue(self._options))

    async def start_noise(self, request: Request) -> F32:
        await self.connect()
        return await self._drive(_flows.start_noise(self._options, request))

    async def _ask(self, step: _flows.Ask) -> Any:
        """The only answer of a stream, which then ends by itself: it is asked often, and a cancelled one can do harm.

        See `ResponseStream.close`.
        """
        answers: list[tuple[Any, BaseException | None]] = []
        answered = asyncio.Event()
        async with aclosing(self._answers(step.call, answered, step.options)) as stream:
            async for answer in stream:
                answers.append(answer)
                answered.set()
        if not answers:
            raise ProtocolError(f"{STREAM} ended the stream without an answer")
        result, error = answers[0]
        if error is not None:
            raise error
        return result

    async def _drive(self, flow: _flows.Flow[_flows.T]) -> _flows.T:
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

    async def _perform(self, step: _flows.Call | _flows.Ask | _flows.Sleep) -> Any:
        if isinstance(step, _flows.Sleep):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, _flows.Ask):
            try:
                return await self._ask(step)
            except GRPC_ERRORS as error:
                raise step.options.error(error, STREAM) from error
        try:
            return await getattr(self._grpc, step.method)(**step.kwargs)
        except GRPC_ERRORS as error:
            raise self._options.error(error, step.model, step.kwargs.get("client_timeout")) from error

    async def close(self) -> None:
        await self._grpc.close()


async def _one(call: dict[str, Any], answered: asyncio.Event) -> AsyncIterator[dict[str, Any]]:
    """The one request of a stream; until it is answered the sending side stays open: its end looks like a hang-up."""
    yield call
    await answered.wait()
