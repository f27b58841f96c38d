"""Under load: requests of one image at shares of capacity, and requests of 10, 25 and 50 steps at once.

Mixed steps are served by tritonserver and the client, beside request-level batching of the same graphs in one process.
That has it easier: no server, no gRPC and no copies between processes. Both are simulated too.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.device import Device
from benchmarks.harness.engine import Array, Engine
from benchmarks.harness.timing import in_turns, spread
from benchmarks.serving.bench import Bench
from benchmarks.serving.contestants import SEEDS, ours
from benchmarks.serving.simulation import (
    COMPILED,
    GPU_LIKE,
    LOAD,
    SIMULATED_GPU,
    Arrival,
    arrivals,
    capacity,
    compare,
    latencies,
    record,
    request_level,
    simulate,
    step_level,
    summary,
)
from benchmarks.tables.serving import mixed_latencies, steps_a_call
from mri_ldm.noise import standard_normal
from mri_ldm.samplers import advance, sampler_table
from server.process import TritonServer


def mixed(bench: Bench) -> dict[str, Any]:
    """The served load at LOAD, the simulations, and the steps of a call."""
    amount = bench.amount
    records = serve(bench.repository(), 8, amount.mixed_requests, bench.report)
    records += simulate(SIMULATED_GPU, GPU_LIKE, amount.gpu_requests)
    by_steps = compare(COMPILED, min(2000, amount.gpu_requests))
    for line in (*mixed_latencies(records), "", *steps_a_call(by_steps)):
        bench.report(line)
    return {"load": LOAD, "records": records, "steps_a_call": by_steps}


def serve(repository: Path, most: int, count: int, report: Callable[[str], object]) -> list[dict[str, Any]]:
    """The record of this machine, and those of the simulation with its measured device."""
    networks = WholeRequests(repository)
    device = networks.measure()
    workload = arrivals(count, LOAD * capacity(device, most), seed=2)
    report(f"  serving {count} requests twice, {workload[-1].seconds:.0f} s each")
    rival = summary(workload, whole_requests(workload, networks, most))
    with TritonServer(repository) as server:
        server.probe()
        ours = summary(workload, asyncio.run(latencies(workload, server.grpc_url)))
    real = record("tritonserver, this machine", most, rival, ours)
    return [real, *simulate("simulated, as this machine", device, 10 * count)]


class WholeRequests(Engine):
    """The engine of the server, driven as request-level batching does."""

    def run_to_the_longest(self, seeds: Sequence[int], steps: Sequence[int]) -> list[Array]:
        """A batch of whole requests: all its rows go on until the longest is done."""
        x = np.stack([standard_normal(seed, 0) for seed in seeds])
        none = np.zeros_like(x)
        h, final = none, x
        tables = [sampler_table(self.settings.noise_schedule, "ddim", count, 0.0) for count in steps]
        for step in range(max(steps)):
            at = [min(step, count - 1) for count in steps]
            timesteps = np.array([table.timesteps[i] for table, i in zip(tables, at, strict=True)])
            coefficients = np.stack([table.coefficients[i] for table, i in zip(tables, at, strict=True)])
            x, h, _ = advance(coefficients, x, self.unet(x, timesteps), h, none, none)
            done = np.array([step == count - 1 for count in steps])[:, None, None, None]
            final = np.where(done, x, final)
        return [self.decode(latent[None])[0] for latent in final]

    def measure(self) -> Device:
        """Base and slope of a UNet call between 1 and 8 rows, seconds of a decoded image; medians of turns."""
        latents = np.stack([standard_normal(seed, 0) for seed in range(8)])
        timesteps = np.full(8, 500)
        calls: dict[str, Callable[[], object]] = {
            "one": partial(self.unet, latents[:1], timesteps[:1]),
            "eight": partial(self.unet, latents, timesteps),
            "decode": partial(self.decode, latents[:1]),
        }
        for call in calls.values():  # memory is allocated
            call()
        one, eight, decode = (float(np.median(times)) for times in in_turns(calls, 9).values())
        row = min(eight / 8, (eight - one) / 7)  # no device has a negative base
        return Device(eight - 8 * row, row, decode)


def whole_requests(workload: Sequence[Arrival], networks: WholeRequests, most_rows: int) -> list[float]:
    """Latencies in seconds. A free device takes all requests that wait, up to `most_rows`."""
    waiting: queue.Queue[int] = queue.Queue()
    seconds = [0.0] * len(workload)

    def work() -> None:
        left = len(workload)
        while left:
            batch = [waiting.get()]
            while len(batch) < most_rows and not waiting.empty():
                batch.append(waiting.get())
            networks.run_to_the_longest(batch, [workload[i].steps for i in batch])
            for i in batch:
                seconds[i] = time.perf_counter() - begun - workload[i].seconds
            left -= len(batch)

    worker = threading.Thread(target=work)
    begun = time.perf_counter()
    worker.start()
    for i, arrival in enumerate(workload):
        time.sleep(max(0.0, begun + arrival.seconds - time.perf_counter()))
        waiting.put(i)
    worker.join()
    return seconds


def sweep(bench: Bench) -> dict[str, Any]:
    """Poisson arrivals on the real server, and many more of the same on a simulated device as fast as this machine.

    Few real requests say little of a 99th percentile: it is the largest of them. On the simulated device, batching of
    whole requests is measured too.
    """
    amount, server = bench.amount, ours(bench)
    seeds = list(SEEDS[: amount.images])
    server.generate(seeds, amount.steps)
    capacity = amount.images / _median_seconds(lambda: server.generate(seeds, amount.steps))
    alone = _median_seconds(lambda: server.generate(seeds[:1], amount.steps))
    device = WholeRequests(bench.repository()).measure()
    together = [Arrival(0.0, amount.steps)] * amount.simulated_requests
    most = len(together) / max(step_level(together, device))
    device_alone = amount.steps * device.step(1) + device.decode
    bench.report(f"  {capacity:.3g} images a second at once, {alone:.3g} s for one alone")
    points = []
    for load in amount.loads:
        real = asyncio.run(
            latencies(_workload(amount.load_requests, load * capacity, amount.steps), server.server.grpc_url)
        )
        many = _workload(amount.simulated_requests, load * most, amount.steps)
        points.append(
            {
                "load": load,
                "served": _latency(real, alone),
                "simulated": _latency(step_level(many, device), device_alone),
                "whole requests": _latency(request_level(many, device, amount.batch), device_alone),
                "seconds": real,
            }
        )
        bench.report(f"  {load:.0%}: {points[-1]['served']}; simulated {points[-1]['simulated']}")
    return {
        "capacity_images_per_s": capacity,
        "alone_s": alone,
        "device": {"step_base_s": device.base, "step_row_s": device.row, "decode_s": device.decode},
        "rival_rows": amount.batch,
        "points": points,
    }


def _median_seconds(call: Callable[[], object]) -> float:
    times = in_turns({"": call}, 3)[""]
    return float(np.median(times))


def _workload(count: int, rate: float, steps: int) -> list[Arrival]:
    return [replace(arrival, steps=steps) for arrival in arrivals(count, rate, seed=3)]


def _latency(seconds: list[float], alone: float) -> dict[str, Any]:
    """Percentiles, and as multiples of an image on the idle server."""
    p50, p99 = (float(np.quantile(seconds, share)) for share in (0.5, 0.99))
    return {**spread(seconds), "p50": p50, "p99": p99, "p50_over_alone": p50 / alone, "p99_over_alone": p99 / alone}
