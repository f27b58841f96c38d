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
from ._protocol import Rows
from ._request import ONE_STEP, Previews, Request, make_request
from ._schedule import generation_of
from ._types import F32, I64, Generation, Progress, QueueInfo, ServerInfo


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

    def queue(self) -> tuple[QueueInfo, ...]:
        """What `Client.queue` returns."""
        ...

    def start_noise(self, seeds: I64) -> F32:
        """What `Client.start_noise` returns: the noise [n, 64, 64] of seeds [n]."""
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

    def stream(self, request: Request, previews: Previews) -> Generator[Progress | Generation, None, None]:
        yield from _events(self._transport, request, previews)

    def info(self) -> ServerInfo:
        return self._transport.info()

    def queue(self) -> tuple[QueueInfo, ...]:
        return self._transport.queue()

    def start_noise(self, request: Request) -> F32:
        return self._transport.start_noise(request.seeds)

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

    async def stream(self, request: Request, previews: Previews) -> AsyncGenerator[Progress | Generation, None]:
        for event in await asyncio.to_thread(lambda: [*_events(self._transport, request, previews)]):
            yield event

    async def info(self) -> ServerInfo:
        return await asyncio.to_thread(self._transport.info)

    async def queue(self) -> tuple[QueueInfo, ...]:
        return await asyncio.to_thread(self._transport.queue)

    async def start_noise(self, request: Request) -> F32:
        return await asyncio.to_thread(self._transport.start_noise, request.seeds)

    async def is_ready(self) -> bool:
        return await asyncio.to_thread(_is_ready, self._transport)

    async def wait_until_ready(self, timeout: float, deep: bool, checksum: str | None) -> str | None:
        return await asyncio.to_thread(_checked, self._transport, deep, checksum)

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
    found = image_checksum(transport.generate(make_request(1, ONE_STEP, seed=0)), "the transport")
    if checksum not in (None, found):
        raise ServerUnavailable(f"its image has the checksum {found}, not {checksum}")
    return found


def _events(transport: Transport, request: Request, previews: Previews) -> Iterator[Progress | Generation]:
    """A stream of a transport: the previews grow into the final latents, if the transport has any, and the images."""
    began = time.monotonic()
    rows = transport.generate(replace(request, return_latents=request.return_latents or previews.every > 0))
    images, source = (None, "latent") if previews.decoder == "latent" else (rows.images, "tiny")
    for step in range(previews.every, request.steps + 1, previews.every) if previews.every else ():
        share, steps = step / request.steps, np.full(len(request.seeds), step, np.int32)
        yield Progress(steps, request.steps, _part(rows.latents, share), _part(images, share), source)
    kept = rows.latents if request.return_latents else None
    yield generation_of(request, replace(rows, latents=kept), time.monotonic() - began)


def _part(planes: F32 | None, share: float) -> F32 | None:
    return None if planes is None else (planes * share).astype(np.float32)
