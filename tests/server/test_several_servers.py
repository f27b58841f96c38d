"""One client, two real servers with the same weights: one of them is killed, comes back, drains, wants TLS."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.wire import counts
from brats_ldm_client import TLS, AsyncClient, Client, Generation
from brats_ldm_client._cli import main
from server.channel import connect
from server.process import TritonServer
from server.security import Security
from support.serving import wait_until
from support.throwaway_ca import SERVER_NAME, Authority

pytestmark = pytest.mark.slow

STEPS, COUNT = 10, 48


@pytest.fixture(scope="module")
def lasting(small_repository: Path) -> Iterator[TritonServer]:
    """The one that outlives all tests."""
    with TritonServer(small_repository) as server:
        server.probe()
        yield server


@pytest.fixture(scope="module")
def expected(lasting: TritonServer) -> np.ndarray[Any, Any]:
    """The images of one server."""
    with Client(lasting.grpc_url) as client:
        return client.generate(COUNT, seed=0, steps=STEPS).images


@pytest.fixture
def mortal(small_repository: Path) -> Iterator[TritonServer]:
    with TritonServer(small_repository) as server:
        server.probe()
        yield server


def requests(server: TritonServer) -> int:
    """How often Triton has run the sampling model."""
    with connect(server.grpc_url) as raw:
        return counts(raw, "mri_ldm").calls


def kill(server: TritonServer) -> None:
    os.kill(server.pid, signal.SIGKILL)


def generate(kind: str, urls: list[str], on_progress: Callable[[int, int], None] | None = None) -> Generation:
    options: dict[str, Any] = {"rows_per_request": 2, "concurrency": 6}
    if kind == "sync":
        with Client(urls, **options) as client:
            return client.generate(COUNT, seed=0, steps=STEPS, on_progress=on_progress)

    async def run() -> Generation:
        async with AsyncClient(urls, **options) as client:
            return await client.generate(COUNT, seed=0, steps=STEPS, on_progress=on_progress)

    return asyncio.run(run())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_server_is_killed_in_the_middle(
    kind: str, lasting: TritonServer, mortal: TritonServer, expected: np.ndarray[Any, Any]
) -> None:
    """With six requests in flight on two servers some are lost, and made again by the other: the same bits."""
    before, done_when_killed = requests(lasting), []

    def kill_once_it_has_worked(done: int, total: int) -> None:
        if not done_when_killed and done < total / 2 and requests(mortal):
            done_when_killed.append(done)
            kill(mortal)

    made = generate(kind, [mortal.grpc_url, lasting.grpc_url], kill_once_it_has_worked)
    assert done_when_killed, "it got no work"
    assert requests(lasting) > before
    assert np.array_equal(made.images, expected)
    assert len({record["model_digest"] for record in made.provenance}) == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_server_is_away_from_the_start(
    kind: str, lasting: TritonServer, mortal: TritonServer, expected: np.ndarray[Any, Any]
) -> None:
    kill(mortal)
    urls = [mortal.grpc_url, lasting.grpc_url]
    assert np.array_equal(generate(kind, urls).images, expected)
    for _ in range(3):
        assert np.array_equal(stream(kind, urls).images, expected[:2])


def stream(kind: str, urls: list[str]) -> Generation:
    if kind == "sync":
        with Client(urls, retry_seconds=0) as client:
            *_, made = client.stream(2, seed=0, steps=STEPS)
            return made

    async def run() -> Any:
        async with AsyncClient(urls, retry_seconds=0) as client:
            return [event async for event in client.stream(2, seed=0, steps=STEPS)][-1]

    return asyncio.run(run())


def test_a_server_that_comes_back_gets_work_again(
    lasting: TritonServer, mortal: TritonServer, expected: np.ndarray[Any, Any]
) -> None:
    with Client([mortal.grpc_url, lasting.grpc_url], rows_per_request=1) as client:
        wait_until(lambda: len(client.generate(4, seed=0, steps=1)) == 4 and requests(mortal) > 0, "it got no work")
        kill(mortal)
        assert np.array_equal(client.generate(COUNT, seed=0, steps=STEPS).images, expected)
        mortal.stop()
        with TritonServer(mortal.repository, grpc_port=mortal.grpc_port) as back:
            wait_until(lambda: len(client.generate(4, seed=0, steps=1)) == 4 and requests(back) > 0, "no work again")
            assert np.array_equal(client.generate(COUNT, seed=0, steps=STEPS).images, expected)


def test_a_server_drains_in_the_middle(
    lasting: TritonServer, mortal: TritonServer, expected: np.ndarray[Any, Any]
) -> None:
    """It is alive and answers, with refusals: the other makes what it refuses."""
    with Client([mortal.grpc_url, lasting.grpc_url], rows_per_request=1) as client:
        wait_until(lambda: len(client.generate(4, seed=0, steps=1)) == 4 and requests(mortal) > 0, "it got no work")
        assert mortal.drain(30)
        assert np.array_equal(client.generate(COUNT, seed=0, steps=STEPS).images, expected)
    assert mortal.poll() is None


def test_the_command_takes_several(
    lasting: TritonServer, mortal: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(mortal)
    monkeypatch.setenv("BRATS_LDM_URL", f"{mortal.grpc_url},{lasting.grpc_url}")
    assert main(["generate", "-n", "4", "--seed", "0", "--steps", "2", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("slice_*.png"))) == 4


def test_two_servers_with_tls(small_repository: Path, tmp_path: Path, expected: np.ndarray[Any, Any]) -> None:
    """One name is checked for both: that of the host, which is the same here, or the one that is given."""
    authority = Authority(tmp_path)
    security = Security(authority.server(), http="off")
    with (
        TritonServer(small_repository, security=security) as first,
        TritonServer(small_repository, security=security) as second,
    ):
        urls = [first.grpc_url, second.grpc_url]
        for tls in (authority.ca, TLS(ca=authority.ca, server_name=SERVER_NAME)):
            with Client(urls, tls=tls, rows_per_request=1) as client:
                assert np.array_equal(client.generate(COUNT, seed=0, steps=STEPS).images, expected)
