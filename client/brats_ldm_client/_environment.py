"""The settings in environment variables, for `from_env` and for the command line. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._access import TLS, checked_headers, read_headers
from ._endpoints import endpoints
from ._errors import InvalidRequest

_TLS_FILES = ("tls_ca", "tls_cert", "tls_key")
NAMES = ("url", "timeout", "secret", "tls", *_TLS_FILES, "tls_server_name", "header_file")
"""Each is an option of `brats-ldm` too, except the secret."""


def variable(name: str) -> str:
    return f"BRATS_LDM_{name.upper()}"


def setting(name: str) -> Any:
    """The value of the variable of `name`; None if it is not set, or empty. An error names the variable."""
    text = os.environ.get(variable(name))
    if not text:
        return None
    if name == "url":
        endpoints(text, variable(name))
    if name == "timeout":
        return _seconds(text)
    if name == "tls":
        return _switch(text)
    if name == "secret":
        _check_secret(text)
    if name in (*_TLS_FILES, "header_file") and not Path(text).is_file():
        raise InvalidRequest(f"{variable(name)}: there is no file {text}")
    return text


def arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a client, from a value or None for each of NAMES; what is None keeps the client's default."""
    tls = {name: settings[f"tls_{name}"] for name in ("ca", "cert", "key", "server_name")}
    file = settings["header_file"]
    values = {
        "url": settings["url"],
        "timeout": settings["timeout"],
        "secret": settings["secret"],
        "tls": TLS(**tls) if any(tls.values()) else settings["tls"],
        "headers": None if file is None else read_headers(file),
    }
    return {name: value for name, value in values.items() if value is not None}


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= 1e6:  # false for NaN, too
        raise InvalidRequest(f"{variable('timeout')} must be seconds from 0.001 to 1e+06, not {text!r}")
    return seconds


def _switch(text: str) -> bool:
    if text.lower() not in ("1", "true", "0", "false"):
        raise InvalidRequest(f"{variable('tls')} must be 1 or 0, not {text!r}: for a file, set {variable('tls_ca')}")
    return text.lower() in ("1", "true")


def _check_secret(text: str) -> None:
    try:
        checked_headers(None, text)
    except InvalidRequest:
        raise InvalidRequest(f"{variable('secret')} must be one line of printable ASCII") from None
