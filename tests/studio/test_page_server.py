"""Servers that go and come, that ask for a secret, that speak TLS: what the studio's page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from brats_ldm_client import Client
from server.ports import free_port
from server.process import TritonServer
from server.security import Security, new_secret
from support.browser import Visitor
from support.faulty_networks import order, write_faulty
from support.studio import ask, made, picture_of, studio, wait_for_figures, wait_for_words
from support.throwaway_ca import Authority

pytestmark = pytest.mark.slow
AWAY = "cannot be reached"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faulty(tmp_path_factory.mktemp("studio") / "repository")


def test_a_server_that_stops_and_starts_again(visitor: Visitor, repository: Path) -> None:
    """The page says so each time, keeps what was typed, and needs no reload."""
    port = free_port("127.0.0.1")
    with studio("--url", f"127.0.0.1:{port}") as address, visitor.looking_at(address) as page:
        wait_for_words(page, "server-line", AWAY)
        ask(page, "1", steps=3)
        wait_for_words(page, "generate-words", AWAY)
        with TritonServer(repository, grpc_port=port):
            wait_for_words(page, "server-line", "^Ready")
            ask(page, "2", steps=3)
            assert [figure.seed for figure in made(page, "generate-grid", 1)] == [2]
            order(repository, "unet", seconds=0.2)
            ask(page, "3", steps=1000)
            wait_for_figures(page, "generate-grid", 1, "preview")
        wait_for_words(page, "generate-words", "The server has ended the request|" + AWAY)
        wait_for_words(page, "server-line", AWAY)
        order(repository, "unet")
        with TritonServer(repository, grpc_port=port):
            wait_for_words(page, "server-line", "^Ready")
            ask(page, "4", steps=3)
            assert [figure.seed for figure in made(page, "generate-grid", 1)] == [4]


def test_a_server_with_tls_and_a_secret(visitor: Visitor, repository: Path, tmp_path: Path) -> None:
    """Who has another secret reads so; who has the right one gets images, and the page does not give it away."""
    secret, other = new_secret(), new_secret()
    authority = Authority(tmp_path)
    security = Security(authority.server(), http="off", inference_secret=secret)
    with TritonServer(repository, security=security) as server:
        options = ("--url", server.grpc_url, "--tls-ca", str(authority.ca))
        with studio(*options, BRATS_LDM_SECRET=other) as address, visitor.looking_at(address) as page:
            wait_for_words(page, "server-line", "secret")
            ask(page, "1", steps=3)
            wait_for_words(page, "generate-words", "wants a secret, or another one")
            assert other not in page.content()
        with studio(*options, BRATS_LDM_SECRET=secret) as address, visitor.looking_at(address) as page:
            wait_for_words(page, "server-line", "^Ready")
            ask(page, "1", steps=3)
            [figure] = made(page, "generate-grid", 1)
            assert secret not in page.content()
        with Client(server.grpc_url, tls=authority.ca, secret=secret) as plain:
            assert figure.pixels.tolist() == picture_of(plain.generate(seeds=[1], steps=3).images[0]).tolist()
