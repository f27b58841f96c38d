"""A fake network, a listener that remembers, and what a row must become: for tests of the batcher."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from mri_ldm.batcher import Batcher
from mri_ldm.job_queue import Job
from mri_ldm.noise import standard_normal
from mri_ldm.samplers import NoiseSchedule, advance, sampler_table
from mri_ldm.stepping import Denoise, SeveralSteps, SingleSteps, Stepper

SCHEDULE = NoiseSchedule(1000, 0.0015, 0.0195)


def fake_denoise(latents: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    """Row by row a function of that row's latent and timestep: mixing rows up cannot go unseen."""
    return np.tanh(0.8 * latents + timesteps.astype(np.float32)[:, None, None, None] / 700)


def taking(seconds: float, now: list[float]) -> Denoise:
    """`fake_denoise` of a device on which a call takes so long whatever its rows, by the clock `now`."""

    def denoise(latents: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        now[0] += seconds
        return fake_denoise(latents, timesteps)

    return denoise


def fake_steps(state, timesteps, coefficients, seeds, draws, every_estimate):
    """What `unet_steps` computes, with `fake_denoise` as its network."""
    every = []
    x, h, g = state if len(state) > 2 else (*state, np.zeros_like(state[0]))
    for k in range(timesteps.shape[1]):
        a, b, c, d, e, p, q, r = (column.reshape(-1, 1, 1, 1) for column in coefficients[:, k].T)
        eps = fake_denoise(x, timesteps[:, k])
        z = np.stack([standard_normal(int(seed), int(draw) + k) for seed, draw in zip(seeds, draws, strict=True)])
        x, h, g = a * x + b * eps + c * h + e * g + d * z, p * x + q * eps + r * h, (1 - r) * h + r * g
        every.append(h)
    state[...] = (x, h, g)[: len(state)]
    return np.stack(every, axis=1) if every_estimate else None


def several(most: int, unrolled: int = 0) -> list[Stepper]:
    """Several steps a call; unrolled, the network draws no noise, so that rows that need some go step by step."""
    return [SeveralSteps(fake_steps, most, unrolled=unrolled), SingleSteps(fake_denoise)]


def fake_decode(latents: np.ndarray) -> np.ndarray:
    return latents.repeat(2, axis=2).repeat(2, axis=3)


@dataclass
class Recorder:
    """A listener that remembers; `leave_at` is the tick at which the client goes away."""

    clock: list[int]
    leave_at: int | None = None
    events: Counter = field(default_factory=Counter)
    latents: np.ndarray | None = None
    images: np.ndarray | None = None
    error: Exception | None = None
    previews: list = field(default_factory=list)

    def late(self) -> bool:
        return False

    def gone(self) -> bool:
        return self.leave_at is not None and self.clock[0] >= self.leave_at

    def preview(self, steps, estimates) -> None:
        self.previews.append((steps, estimates))

    def finished(self, latents, images) -> None:
        self.events["finished"] += 1
        self.latents, self.images = latents.copy(), images

    def failed(self, error) -> None:
        self.events["failed"] += 1
        self.error = error

    def cancelled(self, rows: int) -> None:
        self.events["cancelled"] += 1
        self.cancelled_rows = rows


Spec = tuple[int, str, int, float] | tuple[int, str, int, float, str]  # seed, sampler, steps, eta, grid


def make_job(listener: Recorder, specs: list[Spec], **options) -> Job:
    tables = [sampler_table(SCHEDULE, *how) for _, *how in specs]
    latents = np.stack([standard_normal(seed, 0) for seed, *_ in specs])
    return Job(listener, [seed for seed, *_ in specs], tables, latents, **options)


def alone(spec: Spec, linear: bool = False) -> np.ndarray:
    """The final latent of one row by the recurrence written down plainly, or as `unet_steps` writes it."""
    return path(spec, linear)[-1][0]


def path(spec: Spec, linear: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """Latent and estimate after every step."""
    seed, *how = spec
    table = sampler_table(SCHEDULE, *how)
    state = np.zeros((3, 1, 1, 64, 64), np.float32)
    state[0] = standard_normal(seed, 0)
    states = []
    for i in range(table.steps):
        t, seeds, draws = table.timesteps[i : i + 1], np.array([seed]), np.array([i + 1])
        if linear:
            fake_steps(state, t[None], table.linear[None, i : i + 1], seeds, draws, every_estimate=False)
        else:
            x, h, g = state
            z = standard_normal(seed, i + 1)[None]
            state = np.stack(advance(table.coefficients[i : i + 1], x, fake_denoise(x, t), h, g, z))
        states.append((state[0, 0].copy(), state[1, 0].copy()))
    return states


def drain(batcher: Batcher, clock: list[int], limit: int = 10_000) -> None:
    while batcher.tick():
        clock[0] += 1
        assert clock[0] < limit, "the batcher does not come to an end"
