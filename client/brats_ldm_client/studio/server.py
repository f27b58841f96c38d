"""What is known of the server at this moment: looked at every two seconds, for all tabs together, while one is open."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from .._aio import AsyncClient
from .._errors import BratsLDMError, DeadlineExceeded, InvalidRequest, ServerError, ServerUnavailable
from .._types import QueueInfo, ServerInfo

INTERVAL = 2.0
_INFO_SECONDS = 60.0  # `info` makes the server take a step: asked after it was away, and now and then
_PATIENCE = 10.0  # seconds for an answer: a frozen server is to be noticed, however long requests may take
_IDLE = 15.0  # seconds without a look from a tab after which the server is left alone


@dataclass(frozen=True)
class ServerState:
    """The server, as it was seen last."""

    seen: bool = False
    """Whether it has been asked at all."""
    info: ServerInfo | None = None
    queue: tuple[QueueInfo, ...] = ()
    """Empty where an older server does not tell."""
    error: BratsLDMError | None = None
    """Why it cannot be used now."""
    address: str = ""
    """Where it is looked for."""

    @property
    def draining(self) -> bool:
        return any(model.draining for model in self.queue)


class ServerWatch:
    """Looks at the server while somebody wants to know. `run` is its task.

    A client is kept while it gets answers. After an error the next look has a new one, whose connection is fresh.
    """

    def __init__(self, connect: Callable[[], AsyncClient], address: str = "") -> None:
        self._connect = connect
        self._client: AsyncClient | None = None
        self._asked_info = -_INFO_SECONDS
        self._wanted = asyncio.Event()
        self._wanted_at = 0.0
        self._state = ServerState(address=address)
        self._tells = True  # until it says that it does not know the question

    def state(self) -> ServerState:
        """The newest state; somebody looks at it, so it is kept new."""
        self._wanted_at = time.monotonic()
        self._wanted.set()
        return self._state

    async def run(self) -> None:
        try:
            while True:
                if time.monotonic() - self._wanted_at > _IDLE:
                    self._wanted.clear()
                    await self._close()
                    await self._wanted.wait()
                self._state = await self._look()
                await asyncio.sleep(INTERVAL)
        finally:
            await self._close()

    async def _look(self) -> ServerState:
        try:
            if self._client is None:
                self._client = self._connect()
            return await self._ask(self._client)
        except Exception as error:  # of whatever kind: the watch must go on, as it is never started again
            if not isinstance(error, BratsLDMError):
                traceback.print_exc()
                error = ServerError(f"the studio could not look at the server: {error}")
            await self._close()
            self._asked_info = -_INFO_SECONDS
            return replace(self._state, seen=True, queue=(), error=error)

    async def _ask(self, client: AsyncClient) -> ServerState:
        try:
            queue = await asyncio.wait_for(self._queue(client), _PATIENCE)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(f"the server did not tell its queue within {_PATIENCE:g} s") from None
        info = self._state.info
        # A full or draining server refuses the step that `info` needs; what was known before is still true.
        if time.monotonic() - self._asked_info > _INFO_SECONDS and _has_room(queue):
            with contextlib.suppress(asyncio.TimeoutError):  # it has much to do: later, then
                info = await asyncio.wait_for(client.info(), _PATIENCE)
            self._asked_info = time.monotonic()
        return replace(self._state, seen=True, info=info, queue=queue, error=None)

    async def _queue(self, client: AsyncClient) -> tuple[QueueInfo, ...]:
        """What the server tells of its queue: nothing, if it is an older one, which is asked once."""
        if self._tells:
            try:
                return await client.queue()
            except InvalidRequest:
                self._tells = False
        if not await client.is_ready():
            raise ServerUnavailable("the server is not ready")
        return ()

    async def _close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()
            self._tells = True


def _has_room(queue: tuple[QueueInfo, ...]) -> bool:
    return all(not model.draining and model.rows_waiting < model.max_rows_waiting for model in queue)
