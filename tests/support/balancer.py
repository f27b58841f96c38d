"""HAProxy with the committed configuration, in front of the servers of a test; and what those tests share."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.harness.command import tool
from benchmarks.harness.wire import counts
from server.channel import connect
from server.health import listening
from server.ports import free_port
from server.process import TritonServer
from support.common import ROOT
from support.faulty_networks import order
from support.serving import wait_until

STEPS, COUNT = 5, 32
"""Of the images that all expect."""
LIMITS = {"max_rows_in_flight": 4, "max_rows_waiting": 8}
Images = np.ndarray[Any, Any]


class Balancer:
    """A context manager. servers: name to host:port. environment: variables of the configuration."""

    def __init__(self, servers: Mapping[str, str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self.socket = folder / "balancer.sock"
        self.port = free_port("127.0.0.1")
        self.url = f"127.0.0.1:{self.port}"
        self._env = os.environ | {"BALANCER_BIND": self.url} | dict(environment or {})
        shutil.copytree(ROOT / "deploy" / "balancer", folder / "deploy" / "balancer")
        self._write(servers)

    def _write(self, servers: Mapping[str, str]) -> None:
        lines = ["backend servers", *(f"    server {name} {url}" for name, url in servers.items())]
        (self._folder / "deploy" / "balancer" / "servers.cfg").write_text("\n".join(lines) + "\n")

    def __enter__(self) -> Balancer:
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [tool("haproxy"), "-W", "-f", "deploy/balancer"],
                cwd=self._folder,
                env=self._env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: self._process.poll() is not None or self._started(), "it does not listen")
        assert self._process.poll() is None, self.log
        return self

    def _started(self) -> bool:
        return self.socket.exists() and listening("127.0.0.1", self.port)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def reload(self, servers: Mapping[str, str]) -> None:
        """Go on with other servers."""
        before = self.log.count("New worker")
        self._write(servers)
        self._process.send_signal(signal.SIGUSR2)
        wait_until(lambda: self.log.count("New worker") > before, "it has not reloaded")

    def tell(self, command: str) -> str:
        """The answer on the runtime socket."""
        words = [tool("socat"), "-", f"UNIX:{self.socket}"]
        return subprocess.run(words, input=f"{command}\n", capture_output=True, text=True, check=True).stdout

    def statistics(self) -> dict[str, tuple[int, str]]:
        """Requests in flight, and state, of each server."""
        rows = csv.DictReader(self.tell("show stat servers 4 -1").removeprefix("# ").splitlines())
        return {row["svname"]: (int(row["scur"]), row["status"]) for row in rows if row["svname"]}

    def wait_for(self, name: str, state: str) -> None:
        wait_until(lambda: self.statistics()[name][1].startswith(state), f"{name} does not become {state}:\n{self.log}")


def slow_down(seconds: float, *servers: TritonServer) -> None:
    """Each step takes longer."""
    for server in servers:
        order(server.repository, "unet", seconds=seconds)


def calls(url: str) -> int:
    """How often the server has run the sampling model."""
    with connect(url) as raw:
        return counts(raw, "mri_ldm").calls
