"""Access to a server: TLS, secrets, addresses and limits, as flags of tritonserver and as arguments of a client.

Starts nothing and knows no model. docs/security.md explains the defaults.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.certificates import check_pair, check_trusted, name_in
from server.errors import ServerError

LOOPBACK = "127.0.0.1"
PLACES = ("host", "loopback", "off")
# The groups and the header of deploy/container.py.
ADMIN_GROUPS = ("shared-memory", "model-repository", "trace", "logging")
INFERENCE_GROUPS = ("inference", "metadata", "model-config", "statistics")
ADMIN_HEADER, INFERENCE_HEADER = "admin-key", "inference-key"
GRPC_PREFIX = "triton-grpc-protocol-"
"""Triton's, before the name of a header in gRPC; HTTP has it without."""
SECRET = re.compile(r"[A-Za-z0-9._~-]{16,256}")
MAX_REQUEST_BYTES = 8 * 2**20
"""Room for 64 start latents in JSON, the largest request that a model takes (1 MB in binary)."""
KNOWN_FLAGS = {
    "allow-sagemaker": "false",  # where the server was built with that endpoint
    "allow-vertex-ai": "false",
    "http-max-input-size": str(MAX_REQUEST_BYTES),  # 25.06
    "allow-client-shm": "false",  # 26.04
}
"""Flags that are given to a server that knows them; one that does not would not start.

Not --grpc-max-response-pool-size (25.03): with it, Triton makes the sender wait for a client that does not read, in
threads that all calls of the networks share. `max_preview_mb` bounds what such a client holds.
"""


@dataclass(frozen=True)
class Access:
    """What a client needs: arguments of tritonclient's gRPC client, and headers of each call."""

    channel: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Tls:
    """PEM files for gRPC. client_ca: clients must show a certificate of that authority.

    probe_certificate, probe_key: those of the launcher's health check then; None: those of the server.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    probe_certificate: Path | None = None
    probe_key: Path | None = None

    def flags(self) -> list[str]:
        mutual = [] if self.client_ca is None else ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca}"]
        files = [f"--grpc-server-cert={self.certificate}", f"--grpc-server-key={self.key}"]
        return ["--grpc-use-ssl=true", *files, *mutual]

    def channel(self) -> dict[str, Any]:
        """Arguments of a client on this machine, whatever the certificate's name. Raises ServerError for bad files."""
        check_pair(self.certificate, self.key)
        mutual = {}
        if self.client_ca is not None:
            certificate, key = self.probe_certificate or self.certificate, self.probe_key or self.key
            check_pair(certificate, key)
            check_trusted(certificate, self.client_ca)
            mutual = {"certificate_chain": str(certificate), "private_key": str(key)}
        override = [("grpc.ssl_target_name_override", name_in(self.certificate))]
        return {"ssl": True, "root_certificates": str(self.certificate), "channel_args": override, **mutual}


@dataclass(frozen=True)
class Security:
    """Who may use a server. By default: everybody who reaches its host, for everything.

    admin_secret: required for shared memory, model repository, tracing and logging. inference_secret: required for
    everything else except health. http, metrics: on the server's host, on the loopback only, or off; neither can be
    encrypted.
    """

    tls: Tls | None = None
    admin_secret: str | None = field(default=None, repr=False)
    inference_secret: str | None = field(default=None, repr=False)
    http: str = "host"
    metrics: str = "host"

    def address(self, place: str, host: str) -> str:
        """Where HTTP or metrics listen, for a server on `host`."""
        return host if place == "host" or is_loopback(host) else LOOPBACK

    def flags(self, known: frozenset[str]) -> list[str]:
        """Flags for tritonserver; `known` are the names of those that it has."""
        off = [f"--allow-{name}=false" for name in ("http", "metrics") if getattr(self, name) == "off"]
        known_ones = [f"--{name}={value}" for name, value in KNOWN_FLAGS.items() if name in known]
        restricted = []
        for groups, header, secret in self._restricted():
            names = ",".join(groups)
            restricted += [
                f"--http-restricted-api={names}:{header}={secret}",
                f"--grpc-restricted-protocol={names}:{header}={secret}",
            ]
        tls = self.tls.flags() if self.tls else []
        return [*known_ones, *off, *restricted, *tls]

    def access(self) -> Access:
        """What the launcher itself needs for access. Raises ServerError for unusable certificates and keys."""
        headers = {GRPC_PREFIX + header: secret for _, header, secret in self._restricted()}
        return Access(self.tls.channel() if self.tls else {}, headers)

    def secrets(self) -> list[str]:
        """The secrets, which must not be shown."""
        return [secret for _, _, secret in self._restricted()]

    def _restricted(self) -> Iterator[tuple[Sequence[str], str, str]]:
        if self.admin_secret is not None:
            yield ADMIN_GROUPS, ADMIN_HEADER, self.admin_secret
        if self.inference_secret is not None:
            yield INFERENCE_GROUPS, INFERENCE_HEADER, self.inference_secret


def new_secret() -> str:
    """A random secret, which nobody knows."""
    return secrets.token_urlsafe(32)


def read_secret(path: Path) -> str:
    """The secret in a file. Raises ServerError, which does not show it."""
    text = path.read_text(errors="replace").strip()
    if not SECRET.fullmatch(text):
        raise ServerError(f"{path}: a secret is 16 to 256 letters, digits and -._~, e.g. of `openssl rand -hex 32`")
    return text


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    return ipaddress.ip_address(host).is_loopback


def known_flags(binary: Path, env: Mapping[str, str]) -> frozenset[str]:
    """Names of the flags that a tritonserver has."""
    try:
        # Its exit status differs between releases.
        shown = subprocess.run([str(binary), "--help"], env=env, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"{binary} --help: {error}") from error
    return frozenset(re.findall(r"^\s+(?:-\w, )?--([a-z0-9-]+)", shown.stdout + shown.stderr, re.MULTILINE))
