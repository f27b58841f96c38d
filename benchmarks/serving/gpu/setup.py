"""What the sections of a GPU share: the device, how much is measured, and how time is taken."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.timing import repeated
from export.graphs import Graph, random_inputs
from export.onnx.run import feeds_of
from export.precision import Precision

Array = np.ndarray[Any, Any]


class OutOfTime(Exception):
    """The time given is used up. What has been measured is written."""


@dataclass(frozen=True)
class Setup:
    """How much is measured, and on what.

    deadline: of time.monotonic(), after which nothing new begins. steps: denoising steps of an image. steps_a_call: of
    these, in one call. images: of the throughput. requests: of the latency of one image. repeats: of other medians.
    """

    device: torch.device
    precision: Precision
    deadline: float
    work: Path
    demo_snapshot: Path
    batches: tuple[int, ...] = (1, 8, 64)
    steps: int = 50
    steps_a_call: tuple[int, ...] = (1, 5, 10, 50)
    images: int = 512
    requests: int = 30
    repeats: int = 10

    def quick(self) -> Setup:
        """As little as tries the benchmark itself."""
        return replace(self, batches=(1, 2), steps=2, steps_a_call=(1, 2), images=2, requests=2, repeats=1)

    def check_time(self) -> None:
        """Raises OutOfTime after the deadline."""
        if time.monotonic() > self.deadline:
            raise OutOfTime("the time is used up: give more with --minutes")

    def rows(self, graph: Graph) -> list[int]:
        """The batches, none larger than those that `graph` is served in."""
        return sorted({min(batch, graph.max_batch_size) for batch in self.batches})

    def median_ms(self, run: Callable[[], Any]) -> float:
        """Milliseconds of `run`, until the GPU has finished."""
        return statistics.median(self.times_ms(run, self.repeats))

    def times_ms(self, run: Callable[[], Any], repeats: int) -> list[float]:
        """The same, of each call."""
        self.check_time()
        return [1000 * seconds for seconds in repeated(run, repeats, self._wait)]

    def _wait(self) -> None:
        """Until the GPU has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def random_feeds(graph: Graph, rows: int) -> dict[str, Array]:
    """Arrays of `rows` rows by the names of the inputs, in their order."""
    return feeds_of(graph, random_inputs(graph, rows, seed=0))


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """The GPU and its software; {} for a CPU."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        driver = "unknown"
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
