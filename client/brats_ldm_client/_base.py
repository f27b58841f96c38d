"""What both clients share: their arguments, and how they make tritonclient's client. No calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._access import TLS, PathOrName, checked_headers, tls_channel
from ._errors import InvalidRequest
from ._options import Options, channel_args, endpoint
from ._transport import Transport


class BaseClient:
    """What `Client` and `AsyncClient` share."""

    def __init__(
        self,
        url: str = "127.0.0.1:8001",
        *,
        timeout: float = 600.0,
        connect_timeout: float = 5.0,
        rows_per_request: int = 8,
        concurrency: int = 4,
        retry_seconds: float = 60.0,
        tls: bool | PathOrName | TLS = False,
        secret: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: Transport | None = None,
    ) -> None:
        """Check the arguments. The connection is made by the first call.

        Args:
            url: host:port of Triton's gRPC endpoint.
            timeout: Seconds for the answer of one request. After that the server drops the work.
            connect_timeout: Seconds for the first answer, and for calls that generate nothing.
            rows_per_request: Images in one request, at most 64; more images are split into several requests.
            concurrency: Requests in flight at the same time.
            retry_seconds: How long to retry, with growing pauses, after "busy", lost connections and restarts, while no
                request succeeds; 0: never. A retry gives the same images, because the seeds are fixed before.
            tls: True: encrypt and trust the public authorities. A path: trust the authorities in that PEM file.
                `TLS(…)`: also use a certificate of your own. A url with grpcs:// means True.
            secret: The inference secret, if the server has one.
            headers: Sent with each call, for a proxy.
            transport: Answers in place of a server, such as `brats_ldm_client.testing.FakeTransport` in a test.
        """
        address = endpoint(url)
        every = checked_headers(headers, secret)
        self._options = Options(address, timeout, connect_timeout, rows_per_request, concurrency, retry_seconds, every)
        encryption, more_args = tls_channel(tls or url.startswith("grpcs://"))
        self._channel: dict[str, Any] = {
            "url": address, **encryption, "channel_args": [*channel_args(address, connect_timeout), *more_args]
        }  # fmt: skip
        self._transport = transport
        self._closed = False
        self._open()

    def _open(self) -> None:
        """Make the connection; nothing is sent yet."""
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("this client is closed: make a new one")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._options.url!r})"
