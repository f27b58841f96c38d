"""Checks certificates and keys before a server starts with them, and reads the name in a certificate.

A server or a client that does not like a certificate ends the connection without saying why.
"""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import ServerError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


def check_pair(certificate: Path, key: Path) -> None:
    """Raise ServerError unless these are PEM files of a valid certificate and of its key, unencrypted."""
    for path in (certificate, key):
        if not path.is_file():
            raise ServerError(f"no PEM file at {path}")
    try:
        # A password is never asked for: tritonserver cannot be given one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        raise ServerError(f"{certificate} and {key} are no certificate and its key, unencrypted: {error}") from error
    leaf, now = _read(certificate)[0], datetime.datetime.now(datetime.timezone.utc)
    if now > leaf.not_valid_after_utc:
        raise ServerError(f"{certificate}: certificate has expired, on {leaf.not_valid_after_utc:%Y-%m-%d}")
    if now < leaf.not_valid_before_utc:
        raise ServerError(f"{certificate}: certificate is not valid before {leaf.not_valid_before_utc:%Y-%m-%d}")


def check_trusted(certificate: Path, authorities: Path) -> None:
    """Raise ServerError unless an authority of one file has issued the certificate in the other.

    The certificate may be followed by those of authorities in between.
    """
    try:
        trusted = _read(authorities)
    except (OSError, ValueError) as error:
        raise ServerError(f"{authorities} holds no certificate to trust: {error}") from error
    if not any(_issued(shown, authority) for shown in _read(certificate) for authority in trusted):
        raise ServerError(f"{certificate} (what the health check shows) is issued by no authority in {authorities}")


def name_in(certificate: Path) -> str:
    """A name or an address that the certificate is for. Raises ServerError where there is none."""
    from cryptography.x509 import DNSName, ExtensionNotFound, IPAddress, SubjectAlternativeName

    try:
        names = _read(certificate)[0].extensions.get_extension_for_class(SubjectAlternativeName).value
        name = next(str(name.value) for name in names if isinstance(name, DNSName | IPAddress))
    except (ExtensionNotFound, StopIteration):
        raise ServerError(f"{certificate} is for no name (subjectAltName): no client would accept it") from None
    return name.replace("*", "any", 1)


def _read(path: Path) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates

    return load_pem_x509_certificates(path.read_bytes())


def _issued(certificate: Certificate, authority: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
