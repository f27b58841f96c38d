"""Which servers: the urls of a client, and how gRPC spreads the requests over them. The only calls look up names.

gRPC's own `round_robin` does it: a request goes to the next server in turn, and one that cannot be reached has no turn
until it can. What answers UNAVAILABLE (dead in the middle, draining, busy) is asked of the next one by gRPC's own
retries, and after those by the client's. No server is asked for its health: Triton lacks `Watch` of gRPC's health
service (2.51 answers UNIMPLEMENTED, and gRPC would print an error for each connection).
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from ._errors import InvalidRequest, ServerUnavailable

DEFAULT_URL = "127.0.0.1:8001"
_ONE_OF_SEVERAL = re.compile(r"(?:ipv[46]:)?(\[[^\[\]]+\]|[^:/\[\]\s]+):(\d{1,5})")
_BY_DNS = "dns:///"
# Without it a draining server among two, which refuses at once, made a run four times slower than the other one alone.
_NEXT_ONE = {
    "maxAttempts": 5,
    "initialBackoff": "0.01s",
    "maxBackoff": "0.1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "NOT_FOUND"],  # the latter: it lacks the model
}
_ROUND_ROBIN = json.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{"name": [{}], "retryPolicy": _NEXT_ONE}]}
)
# Also limits how long sent data may stay unconfirmed, to 20 s: a machine that is gone is noticed. Pings notice a frozen
# server. More often than every 300 s, Triton would hang up on a client that waits for a long request.
_KEEPALIVE_MS = 310_000
ChannelArgs: TypeAlias = "list[tuple[str, str | int]]"


def several(url: str) -> bool:
    """Whether `url`, as messages show it, can stand for several servers."""
    return "," in url or url.startswith(_BY_DNS)


@dataclass(frozen=True)
class Endpoints:
    """The servers of one client, each as host:port."""

    urls: tuple[str, ...]
    encrypted: bool
    """Whether a scheme asks for TLS."""

    def __str__(self) -> str:
        return ", ".join(self.urls)

    def target(self) -> str:
        """What gRPC connects to. For several servers their addresses, of which it takes one kind."""
        if len(self.urls) == 1:
            return self.urls[0]
        found = [_addresses(url) for url in self.urls]
        for kind in ("ipv4", "ipv6"):
            if all(addresses[kind] for addresses in found):
                every = chain.from_iterable(addresses[kind] for addresses in found)
                return f"{kind}:{','.join(dict.fromkeys(every))}"
        raise InvalidRequest(f"some of {self} have only IPv4 addresses, others only IPv6: use servers of one kind")

    def channel_args(self, encrypted: bool, named: bool) -> ChannelArgs:
        """named: whether the caller has said which name is in the certificates."""
        if not several(str(self)):
            return []
        args: ChannelArgs = [("grpc.service_config", _ROUND_ROBIN), ("grpc.keepalive_time_ms", _KEEPALIVE_MS)]
        if len(self.urls) == 1 or named:
            return args
        hosts = {_host_and_port(url)[0] for url in self.urls}
        if encrypted and len(hosts) > 1:
            raise InvalidRequest(
                f"tls: {self} have different hosts, and gRPC checks one name for all: pass TLS(server_name=…), "
                "or --tls-server-name to brats-ldm, with a name that all their certificates have"
            )
        # Else gRPC would call each server by the whole list.
        return [*args, ("grpc.default_authority", hosts.pop() if len(hosts) == 1 else self.urls[0])]


def endpoints(url: str | Sequence[str], name: str = "url") -> Endpoints:
    """The servers in the argument `name`: a url, several with commas, or a sequence of urls."""
    given = [url] if isinstance(url, str) else list(url)
    texts = [part.strip() for text in given for part in str(text).split(",")]
    urls = tuple(endpoint(text, name) for text in texts)
    if not urls:
        raise InvalidRequest(f"{name} is empty: pass at least one host:port of Triton's gRPC endpoint")
    if len(urls) > 1:
        for one in urls:
            _host_and_port(one, name)
    return Endpoints(urls, any(text.startswith("grpcs://") for text in texts))


def endpoint(url: str, name: str = "url") -> str:
    """host:port of one gRPC endpoint; the scheme grpc:// is dropped, another one is refused."""
    scheme, separator, rest = url.rpartition("://")
    if url.startswith(_BY_DNS) and rest.strip("/"):
        return url.rstrip("/")
    if (separator and scheme not in ("grpc", "grpcs")) or not rest.rstrip("/"):
        raise InvalidRequest(f"{name} must be host:port of Triton's gRPC endpoint, such as {DEFAULT_URL}, not {url!r}")
    return rest.rstrip("/")


def _host_and_port(url: str, name: str = "url") -> tuple[str, int]:
    parts = _ONE_OF_SEVERAL.fullmatch(url)
    if parts is None or int(parts[2]) > 65535:
        raise InvalidRequest(f"{name}: each of several servers must be host:port, such as {DEFAULT_URL}, not {url!r}")
    return parts[1].lower(), int(parts[2])


def _addresses(url: str) -> dict[str, list[str]]:
    """All addresses of one server, by kind."""
    host, port = _host_and_port(url)
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServerUnavailable(
            f"no Triton server answers at {url}: {host} has no address ({reason}); check the name and the network"
        ) from error
    return {
        "ipv4": [f"{address[0]}:{port}" for family, *_, address in found if family == socket.AF_INET],
        "ipv6": [f"[{address[0]}]:{port}" for family, *_, address in found if family == socket.AF_INET6],
    }
