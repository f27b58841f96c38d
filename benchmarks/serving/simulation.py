"""Requests that come at random: on a real server, and on a simulated device by the batcher or in whole batches."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.harness.device import Device
from brats_ldm_client import AsyncClient
from mri_ldm.batcher import Batcher
from mri_ldm.job_queue import Job
from mri_ldm.samplers import IDENTITY, NoiseSchedule, sampler_table
from mri_ldm.stepping import SeveralSteps, SingleSteps, Stepper

STEPS, SHARES = (10, 25, 50), (0.4, 0.3, 0.3)
MEAN_STEPS = sum(steps * share for steps, share in zip(STEPS, SHARES, strict=True))
TABLES = {steps: sampler_table(NoiseSchedule(1000, 0.0015, 0.0195), "ddim", steps, 0.0) for steps in STEPS}
LATENT = np.zeros((1, 1, 64, 64), np.float32)
MOST_ROWS = 64
"""In a call: the server's default."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Arrival:
    """A request for one image, `seconds` after the start."""

    seconds: float
    steps: int


def arrivals(count: int, rate: float, seed: int) -> list[Arrival]:
    """A Poisson process of `rate` requests a second, given that it makes `count` in count / rate seconds.

    So the rate is exact even for few requests. The mix is exact too, but for rounding.
    """
    draw = random.Random(seed)
    seconds = sorted(draw.uniform(0, count / rate) for _ in range(count))
    steps = [STEPS[int(np.searchsorted(np.cumsum(SHARES), (i + 0.5) / count))] for i in range(count)]
    draw.shuffle(steps)
    return [Arrival(*arrival) for arrival in zip(seconds, steps, strict=True)]


def summary(workload: Sequence[Arrival], latencies: Sequence[float]) -> dict[str, float]:
    """Mean, p99 and the mean by number of steps, in seconds."""
    values, steps = np.asarray(latencies), np.array([arrival.steps for arrival in workload])
    by_steps = {f"mean_{count}_steps": float(values[steps == count].mean()) for count in STEPS}
    return {"mean": float(values.mean()), "p99": float(np.quantile(values, 0.99)), **by_steps}


@dataclass(frozen=True)
class Calls:
    """How many steps a call has: at most `most`, and the batcher chooses.

    always: each call asks for `most` steps, and no row leaves before its end. padded: steps that no row needs take
    their time too, as in an unrolled network.
    """

    most: int = 1
    always: bool = False
    padded: bool = False


ONE_STEP = Calls()


class Latency:
    """The listener of a request: when it was answered."""

    def __init__(self, clock: list[float], arrived: float) -> None:
        self.clock, self.arrived, self.seconds = clock, arrived, 0.0

    def late(self) -> bool:
        return False

    def gone(self) -> bool:
        return False

    def preview(self, steps: object, estimates: object) -> None: ...

    def finished(self, latents: object, images: object) -> None:
        self.seconds = self.clock[0] - self.arrived

    def failed(self, error: Exception) -> None:
        raise error

    def cancelled(self, rows: int) -> None: ...


def _stepper(device: Device, calls: Calls, clock: list[float]) -> Stepper:
    """Moves the clock on and computes nothing."""

    def denoise(latents: Array, timesteps: Array) -> Array:
        clock[0] += device.step(len(latents))
        return latents.copy()

    def advance(
        state: Array,
        timesteps: Array,
        coefficients: Array,
        seeds: Array,
        draws: Array,
        every_estimate: bool,
        *conditions: Array,
    ) -> None:
        needed = (coefficients != IDENTITY).any(axis=(0, 2)).sum()
        clock[0] += device.step(state.shape[1], calls.most if calls.padded else int(needed))

    if calls.most == 1:
        return SingleSteps(denoise)
    return SeveralSteps(advance, calls.most, unrolled=calls.most if calls.always else 0)


def step_level(
    workload: Sequence[Arrival], device: Device, most_rows: int = MOST_ROWS, calls: Calls = ONE_STEP
) -> list[float]:
    """Latencies by `Batcher`, with at most `most_rows` rows in a call; seconds."""
    clock = [0.0]

    def decode(latents: Array) -> Array:
        clock[0] += device.decode * len(latents)
        return latents

    most = len(workload)
    batcher = Batcher(
        [_stepper(device, calls, clock)], decode, max_rows_in_flight=most_rows, max_rows_waiting=most,
        max_row_steps=most * max(STEPS), clock=lambda: clock[0],
    )  # fmt: skip
    listeners, coming, busy = [], deque(workload), False
    while coming or busy:
        if not busy:
            clock[0] = max(clock[0], coming[0].seconds)
        while coming and coming[0].seconds <= clock[0]:
            arrival = coming.popleft()
            listeners.append(Latency(clock, arrival.seconds))
            batcher.submit(Job(listeners[-1], [0], [TABLES[arrival.steps]], LATENT.copy()))
        busy = batcher.tick()
    return [listener.seconds for listener in listeners]


def request_level(workload: Sequence[Arrival], device: Device, most_rows: int) -> list[float]:
    """Latencies where a free device takes all that wait, up to `most_rows`, and runs them to the longest; seconds."""
    clock, latencies, coming, waiting = 0.0, [], deque(workload), deque[Arrival]()
    while coming or waiting:
        if not waiting:
            clock = max(clock, coming[0].seconds)
        while coming and coming[0].seconds <= clock:
            waiting.append(coming.popleft())
        batch = [waiting.popleft() for _ in range(min(most_rows, len(waiting)))]
        clock += max(arrival.steps for arrival in batch) * device.step(len(batch)) + device.decode * len(batch)
        latencies += [clock - arrival.seconds for arrival in batch]
    return latencies


def capacity(device: Device, most_rows: int, seed: int = 0) -> float:
    """Requests a second of `request_level` when all have come at once."""
    draw = np.random.default_rng(seed)
    workload = [Arrival(0.0, int(steps)) for steps in draw.choice(STEPS, 4096, p=SHARES)]
    return len(workload) / max(request_level(workload, device, most_rows))


async def latencies(workload: Sequence[Arrival], url: str) -> list[float]:
    """Seconds from each arrival to its image. Requests are sent on time, whatever is still running."""
    async with AsyncClient(url) as client:
        # Connects, and lets the server learn how many rows go together: it tries each number three times.
        await client.generate(16, seed=0, steps=10)
        begun = time.perf_counter()

        async def one(seed: int, arrival: Arrival) -> float:
            await asyncio.sleep(begun + arrival.seconds - time.perf_counter())
            await client.generate(1, seed=seed, steps=arrival.steps)
            return time.perf_counter() - begun - arrival.seconds

        return list(await asyncio.gather(*(one(i, arrival) for i, arrival in enumerate(workload))))


# --- what is compared

LOAD = 0.75
"""Of what the rival can do."""
RIVAL_ROWS = (1, 8, 32)
SIMULATED_GPU = "simulated, as a GPU"
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


def simulate(name: str, device: Device, count: int) -> list[dict[str, Any]]:
    """A record for each batch size of the rival."""
    records = []
    for most in RIVAL_ROWS:
        workload = arrivals(count, LOAD * capacity(device, most), seed=1)
        rival = summary(workload, request_level(workload, device, most))
        records.append(record(name, most, rival, summary(workload, step_level(workload, device))))
    return records


def record(where: str, most: int, rival: dict[str, float], ours: dict[str, float]) -> dict[str, Any]:
    """Of one device: the rival's batching beside ours."""
    ratios = {f"{name}_ratio": ours[name] / rival[name] for name in ("mean", "p99")}
    return {"where": where, "rival_rows": most, "load": LOAD, "request_level": rival, "step_level": ours, **ratios}


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
    return {"device": asdict(device), "images_per_s": most, "latencies": points}
