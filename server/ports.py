"""Chooses and checks the addresses and ports of a server, and writes them in the formats that Triton needs."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections import deque
from collections.abc import Mapping, Sequence

from server.errors import ServerError

_RESERVED: deque[socket.socket] = deque(maxlen=32)  # of this process's latest ports; those before have servers by now


def resolve(host: str) -> str:
    """The address of a host, as the parts of Triton take names differently: HTTP listens on none of `localhost`.

    The first IPv4 address, or else the first IPv6 address. Raises ServerError if there is none.
    """
    try:
        addresses = socket.getaddrinfo(host.removeprefix("[").removesuffix("]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ServerError(f"--host {host!r} is no address and no name of one: {reason}") from error
    return str(min(addresses, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def endpoint(address: str, port: int) -> str:
    """ADDRESS:PORT, with the brackets that IPv6 needs."""
    return f"{bracketed(address)}:{port}"


def bracketed(address: str) -> str:
    """An address as gRPC and URLs need it."""
    return f"[{address}]" if ":" in address else address


def prefixed(address: str) -> str:
    """An address as Triton's HTTP and metrics need it."""
    return f"ipv6:{address}" if ":" in address else address


def choose_ports(wanted: Mapping[str, tuple[str, int | None]]) -> list[int]:
    """A port for each command-line flag, on its address: the wanted port if it is free; for None, any free port."""
    chosen: dict[tuple[str, int], str] = {}
    for flag, (address, port) in wanted.items():
        if port is None:
            port = free_port(address, taken=[port for _, port in chosen])
        elif (address, port) in chosen:
            raise ServerError(f"{flag} and {chosen[address, port]} are both {port} of {address}: give one another port")
        else:
            _check_free(address, port, flag)
        chosen[address, port] = flag
    return [port for _, port in chosen]


def free_port(address: str, taken: Sequence[int] = ()) -> int:
    """A port on which no process listens, and which is not in `taken`."""
    # Below Linux's range of ephemeral ports (32768 up): Triton listens only after its models have loaded, and
    # in those seconds the kernel must not hand the port to somebody's outgoing connection.
    for port in random.SystemRandom().sample(range(20000, 32768), 100):
        if port not in taken:
            with contextlib.suppress(ServerError, OSError):
                _check_free(address, port, "")
                _reserve(port)
                return port
    raise ServerError(f"found no free port on {address}")


def reachable(address: str) -> str:
    """The address by which a client on this machine reaches a server that listens on `address`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def _reserve(port: int) -> None:
    """Raise OSError if another launcher on this machine has chosen the port; its server may not listen yet."""
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0brats-ldm-port-{port}")  # an abstract socket, not a file: it disappears with the process
    except OSError:
        name.close()
        raise
    _RESERVED.append(name)


def _check_free(address: str, port: int, flag: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, port), family=family).close()
    except (OSError, OverflowError) as error:
        # Python's own message repeats the address and the port.
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else error
        raise ServerError(f"cannot listen on {address} port {port} ({flag}): {reason}") from error
