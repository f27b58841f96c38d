"""TLS files, headers and the server's secret: whom the client trusts, and how it proves who it is. No calls."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ._endpoints import ChannelArgs
from ._errors import InvalidRequest

SECRET_HEADER = "triton-grpc-protocol-inference-key"
"""What Triton calls the header `inference-key` of a restricted API in gRPC."""
_NAME = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]+")
PathOrName: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True)
class TLS:
    """An encrypted connection, by the paths of PEM files."""

    ca: PathOrName | None = None
    """The authorities to trust; None: the public ones."""
    cert: PathOrName | None = None
    """The client's certificate, if the server asks for one (mutual TLS)."""
    key: PathOrName | None = None
    """The key of that certificate."""
    server_name: str | None = None
    """The name in the server's certificate, if it differs from the host in the url."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InvalidRequest(
                "tls: a client certificate and its key come together: pass both cert and key, or set "
                "both BRATS_LDM_TLS_CERT and BRATS_LDM_TLS_KEY"
            )
        for name in ("ca", "cert", "key"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise InvalidRequest(f"tls: there is no PEM file {os.fspath(path)} ({name})")


def tls_channel(tls: bool | PathOrName | TLS) -> tuple[dict[str, Any], ChannelArgs]:
    """tritonclient's arguments for `tls`, and gRPC's. A path is that of the authorities to trust."""
    if not tls:
        return {"ssl": False}, []
    settings = tls if isinstance(tls, TLS) else TLS() if tls is True else TLS(ca=tls)
    files = {"root_certificates": settings.ca, "certificate_chain": settings.cert, "private_key": settings.key}
    paths = {name: os.fspath(path) for name, path in files.items() if path is not None}
    override: ChannelArgs = [("grpc.ssl_target_name_override", settings.server_name)] if settings.server_name else []
    return {"ssl": True, **paths}, override


def checked_headers(headers: Mapping[str, str] | None, secret: str | None) -> dict[str, str]:
    """Headers of each call. Values are not shown in errors: they are often secrets."""
    every = {name.lower(): value for name, value in (headers or {}).items()}
    if secret is not None:
        every[SECRET_HEADER] = secret
    for name, value in every.items():
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"{name!r} is no name of a header: letters, digits and -_. only")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise InvalidRequest(f"the value of header {name} must be one line of printable ASCII")
    return every


def read_headers(path: PathOrName) -> dict[str, str]:
    """`name: value` a line, from a file; empty lines and those with # are skipped."""
    headers = {}
    for number, line in enumerate(Path(path).read_text(errors="replace").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise InvalidRequest(f"{os.fspath(path)}, line {number}: a header is `name: value`")
        headers[name.strip()] = value.strip()
    return headers
