"""Who is let in: TLS, secrets, addresses and limits, as flags of tritonserver and as what a client of it needs.

Starts nothing and knows no model. docs/security.md says what the defaults are for.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

Not --grpc-max-response-pool-size (25.03): with it, Triton lets whoever sends wait for a client that does not read, in
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

    probe_certificate, probe_key: what the launcher shows then, when it asks its own server; the server's if None.
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
        """Of a client on this machine, whatever name the certificate is for. Raises ServerError for unusable files."""
        serving = _context(ssl.PROTOCOL_TLS_SERVER, self.certificate, self.key)
        asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        mutual = {}
        if self.client_ca is not None:
            shown = self.probe_certificate or self.certificate, self.probe_key or self.key
            asking = _context(ssl.PROTOCOL_TLS_CLIENT, *shown)
            mutual = {"certificate_chain": str(shown[0]), "private_key": str(shown[1])}
            serving.verify_mode = ssl.CERT_REQUIRED
            _trust(serving, self.client_ca)
        override = [("grpc.ssl_target_name_override", self._name_by_handshake(asking, serving))]
        return {"ssl": True, "root_certificates": str(self.certificate), "channel_args": override, **mutual}

    def _name_by_handshake(self, asking: ssl.SSLContext, serving: ssl.SSLContext) -> str:
        """A name in the certificate, from a handshake in memory that tells too whether both sides are content."""
        asking.check_hostname = False
        asking.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is what is trusted
        _trust(asking, self.certificate)
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = asking.wrap_bio(to_client, to_server)
        server = serving.wrap_bio(to_server, to_client, server_side=True)
        shown = self.probe_certificate or self.certificate
        for side, judged in ((client, self.certificate), (server, shown)) * 2:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                trusting = "" if side is client else f" (what the health check shows; {self.client_ca} must know it)"
                raise ServerError(f"{judged}: {getattr(error, 'verify_message', None) or error}{trusting}") from error
        names: Any = (client.getpeercert() or {}).get("subjectAltName", ())
        if not names:
            raise ServerError(f"{self.certificate} is for no name (subjectAltName): no client would accept it")
        return str(names[0][1]).replace("*", "any", 1)


@dataclass(frozen=True)
class Security:
    """How far a server is open. As it stands: to all who reach its host, for everything.

    admin_secret: asked for by shared memory, model repository, tracing and logging; inference_secret: by everything
    else but health. http, metrics: on the server's host, on the loopback alone, or off; neither can be encrypted.
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
        """For tritonserver; `known` are the names of its own flags."""
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
        """For the one who started the server. Raises ServerError for unusable certificates and keys."""
        headers = {GRPC_PREFIX + header: secret for _, header, secret in self._restricted()}
        return Access(self.tls.channel() if self.tls else {}, headers)

    def secrets(self) -> list[str]:
        """All that must not be shown."""
        return [secret for _, _, secret in self._restricted()]

    def _restricted(self) -> Iterator[tuple[Sequence[str], str, str]]:
        if self.admin_secret is not None:
            yield ADMIN_GROUPS, ADMIN_HEADER, self.admin_secret
        if self.inference_secret is not None:
            yield INFERENCE_GROUPS, INFERENCE_HEADER, self.inference_secret


def new_secret() -> str:
    """One that nobody knows."""
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


def _context(protocol: int, certificate: Path, key: Path) -> ssl.SSLContext:
    for path in (certificate, key):
        if not path.is_file():
            raise ServerError(f"no PEM file at {path}")
    context = ssl.SSLContext(protocol)
    try:
        # A password is never asked for: tritonserver cannot be given one.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        raise ServerError(f"{certificate} and {key} are no certificate and its key, unencrypted: {error}") from error
    return context


def _trust(context: ssl.SSLContext, authorities: Path) -> None:
    try:
        context.load_verify_locations(authorities)
    except OSError as error:
        raise ServerError(f"{authorities} holds no certificate to trust: {error}") from error


def conceal(pid: int, hidden: Sequence[str]) -> bool:
    """Overwrite secrets on the command line of a child that has read it, as `ps` shows it; whether none is left.

    tritonserver takes them nowhere else. The kernel lets a parent do this, unless kernel.yama.ptrace_scope is above 1.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            line = memory.read(end - start)
            for secret in hidden:
                for found in re.finditer(re.escape(secret.encode()), line):
                    memory.seek(start + found.start())
                    memory.write(b"*" * len(secret))
        shown = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return not any(secret.encode() in shown for secret in hidden)
