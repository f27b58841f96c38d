"""What can stand in for a server, and how both clients reach it. `testing.FakeTransport` is one for tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np

from ._connection import Cancellable, Outcome
from ._errors import BratsLDMError, ServerUnavailable
from ._flows import image_checksum
from ._protocol import Request, Rows, make_request
from ._schedule import generation_of
from ._types import Generation, Progress, ServerInfo


class Transport(Protocol):
    """Answers requests in place of a server: `Client(transport=…)`.

    Clients split, retry, order and check as they do with a server. Methods may raise any `BratsLDMError`, and are
    called by several threads.
    """

    def generate(self, request: Request) -> Rows:
        """The images of a request."""
        ...

    def info(self) -> ServerInfo:
        """What `Client.info` returns."""
        ...


class TransportConnection:
    """The methods of `GrpcConnection` over a transport."""

    def __init__(self, transport: Transport, concurrency: int) -> None:
        self._transport = transport
        self._threads = ThreadPoolExecutor(concurrency, "transport")

    def connect(self) -> None:
        pass

    def send(self, request: Request, answered: Callable[[Outcome], None]) -> Cancellable:
        call = self._threads.submit(self._transport.generate, request)
        call.add_done_callback(lambda done: answered(done.result))
        return call

    def stream(self, request: Request, preview_every: int) -> Generator[Progress | Generation, None, None]:
        yield from _events(self._transport, request, preview_every)

    def info(self) -> ServerInfo:
        return self._transport.info()

    def is_ready(self) -> bool:
        return _is_ready(self._transport)

    def wait_until_ready(self, timeout: float, deep: bool, checksum: str | None) -> str | None:
        return _checked(self._transport, deep, checksum)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class AsyncTransportConnection:
    """The methods of `AsyncGrpcConnection` over a transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def connect(self) -> None:
        pass

    async def send(self, request: Request) -> Rows:
        return await asyncio.to_thread(self._transport.generate, request)

    async def stream(self, request: Request, preview_every: int) -> AsyncGenerator[Progress | Generation, None]:
        for event in _events(self._transport, request, preview_every):
            yield event

    async def info(self) -> ServerInfo:
        return self._transport.info()

    async def is_ready(self) -> bool:
        return _is_ready(self._transport)

    async def wait_until_ready(self, timeout: float, deep: bool, checksum: str | None) -> str | None:
        return _checked(self._transport, deep, checksum)

    async def close(self) -> None:
        pass


def _is_ready(transport: Transport) -> bool:
    try:
        return all(model.ready for model in transport.info().models)
    except BratsLDMError:
        return False


def _checked(transport: Transport, deep: bool, checksum: str | None) -> str | None:
    """As `_flows.wait_until_ready`, without waiting."""
    transport.info()
    if not deep and checksum is None:
        return None
    found = image_checksum(transport.generate(make_request(1, seed=0, steps=1)), "the transport")
    if checksum not in (None, found):
        raise ServerUnavailable(f"its image has the checksum {found}, not {checksum}")
    return found


def _events(transport: Transport, request: Request, preview_every: int) -> Iterator[Progress | Generation]:
    """A stream of a transport: the previews are the final latents, if the transport has any."""
    began = time.monotonic()
    rows = transport.generate(replace(request, return_latents=request.return_latents or preview_every > 0))
    for step in range(preview_every, request.steps + 1, preview_every) if preview_every else ():
        yield Progress(np.full(len(request.seeds), step, np.int32), request.steps, rows.latents)
    kept = rows.latents if request.return_latents else None
    yield generation_of(request, replace(rows, latents=kept), time.monotonic() - began)
