"""Which proxy gRPC takes to a server: it obeys environment variables, and its errors do not say which. No calls.

The rules are gRPC's (doc/environment_variables.md), with two more: a machine never reaches itself through a proxy, and
several servers are reached without one, because it, and not gRPC, would choose among them.
"""

from __future__ import annotations

import ipaddress
import os
import re

from ._endpoints import several

_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # the first that is set counts, even if it is empty
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_PASSWORD, _HIDDEN = re.compile(r"^(.*//)?.*@"), r"\1***@"  # with the name: some put a token there


def proxy_to(url: str) -> str | None:
    """`variable=value` of the proxy on the way to `url`, without its password; None where there is none."""
    host = host_of(url)
    setting = next(((name, os.environ[name]) for name in _VARIABLES if name in os.environ), None)
    exceptions = next((os.environ[name] for name in _EXCEPTIONS if name in os.environ), "")
    excepted = any(_names(entry, host) for entry in exceptions.split(","))
    if not setting or not setting[1] or excepted or _is_loopback(host) or several(url):
        return None
    return f"{setting[0]}={_PASSWORD.sub(_HIDDEN, setting[1])}"


def host_of(url: str) -> str:
    """The host of host:port, in lower case; gRPC's prefix ipv4: or ipv6: and the brackets of an IPv6 address go."""
    without_port = url.rpartition(":")[0] if re.search(r":\d+$", url) else url
    return re.sub(r"^(ipv4|ipv6|dns):", "", without_port.lower()).strip("[]").rstrip(".")


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost") or host.startswith(("unix:", "unix-abstract:"))
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)  # 0.0.0.0 is this machine, too


def _names(exception: str, host: str) -> bool:
    """Whether an entry of `no_proxy`, a domain, an address or a network, is about this host."""
    exception = exception.strip().lower().lstrip(".")
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(exception, strict=False)
    except ValueError:
        return bool(exception) and (host == exception or host.endswith(f".{exception}"))
