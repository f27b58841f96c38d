"""The security options of `python -m server`, and the notes that it prints about them."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.errors import ServerError
from server.security import PLACES, Security, Tls, is_loopback, new_secret, read_secret

AUTO = "auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that `security` reads."""
    group = parser.add_argument_group("security", "docs/security.md explains these options.")
    group.add_argument("--tls-cert", type=Path, default=None, metavar="PEM", help="encrypt gRPC with this certificate")
    group.add_argument("--tls-key", type=Path, default=None, metavar="PEM", help="key of that certificate")
    group.add_argument(
        "--tls-client-ca",
        type=Path,
        default=None,
        metavar="PEM",
        help="accept only clients with a certificate of this authority",
    )
    group.add_argument(
        "--tls-probe-cert",
        type=Path,
        default=None,
        metavar="PEM",
        help="certificate of the launcher's own health check; without it, --tls-cert",
    )
    group.add_argument("--tls-probe-key", type=Path, default=None, metavar="PEM", help="key of that certificate")
    group.add_argument(
        "--inference-secret-file",
        type=Path,
        default=None,
        metavar="FILE",
        help="require the secret in this file for everything except health",
    )
    group.add_argument(
        "--admin-secret-file",
        type=Path,
        default=None,
        metavar="FILE",
        help="require the secret in this file for shared memory, model repository, tracing and logging; without it, "
        "nobody has access",
    )
    group.add_argument(
        "--http",
        choices=(AUTO, *PLACES),
        default=AUTO,
        help="where HTTP listens, always unencrypted; auto: off with TLS, else loopback",
    )
    group.add_argument(
        "--metrics", choices=PLACES, default="loopback", help="where the metrics listen, always unencrypted"
    )


def security(options: argparse.Namespace) -> Security:
    """The security that the options ask for. Raises ServerError or OSError for unusable files."""
    admin, inference = options.admin_secret_file, options.inference_secret_file
    return Security(
        _tls(options),
        admin_secret=new_secret() if admin is None else read_secret(admin),
        inference_secret=None if inference is None else read_secret(inference),
        http=options.http if options.http != AUTO else "off" if options.tls_cert else "loopback",
        metrics=options.metrics,
    )


def _tls(options: argparse.Namespace) -> Tls | None:
    """TLS as the options ask for it. Raises ServerError for a certificate without a key, or options that need TLS."""
    names = ("tls_cert", "tls_key", "tls_client_ca", "tls_probe_cert", "tls_probe_key")
    certificate, key, client_ca, probe_certificate, probe_key = (getattr(options, name) for name in names)
    if certificate is None or key is None:
        if any(getattr(options, name) is not None for name in names):
            raise ServerError("TLS needs a certificate and its key: give both --tls-cert and --tls-key")
        return None
    if (probe_certificate is None) != (probe_key is None):
        raise ServerError("give both --tls-probe-cert and --tls-probe-key, or neither")
    return Tls(certificate, key, client_ca, probe_certificate, probe_key)


def client_options(security: Security) -> str:
    """The options that `brats-ldm` needs for access, as part of a command line."""
    tls = security.tls
    words = [] if tls is None else [" --tls-ca CA.pem"]
    words += [" --tls-cert PEM --tls-key PEM"] if tls is not None and tls.client_ca is not None else []
    words += [" (with BRATS_LDM_SECRET set)"] if security.inference_secret is not None else []
    return "".join(words)


def warnings(security: Security, host: str, concealed: bool) -> list[str]:
    """Notes on access that a user may not expect."""
    notes = []
    if not is_loopback(host) and security.tls is None:
        notes.append(f"gRPC on {host} is not encrypted: give --tls-cert and --tls-key, or keep it behind a proxy")
    if (
        not is_loopback(host)
        and security.inference_secret is None
        and (security.tls is None or security.tls.client_ca is None)
    ):
        notes.append(f"everybody who reaches {host} has access: give --tls-client-ca or --inference-secret-file")
    if not concealed:
        notes.append(
            "`ps` shows the secrets to everybody on this machine: kernel.yama.ptrace_scope forbids hiding them"
        )
    return notes
