"""What both clients are made of: their arguments and the making of tritonclient's client. No calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    headers           sent with each call, for a proxy or a restricted server
    ssl, …            TLS as in tritonclient: paths of PEM files
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
        headers: Mapping[str, str] | None = None,
        ssl: bool = False,
        root_certificates: str | None = None,
        private_key: str | None = None,
        certificate_chain: str | None = None,
        grpc_client: Any = None,
    ) -> None:
        address = endpoint(url)
        self._options = Options(
            address, timeout, connect_timeout, rows_per_request, concurrency, retry_seconds, dict(headers or {})
        )
        self._channel: dict[str, Any] = {
            "url": address,
            "ssl": ssl or url.startswith("grpcs://"),
            "root_certificates": root_certificates,
            "private_key": private_key,
            "certificate_chain": certificate_chain,
            "channel_args": channel_args(address),
        }
        if not self._channel["ssl"] and (root_certificates or private_key or certificate_chain):
            raise InvalidRequest("certificates and keys have no effect without TLS: pass ssl too")
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
