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
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks import ROOT
from benchmarks.serving.worker import Array, Running, one_request_each
from server.health import listening
from server.ports import choose_ports

STARTUP_S, TIMEOUT_S = 120.0, 900.0


def litserve_server(weights: str, snapshot: Path, rows: int, log: Path) -> Running:
    """Request-level batching of at most `rows`.

    Raises:
        RuntimeError: the package is not there, or its server does not start; with the end of its log.
    """
    if find_spec("litserve") is None:
        raise RuntimeError("no package litserve here: pip install --group bench")
    (port,) = choose_ports({"port": ("127.0.0.1", None)})
    arguments = [str(port), weights, str(snapshot), str(rows)]
    command = [sys.executable, "-m", "benchmarks.serving.rivals.litserve_server", *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    def close() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    deadline = time.monotonic() + STARTUP_S
    while not listening("127.0.0.1", port):
        if process.poll() is not None or time.monotonic() > deadline:
            close()
            raise RuntimeError(f"LitServe has not started: {log.read_text(errors='replace')[-1500:]}")
        time.sleep(0.1)
    return Running(process.pid, one_request_each(partial(_image, f"http://127.0.0.1:{port}/predict")), close)


def _image(url: str, seed: int, steps: int) -> Array:
    body, headers = json.dumps({"seed": seed, "steps": steps}).encode(), {"Content-Type": "application/json"}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(urllib.request.Request(url, body, headers), timeout=TIMEOUT_S) as answer:
        image = base64.b64decode(json.load(answer)["image"])
    return np.frombuffer(image, np.float32).reshape(240, 240)
