"""Starts LitServe (litserve_server.py) and asks it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks import ROOT
from benchmarks.serving.worker import Array
from server.health import listening
from server.ports import choose_ports

STARTUP_S, TIMEOUT_S = 120.0, 900.0


class LitServe:
    """Request-level batching of at most `rows`. Close it.

    Raises:
        RuntimeError: the package is not there, or its server does not start; with the end of its log.
    """

    def __init__(self, weights: str, snapshot: Path, rows: int, log: Path) -> None:
        if find_spec("litserve") is None:
            raise RuntimeError("no package litserve here: pip install --group bench")
        (self._port,) = choose_ports({"port": ("127.0.0.1", None)})
        arguments = [str(self._port), weights, str(snapshot), str(rows)]
        command = [sys.executable, "-m", "benchmarks.serving.rivals.litserve_server", *arguments]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + STARTUP_S
        while not listening("127.0.0.1", self._port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"LitServe has not started: {log.read_text(errors='replace')[-1500:]}")
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        """The leader of its processes."""
        return self._process.pid

    def generate(self, seeds: Sequence[int], steps: int) -> Array:
        """All seeds at once, each in a request of its own."""
        with ThreadPoolExecutor(len(seeds)) as pool:
            return np.stack(list(pool.map(lambda seed: self._image(seed, steps), seeds)))

    def _image(self, seed: int, steps: int) -> Array:
        body = json.dumps({"seed": seed, "steps": steps}).encode()
        url, headers = f"http://127.0.0.1:{self._port}/predict", {"Content-Type": "application/json"}
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(urllib.request.Request(url, body, headers), timeout=TIMEOUT_S) as answer:
            image = base64.b64decode(json.load(answer)["image"])
        return np.frombuffer(image, np.float32).reshape(240, 240)

    def close(self) -> None:
        """End all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
