"""`python -m server` as a process under test: what it prints, the processes below it, what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from server.health import listening
from server.ports import free_port
from server.proc import alive, children, model_of
from server.regions import SHARED_MEMORY
from support.common import ROOT, heeding_signals

PATIENCE = 60.0
"""Seconds for the launcher, which starts whole servers: more than `serving.PATIENCE`."""


class Launched:
    """A context manager; stops the launcher at the end, if it still runs."""

    def __init__(self, repository: Path, *options: str) -> None:
        self.ports = {name: free_port("127.0.0.1") for name in ("http", "grpc", "metrics")}
        flags = [f"--{name}-port={port}" for name, port in self.ports.items()]
        self.command = [sys.executable, "-m", "server", "--repository", str(repository), *flags, *options]
        self.grpc_url = f"127.0.0.1:{self.ports['grpc']}"
        self.metrics_url = f"http://127.0.0.1:{self.ports['metrics']}/metrics"
        self.lines: list[str] = []

    def __enter__(self) -> Launched:
        self.process = subprocess.Popen(
            heeding_signals(self.command), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            self.wait_for("Ctrl-C stops")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.processes = {self.server, *children(self.server)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE)
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def printed(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until it has printed `text` that often."""
        deadline = time.monotonic() + PATIENCE
        while self.printed.count(text) < times:
            assert self.process.poll() is None, f"the launcher ended:\n{self.printed}"
            assert time.monotonic() < deadline, f"{text!r} has not been printed {times} times:\n{self.printed}"
            time.sleep(0.02)

    @property
    def server(self) -> int:
        """Process id of the present tritonserver."""
        return int(re.findall(r"process (\d+)", self.printed)[-1])

    def kill(self, victim: str) -> None:
        """SIGKILL for "tritonserver" or for the process of a model instance, such as unet_0_0."""
        processes = {model_of(process): process for process in children(self.server)} | {"tritonserver": self.server}
        self.processes |= set(processes.values())
        os.kill(processes[victim], signal.SIGKILL)

    def left(self) -> dict[str, int]:
        """What is left of the servers that it ran."""
        return {
            "processes left": sum(alive(process) for process in self.processes),
            "regions left": len(regions_of(self.process.pid)),
            "ports left": sum(listening("127.0.0.1", port) for port in self.ports.values()),
        }


def regions_of(launcher: int) -> list[str]:
    """Shared memory of the servers that this process has started; others may run on this machine."""
    return [name for name in os.listdir(SHARED_MEMORY) if f"_{launcher}_" in name]
