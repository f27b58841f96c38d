"""Under load: requests of one image that come at random, at shares of what the server can do; and mixed steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.mixed_load.served import WholeRequests, latencies
from benchmarks.mixed_load.simulated import Device, request_level, step_level
from benchmarks.mixed_load.workload import Arrival, arrivals
from benchmarks.serving.contestants import SEEDS, ours
from benchmarks.serving.setup import Bench
from benchmarks.timing import in_turns, spread

MOST_ROWS = 64
"""In flight: the server's default."""


def sweep(bench: Bench) -> dict[str, Any]:
    """Poisson arrivals on the real server, and many more of the same on a simulated device as fast as this machine.

    What a few real requests say of a 99th percentile is little: it is the largest of them. Beside the simulated batcher
    stand whole requests in batches on the same device.
    """
    amount, server = bench.amount, ours(bench)
    seeds = list(SEEDS[: amount.images])
    server.generate(seeds, amount.steps)
    capacity = amount.images / _median_seconds(lambda: server.generate(seeds, amount.steps))
    alone = _median_seconds(lambda: server.generate(seeds[:1], amount.steps))
    device = _device(bench)
    together = [Arrival(0.0, amount.steps)] * amount.simulated_requests
    most = len(together) / max(step_level(together, device, MOST_ROWS))
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
                "simulated": _latency(step_level(many, device, MOST_ROWS), device_alone),
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


def mixed(bench: Bench) -> dict[str, Any]:
    """10, 25 and 50 steps at 75 % of what batching whole requests can do (benchmarks.mixed_load)."""
    from benchmarks.mixed_load.__main__ import serve, table

    records = serve(bench.repository(), 8, 0.75, bench.amount.mixed_requests)
    bench.report(table(records))
    return {"load": 0.75, "records": records}


def _median_seconds(call: Callable[[], object]) -> float:
    times = in_turns({"": call}, 3)[""]
    return float(np.median(times))


def _workload(count: int, rate: float, steps: int) -> list[Arrival]:
    return [replace(arrival, steps=steps) for arrival in arrivals(count, rate, seed=3)]


def _latency(seconds: list[float], alone: float) -> dict[str, Any]:
    """Percentiles, and as multiples of an image on the idle server."""
    p50, p99 = (float(np.quantile(seconds, share)) for share in (0.5, 0.99))
    return {**spread(seconds), "p50": p50, "p99": p99, "p50_over_alone": p50 / alone, "p99_over_alone": p99 / alone}


def _device(bench: Bench) -> Device:
    return WholeRequests(bench.repository()).measure()
