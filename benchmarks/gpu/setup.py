"""What the sections share: the machine, how much is measured, and how time is taken."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.graphs import Graph, random_inputs
from export.onnx.run import feeds_of
from export.precision import Precision

Array = np.ndarray[Any, Any]


class OutOfTime(Exception):
    """The time given is used up; what has been measured is written."""


@dataclass(frozen=True)
class Setup:
    """How much is measured, and on what.

    steps: denoising steps of an image; steps_a_call: of these, in one call; images: of the throughput; requests: of the
    latency of one image; repeats: of every other median; deadline: of time.monotonic(), after which nothing new is
    begun.
    """

    device: torch.device
    precision: Precision
    batches: tuple[int, ...]
    steps: int
    steps_a_call: tuple[int, ...]
    images: int
    requests: int
    repeats: int
    deadline: float
    work: Path
    demo_snapshot: Path

    def check_time(self) -> None:
        """Raises OutOfTime after the deadline."""
        if time.monotonic() > self.deadline:
            raise OutOfTime("the time is used up: give more with --minutes")

    def rows(self, graph: Graph) -> list[int]:
        """The batches, none larger than those that `graph` is served in."""
        return sorted({min(batch, graph.max_batch_size) for batch in self.batches})

    def median_ms(self, run: Callable[[], Any]) -> float:
        """Milliseconds of `run`, until the GPU has finished; three runs before are not counted."""
        return statistics.median(self.times_ms(run, self.repeats))

    def times_ms(self, run: Callable[[], Any], repeats: int) -> list[float]:
        """The same, each of them."""
        self.check_time()
        for _ in range(min(3, repeats)):
            run()
        times = []
        for _ in range(repeats):
            self.wait()
            started = time.perf_counter()
            run()
            self.wait()
            times.append(1000 * (time.perf_counter() - started))
        return times

    def wait(self) -> None:
        """Until the GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def random_feeds(graph: Graph, rows: int) -> dict[str, Array]:
    """Arrays of `rows` rows by the names of the inputs, in their order."""
    return feeds_of(graph, random_inputs(graph, rows, seed=0))


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    gpu: dict[str, Any] = {}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            driver = "unknown"
        gpu = {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "driver": driver,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return {
        **gpu,
        "device": device.type,
        "cores": os.cpu_count(),
        "shared_memory_gb": round(shutil.disk_usage("/dev/shm").total / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
