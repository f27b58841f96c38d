"""The options of `brats-ldm` that say which server, and the client they make. Standard library until it connects."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ._endpoints import DEFAULT_URL

if TYPE_CHECKING:
    from ._client import Client


def connection_options(parser: argparse.ArgumentParser, timeout: float) -> None:
    """Without defaults: what is not given can be in the environment (`complete`)."""
    group = parser.add_argument_group(
        "connection", "What is not given is read from $BRATS_LDM_URL, $BRATS_LDM_TLS_CA and so on."
    )
    group.add_argument(
        "--url", help=f"host:port of Triton's gRPC endpoint, or several with commas between them ({DEFAULT_URL})"
    )
    group.add_argument("--timeout", type=float, metavar="S", help=f"seconds to wait for an answer ({timeout:g})")
    group.add_argument(
        "--tls", action="store_true", default=None, help="encrypt, and trust the public certificate authorities"
    )
    group.add_argument("--tls-ca", metavar="PEM", help="encrypt, and trust the certificate authorities in this file")
    group.add_argument("--tls-cert", metavar="PEM", help="certificate of this client, for mutual TLS")
    group.add_argument("--tls-key", metavar="PEM", help="key of that certificate")
    group.add_argument(
        "--tls-server-name",
        metavar="NAME",
        help="name in the server's certificate, if it differs from the host in the URL",
    )
    group.add_argument("--header-file", metavar="FILE", help="file of headers to send, one `name: value` on each line")
    parser.set_defaults(usual={"url": DEFAULT_URL, "timeout": timeout})


def complete(args: argparse.Namespace) -> None:
    """Fill in what was not given: from the environment, or as usual."""
    from ._environment import NAMES, setting

    usual = getattr(args, "usual", None)
    if usual is None:  # a command that asks no server
        return
    args.secret = None  # no option: everybody on a machine can read the command lines of everybody
    for name in NAMES:
        if getattr(args, name) is None:
            value = setting(name)
            setattr(args, name, usual.get(name) if value is None else value)


def connection(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """The arguments of `Client`."""
    from ._environment import arguments

    return {**arguments(vars(args)), **more}


def connect(args: argparse.Namespace, **more: Any) -> Client:
    from ._client import Client

    return Client(**connection(args, **more))
