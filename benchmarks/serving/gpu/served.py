"""Figures through a tritonserver: whole images, throughput, a step beside its network, parity, the networks.

All requests go over gRPC to a server on this machine.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.timing import spread
from benchmarks.harness.wire import ask, image_feeds, settled
from benchmarks.serving.gpu.repositories import FRONT, front
from benchmarks.serving.gpu.setup import Array, Setup, random_feeds
from benchmarks.serving.simulation import MEAN_STEPS, STEPS, arrivals, latencies
from brats_ldm_client import Client
from export.graphs import GRAPHS, Graph
from server.channel import connect
from server.process import TritonServer
from training.sample import generate

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

    from training.checkpoint import Snapshot

STARTUP_S = 240.0
LOAD = 0.6  # of capacity, where arrivals are a Poisson process
# Relative L2 of final latents after all steps against fp32 on the same seeds; the errors of 50 steps add up.
TOLERANCES = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1}


def served(
    setup: Setup, snapshot: Snapshot, export: Callable[[], Path], profile: str | None, trained: bool
) -> Iterator[tuple[str, Any]]:
    """All figures of one server, the most wanted first. `export` makes its repository of `snapshot`.

    Raises:
        ValueError: with trained weights, latents differ by more than the tolerance; after all other figures.
    """
    setup.check_time()
    began = time.monotonic()
    repository = export()
    yield "export_s", time.monotonic() - began
    began = time.monotonic()
    with (
        TritonServer(repository, profile, startup_timeout_s=STARTUP_S) as server,
        connect(server.grpc_url) as client,
    ):
        server.probe(STARTUP_S)
        yield "start_s", time.monotonic() - began
        measured = Served(setup, server, client)
        yield "image_ms", measured.image_ms()
        throughput = measured.throughput()
        yield "throughput", throughput
        yield "computes", measured.computes()
        yield "steps_a_call", measured.steps_a_call()
        yield "poisson", measured.poisson(throughput["images_per_s"])
        errors = parity(setup, snapshot, measured.images, trained)
        yield "parity", errors
        yield "network_ms", {graph.name: measured.network_ms(graph) for graph in GRAPHS}
    if trained and not errors["latent_relative_l2"] <= errors["tolerance_latent_relative_l2"]:
        raise ValueError(f"served latents differ from fp32 by more than they may: {errors}")


class Served:
    """A running server, and what is measured of it."""

    def __init__(self, setup: Setup, server: TritonServer, client: InferenceServerClient) -> None:
        self.setup, self.server, self.client = setup, server, client

    def images(self, seeds: Sequence[int], output: str = "image", model: str = FRONT) -> Array:
        """One request with a row for each seed."""
        return ask(self.client, model, output, image_feeds(seeds, self.setup.steps), STARTUP_S)

    def computes(self) -> list[str]:
        """What the backends have logged of each network: precision, device, and which batches have a CUDA graph.

        Raises:
            RuntimeError: a network is not on the device that is measured.
        """
        names = (" model 'unet'", " model 'vae_decoder'")
        lines = [line for line in self.server.log_tail(1000) if any(name in line for name in names)]
        messages = [line.partition("] ")[2].strip('"') for line in lines]
        if self.setup.device.type == "cuda" and not all("cuda" in line or "TensorRT" in line for line in messages):
            raise RuntimeError(f"these are not figures of a GPU: {messages}")
        return messages

    def network_ms(self, graph: Graph) -> dict[int, float]:
        """Milliseconds of a request by its rows."""

        def call(rows: int) -> Callable[[], Array]:
            return partial(ask, self.client, graph.name, graph.output.name, random_feeds(graph, rows), STARTUP_S)

        return {rows: self.setup.median_ms(call(rows)) for rows in self.setup.rows(graph)}

    def image_ms(self, model: str = FRONT, requests: int = 0) -> dict[str, float]:
        """One image at a time."""
        times = spread(self.setup.times_ms(lambda: self.images([7], model=model), requests or self.setup.requests))
        return {"p50": times["median"], "p90": times["p90"], "requests": times["n"]}

    def throughput(self) -> dict[str, float]:
        """Images a second with requests of eight rows, 64 rows at once or all."""
        self.setup.check_time()
        with Client(self.server.grpc_url, rows_per_request=8, concurrency=8) as client:
            client.generate(min(64, self.setup.images), seed=0, steps=self.setup.steps)  # warm
            began = time.perf_counter()
            rows = len(client.generate(self.setup.images, seed=0, steps=self.setup.steps).images)
            return {"images_per_s": rows / (time.perf_counter() - began), "images": rows}

    def steps_a_call(self) -> dict[str, Any]:
        """By the steps of a call ("own": the batcher chooses): one image, and a step by rows."""
        models = {str(steps): front(steps) for steps in self.setup.steps_a_call} | {"own": FRONT}
        return {
            name: {
                "image_ms": self.image_ms(model, max(2, self.setup.requests // 3)),
                "step": {rows: self.step_ms(rows, model) for rows in self.setup.batches},
            }
            for name, model in models.items()
            if (self.server.repository / model).is_dir()
        }

    def step_ms(self, rows: int, model: str) -> dict[str, float]:
        """A step of a request of `rows` rows, and the network's share of it. Nothing is decoded.

        network_ms is from Triton's own statistics. The rest, overhead_ms, is the call from model to model, the
        recurrence and the bookkeeping; outside is its share. steps_a_call: of a row, on average.
        """
        self.setup.check_time()
        seeds = list(range(rows))
        self.images(seeds, "final_latent", model)
        networks = [name for name in ("unet", "unet_steps") if (self.server.repository / name).is_dir()]
        before, began = settled(self.client, networks), time.perf_counter()
        for _ in range(self.setup.repeats):
            self.images(seeds, "final_latent", model)
        seconds = time.perf_counter() - began
        after, steps = settled(self.client, networks), self.setup.steps * self.setup.repeats
        counted = [after[name].since(before[name]) for name in networks]
        step, network = 1000 * seconds / steps, sum(counts.ns for counts in counted) / steps / 1e6
        return {
            "rows": rows,
            "step_ms": step,
            "network_ms": network,
            "overhead_ms": step - network,
            "outside": 1 - network / step,
            "calls": sum(counts.calls for counts in counted),
            "steps_a_call": rows * steps / sum(counts.rows for counts in counted),
        }

    def poisson(self, images_per_s: float) -> dict[str, float]:
        """Seconds from arrival to image: single images of mixed steps, at LOAD of a capacity of `images_per_s`."""
        self.setup.check_time()
        rate, most = LOAD * images_per_s * max(STEPS) / MEAN_STEPS, self.setup.steps / max(STEPS)
        workload = arrivals(self.setup.images, rate, seed=4)
        fitted = [replace(arrival, steps=math.ceil(arrival.steps * most)) for arrival in workload]
        seconds = asyncio.run(latencies(fitted, self.server.grpc_url))
        p50, p99 = (float(np.quantile(seconds, share)) for share in (0.5, 0.99))
        mean = float(np.mean(seconds))
        return {"rate": rate, "load": LOAD, "requests": len(seconds), "mean": mean, "p50": p50, "p99": p99}


def parity(setup: Setup, snapshot: Snapshot, served: Callable[..., Array], trained: bool) -> dict[str, Any]:
    """Images of `served` against PyTorch in float32 on the same seeds, on this machine.

    Random weights do not denoise, so they amplify rounding. They have no tolerance.
    """
    setup.check_time()
    seeds = list(range(100, 100 + min(8, setup.images)))
    images, latents = generate(snapshot, seeds, setup.steps, batch=len(seeds))
    answer = served(seeds)[:, 0]
    error = answer - images
    relative = np.linalg.norm(served(seeds, "final_latent") - latents) / np.linalg.norm(latents)
    alone = np.concatenate([served([seed]) for seed in seeds])[:, 0]
    return {
        "seeds": len(seeds),
        "latent_relative_l2": float(relative),
        "image_max_abs": float(np.abs(error).max()),
        "image_psnr_db": float(20 * np.log10(np.ptp(images)) - 10 * np.log10(np.mean(error**2))),
        "alone_against_batch_max_abs": float(np.abs(alone - answer).max()),
        "tolerance_latent_relative_l2": TOLERANCES[setup.precision] if trained else None,
    }
