"""Figures through a tritonserver: the networks, whole images, throughput, what a step costs beside its network, parity.

All requests go over gRPC to a server on this machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.setup import Array, Setup, random_feeds
from benchmarks.wire import Counts, ask, counts
from export.graphs import GRAPHS, Graph
from server.channel import connect
from server.process import TritonServer
from training.sample import generate

if TYPE_CHECKING:
    from training.checkpoint import Snapshot

ROWS = 8  # of one request of the throughput, as the client library cuts them
STARTUP_S = 240.0
COUNTED_S = 30.0  # until Triton's statistics are complete, which takes a moment
# Relative L2 of final latents after all steps against fp32 on the same seeds; the errors of 50 steps add up.
TOLERANCES = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1}


class Served:
    """A server of `repository` and a client of it; a context manager."""

    def __init__(self, setup: Setup, repository: Path, profile: str | None) -> None:
        self.setup = setup
        self.server = TritonServer(repository, profile, startup_timeout_s=STARTUP_S)

    def __enter__(self) -> Served:
        started = time.monotonic()
        self.server.start()
        try:
            self.server.probe(STARTUP_S)
            self.start_s = time.monotonic() - started
            self.client = connect(self.server.grpc_url)
        except BaseException:
            self.server.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.stop()

    def ask(self, model: str, output: str, feeds: dict[str, Array]) -> Array:
        """One request; its output."""
        return ask(self.client, model, output, feeds, STARTUP_S)

    def images(self, seeds: list[int], output: str = "image") -> Array:
        """One request of mri_ldm with a row for each seed."""
        steps = np.full((len(seeds), 1), self.setup.steps, np.int32)
        return self.ask("mri_ldm", output, {"seed": np.array(seeds, np.int64)[:, None], "steps": steps})

    def computes(self) -> list[str]:
        """What the backends have logged of each network: precision, device, and which batches have a CUDA graph.

        Raises:
            RuntimeError: a network is not on the device that is measured.
        """
        lines = [
            line for line in self.server.log_tail(1000) if " model 'unet'" in line or " model 'vae_decoder'" in line
        ]
        told = [line.partition("] ")[2].strip('"') for line in lines]
        if self.setup.device.type == "cuda" and not all("cuda" in line or "TensorRT" in line for line in told):
            raise RuntimeError(f"these are not figures of a GPU: {told}")
        return told

    def network_ms(self, graph: Graph) -> dict[int, float]:
        """Milliseconds of a request by its rows."""
        return {
            rows: self.setup.median_ms(partial(self.ask, graph.name, graph.output.name, random_feeds(graph, rows)))
            for rows in self.setup.rows(graph)
        }

    def image_ms(self) -> dict[str, float]:
        """One image at a time."""
        times = sorted(self.setup.times_ms(lambda: self.images([7]), self.setup.requests))
        return {
            "p50": statistics.median(times),
            "p90": times[min(len(times) - 1, int(0.9 * len(times)))],
            "requests": len(times),
        }

    def throughput(self) -> dict[str, float]:
        """Images a second with requests of ROWS rows, 64 rows at once or all."""
        self.setup.check_time()
        seeds = list(range(self.setup.images))
        requests = [seeds[first : first + ROWS] for first in range(0, len(seeds), ROWS)]
        with ThreadPoolExecutor(64 // ROWS) as pool:
            list(pool.map(self.images, requests[: 64 // ROWS]))  # warm
            started = time.perf_counter()
            rows = sum(len(answer) for answer in pool.map(self.images, requests))
            seconds = time.perf_counter() - started
        return {"images_per_s": rows / seconds, "images": rows}

    def step_ms(self, rows: int) -> dict[str, float]:
        """A step of the sampling loop, of `rows` rows of one request: all of it, and the share of the network.

        network_ms is from Triton's own statistics; the rest is the call from model to model, the recurrence and the
        bookkeeping. Nothing is decoded.
        """
        self.setup.check_time()
        seeds = list(range(rows))
        self.images(seeds, "final_latent")
        before, started = self._unet_counts(), time.perf_counter()
        for _ in range(self.setup.repeats):
            self.images(seeds, "final_latent")
        seconds = time.perf_counter() - started
        after = self._unet_counts(before.rows + rows * self.setup.steps * self.setup.repeats)
        calls = after.calls - before.calls
        step, network = 1000 * seconds / calls, (after.ns - before.ns) / calls / 1e6
        return {"rows": rows, "step_ms": step, "network_ms": network, "overhead_ms": step - network, "calls": calls}

    def _unet_counts(self, rows: int = 0) -> Counts:
        """Once they have at least so many rows: Triton counts a call after it has handed on the answer.

        Raises:
            TimeoutError: they never have.
        """
        deadline = time.monotonic() + COUNTED_S
        while (now := counts(self.client, "unet")).rows < rows:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Triton has counted {now.rows} rows of unet, and {rows} were computed")
            time.sleep(0.01)
        return now


def served(
    setup: Setup, snapshot: Snapshot, export: Callable[[], Path], profile: str | None, trained: bool
) -> Iterator[tuple[str, Any]]:
    """All figures of one server of the repository that `export` makes of `snapshot`, the most wanted first.

    Raises:
        ValueError: trained weights that differ by more than the tolerance of the precision; after everything else.
    """
    setup.check_time()
    started = time.monotonic()
    repository = export()
    yield "export_s", time.monotonic() - started
    with Served(setup, repository, profile) as server:
        yield "start_s", server.start_s
        yield "image_ms", server.image_ms()
        yield "throughput", server.throughput()
        yield "computes", server.computes()
        yield "step_one", server.step_ms(1)
        yield "step_many", server.step_ms(max(setup.batches))
        found = parity(setup, snapshot, server, trained)
        yield "parity", found
        yield "network_ms", {graph.name: server.network_ms(graph) for graph in GRAPHS}
    if trained and not found["latent_relative_l2"] <= found["tolerance_latent_relative_l2"]:
        raise ValueError(f"served latents differ from fp32 by more than they may: {found}")


def parity(setup: Setup, snapshot: Snapshot, server: Served, trained: bool) -> dict[str, Any]:
    """Served images against PyTorch in float32 on the same seeds, on this machine.

    Random weights do not denoise, and so amplify rounding: of them the figures are told, and hold nobody to anything.
    """
    setup.check_time()
    seeds = list(range(100, 100 + min(8, setup.images)))
    images, latents = generate(snapshot, seeds, setup.steps, batch=len(seeds))
    answer = server.images(seeds)[:, 0]
    error = answer - images
    relative = np.linalg.norm(server.images(seeds, "final_latent") - latents) / np.linalg.norm(latents)
    alone = np.concatenate([server.images([seed]) for seed in seeds])[:, 0]
    return {
        "seeds": len(seeds),
        "latent_relative_l2": float(relative),
        "image_max_abs": float(np.abs(error).max()),
        "image_psnr_db": float(20 * np.log10(np.ptp(images)) - 10 * np.log10(np.mean(error**2))),
        "alone_against_batch_max_abs": float(np.abs(alone - answer).max()),
        "tolerance_latent_relative_l2": TOLERANCES[setup.precision] if trained else None,
    }
