"""The pure batcher on a simulated device, beside two ways to batch whole requests on the same device."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mri_ldm.batcher import Batcher
from mri_ldm.line import Job
from mri_ldm.samplers import NoiseSchedule, sampler_table

from benchmarks.mixed_load.workload import STEPS, Arrival

TABLES = {steps: sampler_table(NoiseSchedule(1000, 0.0015, 0.0195), "ddim", steps, 0.0) for steps in STEPS}
LATENT = np.zeros((1, 1, 1, 1), np.float32)


@dataclass(frozen=True)
class Device:
    """A step of n rows takes base + row * n seconds, decoding an image `decode`."""

    base: float
    row: float
    decode: float

    def step(self, rows: int) -> float:
        """Seconds of a UNet call."""
        return self.base + self.row * rows


class Latency:
    """The listener of a request: when it was answered."""

    def __init__(self, clock: list[float], arrived: float) -> None:
        self.clock, self.arrived, self.seconds = clock, arrived, 0.0

    def wants_out(self) -> bool:
        return False

    def preview(self, steps: object, estimates: object) -> None: ...

    def finished(self, latents: object, images: object) -> None:
        self.seconds = self.clock[0] - self.arrived

    def failed(self, error: Exception) -> None:
        raise error

    def cancelled(self, rows: int) -> None: ...


def step_level(workload: Sequence[Arrival], device: Device, most_rows: int) -> list[float]:
    """Latencies by `Batcher`, with at most `most_rows` rows in a step; seconds."""
    clock = [0.0]

    def denoise(latents: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        clock[0] += device.step(len(latents))
        return latents

    def decode(latents: np.ndarray) -> np.ndarray:
        clock[0] += device.decode * len(latents)
        return latents

    most = len(workload)
    batcher = Batcher(
        denoise, decode, max_rows_in_flight=most_rows, max_rows_waiting=most, max_row_steps=most * max(STEPS),
        clock=lambda: clock[0],
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
    workload = [Arrival(0.0, int(steps)) for steps in draw.choice(STEPS, 4096, p=(0.4, 0.3, 0.3))]
    return len(workload) / max(request_level(workload, device, most_rows))
