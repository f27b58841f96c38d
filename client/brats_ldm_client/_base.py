"""What both clients are made of: their arguments and the making of tritonclient's client. No calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._access import TLS, PathOrName, checked_headers, tls_channel
from ._errors import InvalidRequest
from ._options import Options, channel_args, endpoint


class BaseClient:
    """Arguments of `Client` and `AsyncClient`:

    url               host:port of Triton's gRPC endpoint
    timeout           seconds for one request to be answered, 600 by default; the server drops the work after it
    connect_timeout   seconds for the first sign of life, and for each call that does no work
    rows_per_request  images in one request, at most 64; a larger n is split
    concurrency       requests in flight at a time
    retry_seconds     how long "no room now", lost connections and restarts are tried again with growing pauses while no
                      request succeeds; 0 = never. A retry gives the same images: the seeds are fixed before
    tls               True: encrypt, and trust the public authorities; a path: trust those in that PEM file; `TLS(…)`:
                      also with a certificate of one's own. A url with grpcs:// means True
    secret            what a server with an inference secret asks for
    headers           sent with each call, for a proxy
    grpc_client       a ready tritonclient client to use instead of a new one; the caller closes it
    """

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
        grpc_client: Any = None,
    ) -> None:
        address = endpoint(url)
        every = checked_headers(headers, secret)
        self._options = Options(address, timeout, connect_timeout, rows_per_request, concurrency, retry_seconds, every)
        encryption, more_args = tls_channel(tls or url.startswith("grpcs://"))
        self._channel: dict[str, Any] = {
            "url": address, **encryption, "channel_args": [*channel_args(address, connect_timeout), *more_args]
        }  # fmt: skip
        self._injected = grpc_client is not None
        self._grpc = grpc_client if self._injected else self._new_grpc()
        self._connected = self._injected
        self._closed = False

    def _new_grpc(self) -> Any:
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("this client is closed: make a new one")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._options.url!r})"
