"""Picks and checks the ports of a server before it starts."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Mapping, Sequence

from server.errors import ServerError


def choose_ports(wanted: Mapping[str, tuple[str, int | None]]) -> list[int]:
    """A port for each command-line flag, on its host: the one wanted, if it is free, or any free one for None."""
    chosen: list[int] = []
    for flag, (host, port) in wanted.items():
        if port is None:
            port = free_port(host, taken=chosen)
        else:
            _check_free(host, port, flag)
        chosen.append(port)
    return chosen


def free_port(host: str, taken: Sequence[int] = ()) -> int:
    """A port on which nobody listens, none of `taken`."""
    # Below Linux's range of ephemeral ports (32768 up): Triton listens only after its models have loaded, and
    # in those seconds the kernel must not hand the port to somebody's outgoing connection.
    for port in random.SystemRandom().sample(range(20000, 32768), 100):
        if port not in taken:
            with contextlib.suppress(ServerError):
                _check_free(host, port, "")
                return port
    raise ServerError(f"found no free port on {host}")


def reachable(host: str) -> str:
    """Where a client on this machine finds a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1"}.get(host, host)


def _check_free(host: str, port: int, flag: str) -> None:
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ServerError(f"cannot listen on {host} port {port} ({flag}): {reason}") from error
