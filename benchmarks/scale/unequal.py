"""Two servers, one at a third of the other's speed: requests in turn, as gRPC does it, and by least connections."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.bulk.command import POLL_SECONDS, end, start
from benchmarks.harness.command import tool
from benchmarks.harness.device import Device
from benchmarks.harness.timing import compare, in_turns
from benchmarks.scale.devices import write_waiting
from benchmarks.scale.fleet import Finding, Fleet, simulate
from server.health import listening
from server.ports import free_port
from server.process import TritonServer
from training.files import write_text

SAMPLER = "dpmpp_2m"
SLOWER = 3.0
FINDING: dict[str, Finding] = {"in turn": "in turn", "least connections": "least busy"}


@dataclass(frozen=True)
class Amount:
    """How much of everything."""

    device: Device
    images: int
    steps: int
    concurrency: int
    rounds: int


FULL = Amount(Device(0.02, 0.002, 0.005), images=480, steps=20, concurrency=16, rounds=2)
QUICK = Amount(Device(0.001, 0.001, 0.001), images=16, steps=2, concurrency=4, rounds=1)


def measure(repository: Path, work: Path, amount: Amount) -> dict[str, Any]:
    """Seconds of each way; `faster_than_baseline` is the speed beside the fast server alone. simulated: the same by the
    fleet's simulation.
    """
    folder = work / "unequal"
    shutil.rmtree(folder, ignore_errors=True)
    repositories = [
        write_waiting(repository, folder / name, device)
        for name, device in {"fast": amount.device, "slow": amount.device.slower(SLOWER)}.items()
    ]
    with contextlib.ExitStack() as stack:
        fast, slow = (stack.enter_context(TritonServer(each, None)) for each in repositories)
        for server in (fast, slow):
            server.probe()
        balancer = stack.enter_context(_balanced(folder, [fast.grpc_url, slow.grpc_url]))
        ways = {
            "fast alone": fast.grpc_url,
            "in turn": f"{fast.grpc_url},{slow.grpc_url}",
            "least connections": balancer,
        }
        contestants = {name: partial(_bulk, folder / "out", url, amount) for name, url in ways.items()}
        for run in contestants.values():  # memory is allocated, and the servers learn how many rows pay
            run()
        times = in_turns(contestants, amount.rounds, report=lambda line: print(line, flush=True))
    return {
        **asdict(amount),
        "slower": SLOWER,
        "sampler": SAMPLER,
        "contestants": compare(times, "fast alone"),
        "simulated": {way: _simulated(finding, amount) for way, finding in FINDING.items()},
    }


def _simulated(finding: Finding, amount: Amount) -> float:
    """How many times faster than the fast server alone."""
    pair = Fleet(
        servers=2, workers=1, images=amount.images, shard_size=amount.images, slow_share=0.5, slow_speed=1 / SLOWER,
        finding=finding, concurrency=amount.concurrency, image_s=1.0,
    )  # fmt: skip
    return pair.images * pair.image_s / simulate(pair).makespan_s


@contextlib.contextmanager
def _balanced(folder: Path, urls: list[str]) -> Iterator[str]:
    """The address of an HAProxy with the committed configuration in front of some servers."""
    servers = folder / "servers.cfg"
    write_text(
        servers, "\n".join(["backend servers", *(f"    server s{i} {url}" for i, url in enumerate(urls))]) + "\n"
    )
    port = free_port("127.0.0.1")
    command = [tool("haproxy"), "-f", str(ROOT / "deploy" / "balancer" / "haproxy.cfg"), "-f", str(servers)]
    env = os.environ | {"BALANCER_BIND": f"127.0.0.1:{port}"}
    with subprocess.Popen(command, cwd=folder, env=env) as process:
        try:
            while not listening("127.0.0.1", port):
                if process.poll() is not None:
                    raise RuntimeError(f"haproxy ended with {process.returncode}")
                time.sleep(POLL_SECONDS)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def _bulk(folder: Path, url: str, amount: Amount) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    how = ("--count", amount.images, "--steps", amount.steps, "--concurrency", amount.concurrency)
    end(start("bulk", "--url", url, "--out", folder, "--sampler", SAMPLER, *map(str, how)))
