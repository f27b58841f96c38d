"""The options of `brats-ldm` that say which server, and the client they make. Standard library until it connects."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._client import Client


def connection_options(parser: argparse.ArgumentParser, timeout: float) -> None:
    group = parser.add_argument_group("connection")
    group.add_argument("--url", default="127.0.0.1:8001", help="host:port of Triton's gRPC endpoint (%(default)s)")
    group.add_argument(
        "--timeout", type=float, default=timeout, metavar="S", help="seconds for an answer (%(default)s)"
    )
    group.add_argument("--tls", action="store_true", help="encrypt, and trust the public authorities")
    group.add_argument("--tls-ca", metavar="PEM", help="encrypt, and trust these authorities")
    group.add_argument("--tls-cert", metavar="PEM", help="this client's certificate, where the server asks for one")
    group.add_argument("--tls-key", metavar="PEM", help="its key")
    group.add_argument("--tls-server-name", metavar="NAME", help="in the server's certificate, if the url has another")
    group.add_argument("--header-file", metavar="FILE", help="headers to send, `name: value` a line")


def connect(args: argparse.Namespace, **more: Any) -> Client:
    from ._access import TLS, read_headers
    from ._client import Client

    files = {"ca": args.tls_ca, "cert": args.tls_cert, "key": args.tls_key, "server_name": args.tls_server_name}
    return Client(
        args.url,
        tls=TLS(**files) if any(files.values()) else args.tls,
        # Not as an option: everybody on a machine can read the command lines of everybody.
        secret=os.environ.get("BRATS_LDM_SECRET") or None,
        headers=read_headers(args.header_file) if args.header_file else None,
        **more,
    )
