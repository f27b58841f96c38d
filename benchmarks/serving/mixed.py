"""Requests of 10, 25 and 50 steps at once: step-level batching against batching of whole requests.

Served: tritonserver and the client, beside request-level batching of the same graphs in one process. The rival has it
easier: no server, no gRPC and no copies between processes. Simulated: the batcher itself on a device whose step takes
base + row * n seconds, as this machine and as a GPU; there also with several steps in a call of the network.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.engine import Array, Engine
from benchmarks.harness.timing import in_turns
from benchmarks.serving.bench import Bench
from benchmarks.serving.simulation import (
    ONE_STEP,
    SHARES,
    STEPS,
    Arrival,
    Calls,
    Device,
    arrivals,
    capacity,
    latencies,
    request_level,
    step_level,
    summary,
)
from benchmarks.tables import mixed as tables
from mri_ldm.noise import standard_normal
from mri_ldm.samplers import advance, sampler_table
from server.process import TritonServer

LOAD = 0.75
"""Of what the rival can do."""
RIVAL_ROWS = (1, 8, 32)
GPU_LIKE = Device(base=0.004, row=0.0003, decode=0.002)
COMPILED = Device(base=0.0011, row=0.00003, decode=0.002, call=0.0007)
"""An estimate of the bundle's network, compiled, on an H100. Nothing here was measured on a GPU."""
LOADS = (0.05, 0.3, 0.6, 0.8)
"""Of what calls of one step can do."""
OWN = "own choice"
WAYS = {
    "1 step": ONE_STEP,
    **{f"{count} steps": Calls(count, always=True) for count in (5, 10, 25)},
    OWN: Calls(50),
    **{f"unrolled, {count}": Calls(count, always=True, padded=True) for count in (5, 10, 25)},
}


def mixed(bench: Bench) -> dict[str, Any]:
    """The served load at LOAD, the simulations, and the steps of a call."""
    amount = bench.amount
    records = serve(bench.repository(), 8, amount.mixed_requests, bench.report)
    records += simulate(tables.SIMULATED_GPU, GPU_LIKE, amount.gpu_requests)
    steps_a_call = compare(COMPILED, min(2000, amount.gpu_requests))
    for line in (*tables.latencies(records), "", *tables.by_steps(steps_a_call)):
        bench.report(line)
    return {"load": LOAD, "records": records, "steps_a_call": steps_a_call}


def simulate(name: str, device: Device, count: int) -> list[dict[str, Any]]:
    """A record for each batch size of the rival."""
    records = []
    for most in RIVAL_ROWS:
        workload = arrivals(count, LOAD * capacity(device, most), seed=1)
        rival = summary(workload, request_level(workload, device, most))
        records.append(_record(name, device, most, rival, summary(workload, step_level(workload, device))))
    return records


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
    record = _record("tritonserver, this machine", device, most, rival, ours)
    return [record, *simulate("simulated, as this machine", device, 10 * count)]


def _record(where: str, device: Device, most: int, rival: dict[str, float], ours: dict[str, float]) -> dict[str, Any]:
    ratios = {f"{name}_ratio": ours[name] / rival[name] for name in ("mean", "p99")}
    shape = [device.base, device.row, device.decode]
    made = {"where": where, "device": shape, "rival_rows": most, "load": LOAD}
    return {**made, "request_level": rival, "step_level": ours, **ratios}


def compare(device: Device, count: int) -> dict[str, Any]:
    """Images a second of each number of steps a call, and latencies at each load; all have the same requests."""
    draw = np.random.default_rng(0)
    together = [Arrival(0.0, int(steps)) for steps in draw.choice(STEPS, count, p=SHARES)]
    most = {name: count / max(step_level(together, device, calls=calls)) for name, calls in WAYS.items()}
    points = []
    for load in LOADS:
        workload = arrivals(count, load * most["1 step"], seed=1)
        ways = {name: summary(workload, step_level(workload, device, calls=calls)) for name, calls in WAYS.items()}
        points.append({"load": load, "ways": ways})
    shape = {"call": device.call, "base": device.base, "row": device.row, "decode": device.decode}
    return {"device": shape, "images_per_s": most, "latencies": points}


class WholeRequests(Engine):
    """The engine of the server, driven as request-level batching does."""

    def run_to_the_longest(self, seeds: Sequence[int], steps: Sequence[int]) -> list[Array]:
        """A batch of whole requests: all its rows go on until the longest is done."""
        x = np.stack([standard_normal(seed, 0) for seed in seeds])
        h, final = np.zeros_like(x), x
        tables = [sampler_table(self.settings.noise_schedule, "ddim", count, 0.0) for count in steps]
        for step in range(max(steps)):
            at = [min(step, count - 1) for count in steps]
            timesteps = np.array([table.timesteps[i] for table, i in zip(tables, at, strict=True)])
            coefficients = np.stack([table.coefficients[i] for table, i in zip(tables, at, strict=True)])
            x, h = advance(coefficients, x, self.unet(x, timesteps), h, np.zeros_like(x))
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
