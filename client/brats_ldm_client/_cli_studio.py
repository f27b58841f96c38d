"""`brats-ldm studio`: its options, and what it does: a page to generate, compare and walk, until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import os
import socket
import sys
from typing import Any

from ._cli_connection import connection, connection_options
from ._errors import InvalidRequest
from ._extras import need

PASSWORD = "BRATS_LDM_STUDIO_PASSWORD"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "studio",
        help="a page in the browser: generate, compare samplers, walk between seeds",
        description="Serve a page on this machine: watch images as they are made, compare samplers and steps, walk "
        "between two seeds, download the files. Needs the extra studio (gradio, scikit-image). Ctrl-C ends it.",
    )
    page = parser.add_argument_group("page")
    page.add_argument(
        "--host",
        default="127.0.0.1",
        help=f"address where the page listens (%(default)s); any that others can reach needs ${PASSWORD}",
    )
    page.add_argument("--port", type=int, default=7860, help="port of the page; 0: any that is free (%(default)s)")
    page.add_argument("--open", action="store_true", help="open the page in the browser")
    connection_options(parser, timeout=600.0)
    parser.set_defaults(run=_studio, check=_check)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not 0 <= args.port <= 65535:
        parser.error(f"--port is {args.port}: choose 1 to 65535, or 0 for any that is free")


def _studio(args: argparse.Namespace) -> int:
    listening, local = _listen(args.host, args.port)
    with contextlib.closing(listening):
        password = None if local else _password(args.host)
        _silence_gradio()
        need("gradio")
        need("skimage", "scikit-image")
        from .studio.guard import LOOPBACK_NAMES
        from .studio.serve import serve
        from .studio.sessions import Studio

        studio = Studio(connection(args, timeout=args.timeout))
        address = _address(args.host, listening.getsockname()[1])
        serve(studio, listening, LOOPBACK_NAMES if local else None, password, lambda: _answers(address, args.open))
    return 0


def _listen(host: str, port: int) -> tuple[socket.socket, bool]:
    """A socket that listens, and whether only this machine can reach it.

    Raises:
        InvalidRequest: the host has no address here, or the port is taken.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InvalidRequest(f"--host {host}: no address of this machine ({error}); use 127.0.0.1") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(128)
    except OSError as error:
        listening.close()
        hint = "choose another --port, or 0 for any that is free" if error.errno == errno.EADDRINUSE else "see --host"
        raise InvalidRequest(f"the page cannot listen at {host}:{port} ({error.strerror}): {hint}") from None
    return listening, ipaddress.ip_address(str(where[0]).partition("%")[0]).is_loopback


def _password(host: str) -> str:
    """The password that a page needs which others can reach."""
    password = os.environ.get(PASSWORD)
    if not password:
        raise InvalidRequest(
            f"--host {host} lets other machines reach the page: set ${PASSWORD}, which it then asks for"
        )
    print(
        f"brats-ldm: warning: everybody who reaches the page at {host} and knows its password can use the server with "
        "your secret",
        file=sys.stderr,
    )
    return password


def _silence_gradio() -> None:
    """Before Gradio is imported: its own variables could open the page to others, and nothing of it may call home."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}


def _address(host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{name}:{port}"


def _answers(address: str, open_browser: bool) -> None:
    print(f"The studio is at {address} (Ctrl-C ends it).", flush=True)
    if open_browser:
        import webbrowser

        webbrowser.open(address)
