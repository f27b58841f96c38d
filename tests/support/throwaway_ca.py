"""PEM files of a certificate authority that lives for one test."""

import datetime
from pathlib import Path

import trustme

from server.security import Tls

SERVER_NAME = "slices.test"


class Authority:
    """An authority with its certificate in `ca`; writes certificates into the folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._name, self._authority = folder, name, trustme.CA()
        self.ca = folder / f"{name}.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, name: str, *names: str, days: int = 1) -> tuple[Path, Path]:
        """Files of a certificate for `names`, and of its key; one that ends `days` from now."""
        ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
        leaf = self._authority.issue_cert(*names, not_after=ends)
        certificate, key = (self._folder / f"{self._name}-{name}.{kind}" for kind in ("crt", "key"))
        leaf.cert_chain_pems[0].write_to_path(certificate)
        leaf.private_key_pem.write_to_path(key)
        return certificate, key

    def server(self, client_ca: Path | None = None) -> Tls:
        return Tls(*self.issue("server", SERVER_NAME, "127.0.0.1"), client_ca)
