"""What both clients share: their arguments, and how they make tritonclient's client. No calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ._access import TLS, PathOrName, checked_headers, tls_channel
from ._endpoints import DEFAULT_URL, endpoints
from ._environment import NAMES, arguments, setting
from ._errors import InvalidRequest
from ._options import Options, channel_args
from ._transport import Transport

C = TypeVar("C", bound="BaseClient")


class BaseClient:
    """What `Client` and `AsyncClient` share."""

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
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
            url: host:port of Triton's gRPC endpoint; or several, in a sequence or with commas, among which gRPC shares
                out the requests. Their names are looked up once, here. dns:///host:port: all addresses of one name,
                looked up again when one is lost.
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
        servers = endpoints(url)
        address = str(servers)
        every = checked_headers(headers, secret)
        self._options = Options(address, timeout, connect_timeout, rows_per_request, concurrency, retry_seconds, every)
        encryption, more_args = tls_channel(tls or servers.encrypted)
        more_args = [*servers.channel_args(encryption["ssl"], named=bool(more_args)), *more_args]
        self._channel: dict[str, Any] = {
            "url": servers.target(), **encryption, "channel_args": [*channel_args(address, connect_timeout), *more_args]
        }  # fmt: skip
        self._transport = transport
        self._closed = False
        self._open()

    @classmethod
    def from_env(cls: type[C], **overrides: Any) -> C:
        """A client with the settings of the variables `BRATS_LDM_URL`, `BRATS_LDM_TIMEOUT` and so on.

        docs/generate.md lists them. overrides: arguments of the client, which win.
        """
        return cls(**{**arguments({name: setting(name) for name in NAMES}), **overrides})

    def _open(self) -> None:
        """Make the connection; nothing is sent yet."""
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("this client is closed: make a new one")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._options.url!r})"
