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
        "--timeout", type=float, default=timeout, metavar="S", help="seconds to wait for an answer (%(default)s)"
    )
    group.add_argument("--tls", action="store_true", help="encrypt, and trust the public certificate authorities")
    group.add_argument("--tls-ca", metavar="PEM", help="encrypt, and trust the certificate authorities in this file")
    group.add_argument("--tls-cert", metavar="PEM", help="certificate of this client, for mutual TLS")
    group.add_argument("--tls-key", metavar="PEM", help="key of that certificate")
    group.add_argument(
        "--tls-server-name",
        metavar="NAME",
        help="name in the server's certificate, if it differs from the host in the URL",
    )
    group.add_argument("--header-file", metavar="FILE", help="file of headers to send, one `name: value` on each line")


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
