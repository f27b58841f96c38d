"""Who gets in: a real tritonserver with TLS, mutual TLS and secrets, on the loopback, with a throw-away authority."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from brats_ldm_client import TLS, AsyncClient, BratsLDMError, Client, ServerUnavailable
from server.errors import ServerError
from server.ports import free_port
from server.process import TritonServer
from server.security import ADMIN_HEADER, GRPC_PREFIX, INFERENCE_HEADER, Security, Tls, new_secret
from support.common import ROOT
from support.throwaway_ca import SERVER_NAME, Authority
from support.toy_pipeline import write_pipeline

pytestmark = pytest.mark.slow

ADMIN, INFERENCE = new_secret(), new_secret()
ADMIN_KEY = {GRPC_PREFIX + ADMIN_HEADER: ADMIN}
INFERENCE_KEY = {GRPC_PREFIX + INFERENCE_HEADER: INFERENCE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("security")


@pytest.fixture(scope="module")
def repository(folder: Path) -> Path:
    (folder / "model_repository").mkdir()
    return write_pipeline(folder / "model_repository")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    return Authority(folder, "stranger")


@pytest.fixture(scope="module")
def encrypted(repository: Path, authority: Authority) -> Iterator[TritonServer]:
    """TLS as `python -m server` starts it: HTTP off, metrics on the loopback."""
    with TritonServer(repository, security=Security(authority.server(), http="off", metrics="loopback")) as server:
        server.probe()
        yield server


@pytest.fixture(scope="module")
def mutual(repository: Path, authority: Authority) -> Iterator[TritonServer]:
    with TritonServer(repository, security=Security(authority.server(client_ca=authority.ca), http="off")) as server:
        server.probe()
        yield server


# --- TLS


def test_both_clients_get_their_images_through_tls(encrypted: TritonServer, authority: Authority) -> None:
    with Client(encrypted.grpc_url, tls=authority.ca) as client:
        image = client.generate(seeds=[5], steps=2).images[0]
        *_, streamed = client.stream(seeds=[5], steps=2)
        assert client.info().models[0].ready

    async def generate() -> np.ndarray:
        async with AsyncClient(f"grpcs://{encrypted.grpc_url}", tls=TLS(ca=authority.ca)) as client:
            return (await client.generate(seeds=[5], steps=2)).images[0]

    assert np.array_equal(streamed.images[0], image)
    assert np.array_equal(asyncio.run(generate()), image)


def test_whom_the_client_does_not_trust_it_does_not_talk_to(encrypted: TritonServer, stranger: Authority) -> None:
    for tls in (stranger.ca, True, False):
        with Client(encrypted.grpc_url, tls=tls) as client, pytest.raises(ServerUnavailable, match="pass tls="):
            client.generate(1, steps=1)


def test_the_name_in_the_certificate_counts(encrypted: TritonServer, authority: Authority) -> None:
    with Client(encrypted.grpc_url, tls=TLS(ca=authority.ca, server_name=SERVER_NAME)) as client:
        client.wait_until_ready(10, deep=True)
    with Client(encrypted.grpc_url, tls=TLS(ca=authority.ca, server_name="other.test")) as client:
        assert not client.is_ready()


def listeners(server: TritonServer) -> dict[str, str]:
    """Addresses that the ports of a server listen on, by what they are for."""
    ports = {server.grpc_port: "grpc", server.http_port: "http", server.metrics_port: "metrics"}
    addresses = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, port = local.split(":")
            if state == "0A" and int(port, 16) in ports:  # gRPC writes IPv4 as IPv6; the last four bytes are the same
                addresses[ports[int(port, 16)]] = ".".join(str(byte) for byte in reversed(bytes.fromhex(address[-8:])))
    return addresses


def test_with_tls_nothing_else_is_open(encrypted: TritonServer) -> None:
    assert listeners(encrypted) == {"grpc": "127.0.0.1", "metrics": "127.0.0.1"}


def test_mutual_tls_lets_in_whom_the_authority_knows(
    mutual: TritonServer, authority: Authority, stranger: Authority
) -> None:
    for shown in ({}, dict(zip(("cert", "key"), stranger.issue("client", "somebody"), strict=True))):
        with Client(mutual.grpc_url, tls=TLS(ca=authority.ca, **shown)) as client, pytest.raises(ServerUnavailable):
            client.generate(1, steps=1)
    certificate, key = authority.issue("client", "somebody")
    with Client(mutual.grpc_url, tls=TLS(ca=authority.ca, cert=certificate, key=key)) as client:
        assert len(client.generate(2, steps=1)) == 2


def test_the_health_check_may_show_a_certificate_of_its_own(
    repository: Path, authority: Authority, stranger: Authority
) -> None:
    tls = authority.server(client_ca=stranger.ca)
    with pytest.raises(ServerError, match="what the health check shows"):
        TritonServer(repository, security=Security(tls))
    with TritonServer(
        repository, security=Security(Tls(tls.certificate, tls.key, stranger.ca, *stranger.issue("probe", "probe")))
    ) as server:
        server.probe()


# --- addresses, sizes, the command


def test_only_grpc_leaves_the_machine(repository: Path) -> None:
    assert listeners_of(repository, "127.0.0.1") == dict.fromkeys(("grpc", "http", "metrics"), "127.0.0.1")
    away = listeners_of(repository, "0.0.0.0", Security(http="loopback", metrics="loopback"))
    assert away == {"grpc": "0.0.0.0", "http": "127.0.0.1", "metrics": "127.0.0.1"}


def listeners_of(repository: Path, host: str, security: Security | None = None) -> dict[str, str]:
    with TritonServer(repository, host=host, security=security) as server:
        return listeners(server)


def test_a_request_of_many_megabytes_is_refused_and_forgotten(encrypted: TritonServer, authority: Authority) -> None:
    with Client(encrypted.grpc_url, tls=authority.ca) as client:
        client.generate(1, steps=1)
        with pytest.raises(BratsLDMError, match="must be one of ddim"):
            client.generate(1, sampler="x" * 50_000_000)
        assert len(client.generate(1, steps=1)) == 1


def test_the_command_serves_with_tls_and_a_secret(folder: Path, repository: Path, authority: Authority) -> None:
    (folder / "secret").write_text(INFERENCE + "\n")
    tls = authority.server()
    ports = [f"--{name}-port={free_port('127.0.0.1')}" for name in ("http", "grpc", "metrics")]
    options = [f"--tls-cert={tls.certificate}", f"--tls-key={tls.key}", f"--inference-secret-file={folder / 'secret'}"]
    command = [sys.executable, "-m", "server", "--repository", str(repository), *ports, *options]
    launcher = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert launcher.stdout is not None
    try:
        printed = ""
        for line in launcher.stdout:
            printed += line
            if line.startswith("Ctrl-C"):
                break
        assert "HTTP        off" in printed
        url = re.search(r"brats-ldm generate --url (\S+) --tls-ca", printed)
        assert url, printed
        asked = ask_command(url[1], authority.ca, BRATS_LDM_SECRET=INFERENCE)
        assert (asked.returncode, asked.stderr) == (0, "")
        denied = ask_command(url[1], authority.ca)
        assert denied.returncode == 1
        assert "$BRATS_LDM_SECRET" in denied.stderr
    finally:
        launcher.terminate()
        printed += launcher.communicate(timeout=30)[0]
    assert launcher.returncode == 0
    assert INFERENCE not in printed + asked.stdout + denied.stderr


def ask_command(url: str, ca: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "brats_ldm_client", "ready", "--deep", "--url", url, "--tls-ca", str(ca)]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=60, check=False)
