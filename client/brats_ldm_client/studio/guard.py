"""Who may ask for the page, and what the page may ask for: checks of each request, headers of each answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Message: TypeAlias = "MutableMapping[str, Any]"
Receive: TypeAlias = "Callable[[], Awaitable[Message]]"
Send: TypeAlias = "Callable[[Message], Awaitable[None]]"
Application: TypeAlias = "Callable[[Message, Receive, Send], Awaitable[None]]"

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
# The page fetches nothing from elsewhere, and the browser holds it to that. Gradio's templates need eval.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'self'; base-uri 'self'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Guard:
    """Middleware.

    hosts: names of the page, in the headers Host and Origin. A page of somebody else has another one, also if its name
        leads to this machine (DNS rebinding). None: any.
    """

    def __init__(self, app: Application, hosts: frozenset[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._hosts is not None and not _names(scope) <= self._hosts:
            await _refuse(send)
        else:
            await self._app(scope, receive, _with_headers(send))


def _names(scope: Message) -> set[str]:
    """The host that is asked, and that of the page which asks, where the browser tells it."""
    headers = dict(scope["headers"])
    origin = [headers[b"origin"].rpartition(b"//")[2]] if b"origin" in headers else []
    return {_without_port(value.decode("latin-1")) for value in (headers.get(b"host", b""), *origin)}


def _without_port(name: str) -> str:
    host, colon, port = name.rpartition(":")
    return (host if colon and port.isdecimal() else name).lower()


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_HEADERS]
        await send(message)

    return sending


async def _refuse(send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 421, "headers": headers})
    await send({"type": "http.response.body", "body": b"The studio is not at this address."})
