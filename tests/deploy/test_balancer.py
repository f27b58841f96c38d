"""Real requests through a real HAProxy to two real servers: how they are shared, and what passes through."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from benchmarks.harness.command import tool
from brats_ldm_client import TLS, AccessDenied, AsyncClient, Client, Generation, Progress, ServerUnavailable
from server.process import TritonServer
from server.security import Security
from support.balancer import COUNT, STEPS, Balancer, Images, calls, slow_down
from support.common import ROOT
from support.faulty_networks import write_faulty
from support.serving import PATIENCE, gauge, infer, start, wait_for_rows, wait_until, wait_until_idle
from support.throwaway_ca import SERVER_NAME, Authority

pytestmark = pytest.mark.slow

SECRET = "s3cret-of-the-servers"


def generate(url: str, **options: Any) -> Images:
    with Client(url, **{"rows_per_request": 1, "concurrency": 6, **options}) as client:
        return client.generate(COUNT, seed=0, steps=STEPS).images


def total(name: str, servers: Sequence[TritonServer]) -> float:
    """A metric of all servers together."""
    return sum(gauge(server, name) for server in servers)


def test_the_requests_of_one_connection_are_shared(
    balancer: Balancer, lasting: TritonServer, mortal: TritonServer, expected: Images
) -> None:
    before = [calls(server.grpc_url) for server in (lasting, mortal)]
    assert np.array_equal(generate(balancer.url), expected)
    made = [calls(server.grpc_url) - then for server, then in zip((lasting, mortal), before, strict=True)]
    assert sum(made) == COUNT
    assert min(made) >= COUNT / 4


def test_a_slow_server_gets_fewer_requests(
    balancer: Balancer, lasting: TritonServer, mortal: TritonServer, expected: Images
) -> None:
    before = calls(mortal.grpc_url)
    slow_down(0.3, mortal)
    assert np.array_equal(generate(balancer.url), expected)
    assert 1 <= calls(mortal.grpc_url) - before <= COUNT / 4


def test_a_stream_comes_event_by_event_and_ends_when_the_client_leaves(
    balancer: Balancer, lasting: TritonServer, mortal: TritonServer
) -> None:
    slow_down(0.02, lasting, mortal)
    servers = (lasting, mortal)
    before = total("mri_ldm_cancelled_rows_total", servers)
    with Client(balancer.url) as client:
        events = client.stream(2, seed=0, steps=1000, preview_every=1)
        for step in (1, 2, 3):
            event = next(events)
            assert isinstance(event, Progress)
            assert event.step.max() == step
        wait_until(lambda: total("mri_ldm_rows_in_flight", servers) == 2, "997 steps were to come")
        events.close()
        for server in servers:
            wait_until_idle(server)
    assert total("mri_ldm_cancelled_rows_total", servers) == before + 2


def test_a_stream_that_is_not_read_holds_up_no_other_request(lasting: TritonServer, tmp_path: Path) -> None:
    """Not even of the same connection to the same server; the asynchronous client has one for all."""

    async def run(url: str) -> None:
        async with AsyncClient(url) as client:
            events = client.stream(4, seed=0, steps=1000, preview_every=1)
            assert isinstance(await events.__anext__(), Progress)
            await asyncio.to_thread(wait_until_idle, lasting)
            assert len(await asyncio.wait_for(client.generate(8, seed=0, steps=STEPS), PATIENCE)) == 8
            await events.aclose()

    with Balancer({"a": lasting.grpc_url}, tmp_path) as balancer:
        asyncio.run(run(balancer.url))


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_the_rows_of_a_client_that_leaves_are_gone(
    how: str, balancer: Balancer, lasting: TritonServer, mortal: TritonServer
) -> None:
    slow_down(0.02, lasting, mortal)
    servers = (lasting, mortal)
    before = total("mri_ldm_cancelled_rows_total", servers)
    with triton.InferenceServerClient(balancer.url) as raw:
        if how == "deadline":
            with pytest.raises(triton.InferenceServerException, match="Deadline"):
                infer(raw, seed=[1, 2], steps=[1000, 1000], timeout=1)
        else:
            call, done, _ = start(raw, seed=[1, 2], steps=[1000, 1000])
            wait_until(lambda: total("mri_ldm_rows_in_flight", servers) == 2, "it has not begun")
            call.cancel()
            assert done.wait(PATIENCE)
        for server in servers:
            wait_until_idle(server)
    assert total("mri_ldm_cancelled_rows_total", servers) == before + 2


def test_full_servers_say_so_through_the_balancer(
    balancer: Balancer, lasting: TritonServer, mortal: TritonServer, expected: Images
) -> None:
    """Both take 24 rows; our client waits and asks again, and gets all."""
    slow_down(0.05, lasting, mortal)
    with triton.InferenceServerClient(balancer.url) as raw:
        running = [start(raw, seed=list(range(4)), steps=[500] * 4) for _ in range(6)]
        for server in (lasting, mortal):
            wait_for_rows(server, 8, "waiting")
        with Client(balancer.url, retry_seconds=0) as client, pytest.raises(ServerUnavailable, match="no room") as busy:
            client.generate(1, seed=0, steps=STEPS)
        assert busy.value.retry_after > 0
        for call, _, _ in running:
            call.cancel()
    slow_down(0, lasting, mortal)
    assert np.array_equal(generate(balancer.url, concurrency=COUNT), expected)


def test_without_a_server_the_error_says_so(tmp_path: Path) -> None:
    with Balancer({"a": "127.0.0.1:1"}, tmp_path) as balancer, Client(balancer.url, retry_seconds=0) as client:
        balancer.wait_for("a", "DOWN")
        with pytest.raises(ServerUnavailable, match=r"no Triton server answers at .* \(.*503\)"):
            client.generate(1, seed=0, steps=1)


class Health(grpc.GenericRpcHandler):
    """The health service of gRPC, which says what it is told to."""

    serving = True

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        assert details.method == "/grpc.health.v1.Health/Check"
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: b"\x08\x01" if self.serving else b"\x08\x02"
        )


def test_a_server_that_says_it_is_not_ready_gets_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """As Triton says from 26.04 on while its models drain; the release in these tests does not."""
    health = Health()
    server = grpc.server(ThreadPoolExecutor(1), handlers=[health])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Balancer({"a": f"127.0.0.1:{port}"}, tmp_path) as balancer:
            health.serving = False
            balancer.wait_for("a", "NOLB")
            health.serving = True
            balancer.wait_for("a", "UP")
    finally:
        server.stop(None)


def test_with_certificates_on_both_sides(tmp_path: Path) -> None:
    """TLS to the clients, who need a certificate, and to the servers, whose authority and name are checked.

    The secret of the servers passes through.
    """
    authority = Authority(tmp_path)
    pem = tmp_path / "balancer.pem"
    pem.write_bytes(b"".join(path.read_bytes() for path in authority.issue("balancer", "127.0.0.1")))
    known = TLS(authority.ca, *authority.issue("client", "client.test"))
    environment = {
        "BALANCER_CERT": str(pem),
        "BALANCER_CLIENT_CA": str(authority.ca),
        "BALANCER_SERVER_CA": str(authority.ca),
        "BALANCER_SERVER_CERT": str(pem),
    }
    security = Security(authority.server(client_ca=authority.ca), http="off", inference_secret=SECRET)
    with TritonServer(write_faulty(tmp_path / "repository"), security=security) as server:
        servers = {"a": server.grpc_url}
        right, wrong = ({**environment, "BALANCER_SERVER_NAME": name} for name in (SERVER_NAME, "other.test"))
        with Balancer(servers, tmp_path / "right", right) as balancer:
            with Client(balancer.url, tls=known, secret=SECRET) as client:
                assert isinstance(client.generate(2, seed=0, steps=2), Generation)
            for stranger in ({"tls": authority.ca, "secret": SECRET}, {"secret": SECRET}):
                with Client(balancer.url, retry_seconds=0, **stranger) as client, pytest.raises(ServerUnavailable):
                    client.generate(1, seed=0, steps=1)
            with Client(balancer.url, tls=known) as client, pytest.raises(AccessDenied):
                client.generate(1, seed=0, steps=1)
            assert balancer.statistics()["a"][1] == "UP", balancer.log
        del right["BALANCER_CLIENT_CA"]
        with (
            Balancer(servers, tmp_path / "without", right) as balancer,
            Client(balancer.url, tls=authority.ca, secret=SECRET) as client,
        ):
            assert isinstance(client.generate(2, seed=0, steps=2), Generation)
        with Balancer(servers, tmp_path / "wrong", wrong) as balancer:
            balancer.wait_for("a", "DOWN")


def test_closed_by_default(tmp_path: Path) -> None:
    """It listens on this machine alone, and only its user may command it."""
    assert "presetenv BALANCER_BIND 127.0.0.1:8001\n" in (ROOT / "deploy" / "balancer" / "haproxy.cfg").read_text()
    with Balancer({"a": "127.0.0.1:1"}, tmp_path) as balancer:
        assert stat.S_IMODE(balancer.socket.stat().st_mode) == 0o600


def test_a_certificate_without_a_name_to_check_is_an_error(tmp_path: Path) -> None:
    env = os.environ | {"BALANCER_SERVER_CA": str(Authority(tmp_path).ca)}
    command = [tool("haproxy"), "-c", "-f", "deploy/balancer"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BALANCER_SERVER_CA needs BALANCER_SERVER_NAME" in done.stderr
