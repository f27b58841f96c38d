"""Servers behind a real HAProxy are killed, frozen, drained and updated while clients ask: nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from brats_ldm_client import Client
from reliability.launched import PATIENCE, Launched
from server.process import TritonServer
from support.balancer import COUNT, LIMITS, STEPS, Balancer, Images, calls, slow_down
from support.faulty_networks import write_faulty
from support.serving import infer, wait_for_rows, wait_until

pytestmark = pytest.mark.slow


class Load:
    """Six threads ask on one connection of Triton's own client, which repeats nothing. A context manager."""

    def __init__(self, url: str, expected: Images) -> None:
        self._url, self._expected = url, expected
        self._over = threading.Event()
        self.made = 0
        self.failures: list[object] = []

    def __enter__(self) -> Load:
        self._raw = triton.InferenceServerClient(self._url)
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(6)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._raw.close()

    def _ask(self, seed: int) -> None:
        while not self._over.is_set():
            try:
                image = infer(self._raw, "image", seed=[seed], steps=[STEPS]).as_numpy("image")
            except triton.InferenceServerException as error:
                self.failures.append(error)
                return
            if not np.array_equal(image[0, 0], self._expected[seed]):
                self.failures.append(f"another image of seed {seed}")
            self.made += 1

    def go_on(self) -> None:
        """Returns after some more requests."""
        enough = self.made + 30
        wait_until(lambda: self.made > enough or bool(self.failures), "requests hang")


def test_an_update_in_the_documented_order_loses_nothing(
    lasting: TritonServer, tmp_path: Path, expected: Images
) -> None:
    """Also for clients that repeat nothing: the server is drained, stopped and started again while they ask."""
    repository = write_faulty(tmp_path / "updated", **LIMITS)
    with (
        Launched(repository) as old,
        Balancer({"a": lasting.grpc_url, "b": old.grpc_url}, tmp_path / "balancer") as balancer,
        Load(balancer.url, expected) as load,
    ):
        wait_until(lambda: calls(old.grpc_url) > 10, "it got no work")
        balancer.tell("set server servers/b state drain")
        wait_until(lambda: balancer.statistics()["b"] == (0, "DRAIN"), "it is not drained")
        old.process.send_signal(signal.SIGTERM)
        assert old.process.wait(PATIENCE) == 0
        load.go_on()
        with Launched(repository, f"--grpc-port={old.ports['grpc']}"):
            balancer.tell("set server servers/b state ready")
            wait_until(lambda: calls(old.grpc_url) > 10, f"it got no work again:\n{balancer.log}")
            load.go_on()
            balancer.tell("set server servers/b state drain")
            wait_until(lambda: balancer.statistics()["b"][0] == 0, "it is not drained")
    assert load.failures == []


def test_a_server_that_drains_without_the_balancer_costs_our_client_time_alone(
    balancer: Balancer, lasting: TritonServer, mortal: TritonServer, expected: Images
) -> None:
    slow_down(0.05, lasting, mortal)
    with Client(balancer.url, rows_per_request=1) as client:

        def leave(done: int, total: int) -> None:
            if done == 8:
                assert mortal.drain(30)
                threading.Timer(1, mortal.stop).start()

        assert np.array_equal(client.generate(COUNT, seed=0, steps=STEPS, on_progress=leave).images, expected)


def test_a_killed_server_costs_small_requests_nothing(
    balancer: Balancer, lasting: TritonServer, mortal: TritonServer, expected: Images
) -> None:
    """HAProxy itself repeats those that it has whole, so this holds for clients that repeat nothing."""
    slow_down(0.02, lasting, mortal)
    with Load(balancer.url, expected) as load:
        wait_for_rows(mortal, 2)
        os.kill(mortal.pid, signal.SIGKILL)
        load.go_on()
        balancer.wait_for("b", "DOWN")
        load.go_on()
    assert load.failures == []


def test_a_killed_server_costs_our_client_no_large_request_either(
    balancer: Balancer, lasting: TritonServer, mortal: TritonServer
) -> None:
    """Start latents are more than HAProxy keeps; the client gets UNAVAILABLE, and asks again."""
    latents = np.random.default_rng(0).standard_normal((16, 64, 64)).astype(np.float32)
    options: dict[str, Any] = {"latents": latents, "seeds": range(16), "steps": 40}
    with Client(lasting.grpc_url, rows_per_request=4) as client:
        alone = client.generate(**options)
    slow_down(0.05, lasting, mortal)
    killer = threading.Thread(target=lambda: (wait_for_rows(mortal, 4), os.kill(mortal.pid, signal.SIGKILL)))
    killer.start()
    with Client(balancer.url, rows_per_request=4, concurrency=4) as client:
        made = client.generate(**options)
    killer.join()
    assert mortal.poll() is not None
    assert np.array_equal(made.images, alone.images)


def test_a_frozen_server_loses_its_requests_to_the_others(
    balancer: Balancer, lasting: TritonServer, mortal: TritonServer, expected: Images
) -> None:
    slow_down(0.02, lasting, mortal)
    with Load(balancer.url, expected) as load:
        wait_for_rows(mortal, 2)
        os.kill(mortal.pid, signal.SIGSTOP)
        try:
            balancer.wait_for("b", "DOWN")
            wait_until(lambda: balancer.statistics()["b"][0] == 0, "it keeps its requests")
            load.go_on()
        finally:
            os.kill(mortal.pid, signal.SIGCONT)
        balancer.wait_for("b", "UP")
        load.go_on()
    assert load.failures == []


def test_a_reload_with_another_server_loses_nothing(
    lasting: TritonServer, mortal: TritonServer, tmp_path: Path, expected: Images
) -> None:
    with Balancer({"a": lasting.grpc_url}, tmp_path / "balancer") as balancer, Load(balancer.url, expected) as load:
        load.go_on()
        before = calls(mortal.grpc_url)
        balancer.reload({"a": lasting.grpc_url, "b": mortal.grpc_url})
        wait_until(lambda: calls(mortal.grpc_url) > before + 5, f"it got no work:\n{balancer.log}")
        load.go_on()
    assert load.failures == []


def test_a_balancer_that_is_gone_for_a_while_costs_our_client_time_alone(balancer: Balancer, expected: Images) -> None:
    def restart(done: int, total: int) -> None:
        if done == 8:
            balancer.__exit__(None, None, None)
            threading.Timer(1, balancer.__enter__).start()

    with Client(balancer.url, rows_per_request=1, concurrency=2) as client:
        made = client.generate(COUNT, seed=0, steps=STEPS, on_progress=restart)
    assert np.array_equal(made.images, expected)
