"""Under load: requests of one image that come at random, at shares of what the server can do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.harness.timing import in_turns, spread
from benchmarks.serving.bench import Bench
from benchmarks.serving.contestants import SEEDS, ours
from benchmarks.serving.mixed import WholeRequests
from benchmarks.serving.simulation import Arrival, arrivals, latencies, request_level, step_level


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
