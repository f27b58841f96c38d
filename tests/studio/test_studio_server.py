"""Servers that go and come, that ask for a secret, that speak TLS: what the studio's page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.ports import free_port
from server.process import TritonServer
from server.security import Security, new_secret
from support.browser import Visitor
from support.faulty_networks import write_faulty
from support.studio import ask, made, open_page, studio, wait_for_words, words
from support.throwaway_ca import Authority

pytestmark = pytest.mark.slow
AWAY = "cannot be reached"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faulty(tmp_path_factory.mktemp("studio") / "repository")


def test_a_server_that_stops_and_starts_again(visitor: Visitor, repository: Path) -> None:
    """The page says so each time, and needs no reload."""
    port = free_port("127.0.0.1")
    with studio("--url", f"127.0.0.1:{port}") as address:
        page = visitor.open(address)
        wait_for_words(page, "server-line", AWAY)
        ask(page, "1", steps=2)
        wait_for_words(page, "generate-words", AWAY)
        for seed in (2, 3):
            with TritonServer(repository, grpc_port=port) as server:
                server.probe()
                wait_for_words(page, "server-line", "^Ready")
                ask(page, str(seed), steps=2)
                assert [figure.seed for figure in made(page, "generate-grid", 1)] == [seed]
            wait_for_words(page, "server-line", AWAY)


def test_a_secret(visitor: Visitor, repository: Path) -> None:
    secret = new_secret()
    with TritonServer(repository, security=Security(inference_secret=secret)) as server:
        server.probe()
        with studio("--url", server.grpc_url, BRATS_LDM_SECRET="wrong") as address:
            page = visitor.open(address)
            wait_for_words(page, "server-line", "(?i)secret")
            ask(page, "1", steps=2)
            wait_for_words(page, "generate-words", "(?i)secret")
        assert "wrong" not in words(page, "generate-words").lower().replace("wrong secret", "")
        with studio("--url", server.grpc_url, BRATS_LDM_SECRET=secret) as address:
            page = open_page(visitor, address)
            ask(page, "1", steps=2)
            made(page, "generate-grid", 1)
            assert secret not in page.content()


def test_tls(visitor: Visitor, repository: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with TritonServer(repository, security=Security(authority.server(), http="off")) as server:
        server.probe()
        with studio("--url", server.grpc_url, "--tls-ca", str(authority.ca)) as address:
            page = open_page(visitor, address)
            ask(page, "1", steps=2)
            made(page, "generate-grid", 1)
