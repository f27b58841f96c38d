"""The studio: one connection for all, and what each browser tab has of its own. Knows no Gradio."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from .._aio import AsyncClient
from .._client import Client
from .._types import Generation
from .downloads import Download, Downloads
from .server import ServerWatch


class Session:
    """One browser tab: its runs, each of which can be stopped, and the last images of each kind of run."""

    def __init__(self) -> None:
        self._stops: dict[str, asyncio.Event] = {}
        self.results: dict[str, Generation] = {}
        self.tokens: dict[str, str] = {}
        """Of its downloads: the newest of each kind of run."""
        self._digest: object = None

    def begin(self, kind: str) -> asyncio.Event:
        """A new run of this kind, in place of one that may still run; what is returned stops it."""
        self.stop(kind)
        self.results.pop(kind, None)
        self._stops[kind] = asyncio.Event()
        return self._stops[kind]

    def stop(self, kind: str) -> None:
        if kind in self._stops:
            self._stops.pop(kind).set()

    def stop_all(self) -> None:
        for kind in list(self._stops):
            self.stop(kind)

    def keep(self, kind: str, generation: Generation) -> bool:
        """Keep the images of a finished run. Returns whether other weights have made them than those before."""
        self.results[kind] = generation
        before, self._digest = self._digest, generation.provenance[0].get("model_digest")
        return before not in (None, self._digest)


class Studio:
    """What all tabs share: how to reach the server, what is known of it, downloads.

    connection: arguments of `AsyncClient`. Runs have a client each, so none depends on a connection of an earlier one.
    """

    def __init__(self, connection: Mapping[str, Any]) -> None:
        self._connection = {**connection, "retry_seconds": 0.0}  # the page says what it waits for, and waits itself
        self._sessions: dict[str, Session] = {}
        self.downloads = Downloads()
        url = self._connection.get("url", "")
        self.server = ServerWatch(self.client, url if isinstance(url, str) else ", ".join(url))
        Client(**self._connection).close()  # refuses wrong arguments before the page is there

    def client(self) -> AsyncClient:
        return AsyncClient(**self._connection)

    def session(self, key: str | None) -> Session:
        """The session of a tab, which is new if it has none."""
        return self._sessions.setdefault(key or "", Session())

    def leave(self, key: str | None) -> None:
        """A tab was closed: its runs end, and nothing of it is kept."""
        if session := self._sessions.pop(key or "", None):
            session.stop_all()
            self.downloads.forget(session.tokens.values())

    def offer(self, session: Session, kind: str, file: Download) -> str:
        """The token of a file to download, in place of the one before."""
        self.downloads.forget(filter(None, [session.tokens.pop(kind, None)]))
        session.tokens[kind] = self.downloads.add(file)
        return session.tokens[kind]

    def stop(self) -> None:
        """End all runs of all tabs."""
        for session in self._sessions.values():
            session.stop_all()
