"""The same load in real time: tritonserver and the client, beside request-level batching in one process.

The rival has it easier: the same ONNX graphs and threads, but no server, no gRPC and no copies between processes.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.in_process import Array, Engine
from benchmarks.mixed_load.simulated import Device
from benchmarks.mixed_load.workload import Arrival
from benchmarks.timing import in_turns
from brats_ldm_client import AsyncClient
from mri_ldm.noise import standard_normal
from mri_ldm.samplers import advance, sampler_table
from server.process import TritonServer


class WholeRequests(Engine):
    """The engine of the server, driven as request-level batching does."""

    def run_to_the_longest(self, seeds: Sequence[int], steps: Sequence[int]) -> list[Array]:
        """A batch of whole requests: all its rows go on until the longest is done."""
        x = np.stack([standard_normal(seed, 0) for seed in seeds])
        h, final = np.zeros_like(x), x
        tables = [sampler_table(self.settings.noise_schedule, "ddim", own, 0.0) for own in steps]
        for step in range(max(steps)):
            at = [min(step, own - 1) for own in steps]
            timesteps = np.array([table.timesteps[i] for table, i in zip(tables, at, strict=True)])
            coefficients = np.stack([table.coefficients[i] for table, i in zip(tables, at, strict=True)])
            x, h = advance(coefficients, x, self.unet(x, timesteps), h, np.zeros_like(x))
            done = np.array([step == own - 1 for own in steps])[:, None, None, None]
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


def request_level(workload: Sequence[Arrival], networks: WholeRequests, most_rows: int) -> list[float]:
    """Latencies in seconds; the device takes all that wait, up to `most_rows`, when it is free."""
    waiting: queue.Queue[int] = queue.Queue()
    latencies = [0.0] * len(workload)

    def work() -> None:
        left = len(workload)
        while left:
            batch = [waiting.get()]
            while len(batch) < most_rows and not waiting.empty():
                batch.append(waiting.get())
            networks.run_to_the_longest(batch, [workload[i].steps for i in batch])
            for i in batch:
                latencies[i] = time.perf_counter() - begun - workload[i].seconds
            left -= len(batch)

    worker = threading.Thread(target=work)
    begun = time.perf_counter()
    worker.start()
    for i, arrival in enumerate(workload):
        time.sleep(max(0.0, begun + arrival.seconds - time.perf_counter()))
        waiting.put(i)
    worker.join()
    return latencies


def step_level(workload: Sequence[Arrival], repository: Path) -> list[float]:
    """Latencies in seconds, from the client's call to the array."""
    with TritonServer(repository) as server:
        server.probe()
        return asyncio.run(latencies(workload, server.grpc_url))


async def latencies(workload: Sequence[Arrival], url: str) -> list[float]:
    """Seconds from each arrival to its image, asked for on time whatever is still under way."""
    async with AsyncClient(url) as client:
        # Connects, and lets the server learn how many rows go together: it tries each number three times.
        await client.generate(16, seed=0, steps=10)
        begun = time.perf_counter()

        async def one(seed: int, arrival: Arrival) -> float:
            await asyncio.sleep(begun + arrival.seconds - time.perf_counter())
            await client.generate(1, seed=seed, steps=arrival.steps)
            return time.perf_counter() - begun - arrival.seconds

        return list(await asyncio.gather(*(one(i, arrival) for i, arrival in enumerate(workload))))
