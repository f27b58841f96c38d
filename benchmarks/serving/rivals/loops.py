"""Loops in PyTorch, without a server: the bundle's own inference, and a script in the manner of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.harness.weights import load_weights, networks
from benchmarks.serving.worker import Array, Generate
from training.sample import decode, sample_latents, start_noise

Denoise = Callable[[torch.Tensor, int], torch.Tensor]


def monai_loop(
    weights: str, snapshot: Path, precision: Literal["fp32", "bf16"], batch: int, compiled: bool = False
) -> Generate:
    """MONAI's networks and DDIM, eager, without fused attention, in batches of at most `batch`; bf16 is autocast.

    `compiled`: both networks by Inductor. Then images raise RuntimeError where it has compiled less than both.
    """
    loaded = load_weights(weights, snapshot)
    unet, autoencoder = networks(loaded, torch.device("cpu"))
    if compiled:
        unet, autoencoder.decode = torch.compile(unet), torch.compile(autoencoder.decode)

    def denoise(noise: torch.Tensor, steps: int) -> torch.Tensor:
        return sample_latents(unet, loaded.config.noise_schedule, noise, steps)

    def generate(seeds: Sequence[int], steps: int) -> Array:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            images = _in_batches(seeds, batch, steps, denoise, autoencoder, loaded.scale_factor)
        if compiled:
            check_compiled()
        return images

    return generate


def diffusers_loop(weights: str, snapshot: Path, batch: int) -> Generate:
    """diffusers' DDIMScheduler around the PyTorch networks, with fused attention."""
    from diffusers import DDIMScheduler

    loaded = load_weights(weights, snapshot)
    unet, autoencoder = networks(loaded, torch.device("cpu"), fused=True)
    schedule = loaded.config.noise_schedule
    scheduler: Any = DDIMScheduler(
        num_train_timesteps=schedule.num_train_timesteps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="leading",
    )

    def denoise(latents: torch.Tensor, steps: int) -> torch.Tensor:
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            noise = unet(latents, timestep.expand(len(latents)))
            latents = scheduler.step(noise, timestep, latents).prev_sample
        return latents

    def generate(seeds: Sequence[int], steps: int) -> Array:
        return _in_batches(seeds, batch, steps, denoise, autoencoder, loaded.scale_factor)

    return generate


def _in_batches(
    seeds: Sequence[int], batch: int, steps: int, denoise: Denoise, autoencoder: Any, scale_factor: float | None
) -> Array:
    assert scale_factor is not None
    images = []
    with torch.no_grad():
        for first in range(0, len(seeds), batch):
            noise = torch.from_numpy(np.stack([start_noise(seed) for seed in seeds[first : first + batch]]))
            images.append(decode(autoencoder, denoise(noise, steps), scale_factor).float().numpy()[:, 0])
    return np.concatenate(images)


def check_compiled() -> None:
    """Raises RuntimeError where torch.compile has left a network as it was."""
    from torch._dynamo.utils import counters  # takes two seconds, and only some need it

    graphs = counters["stats"]["unique_graphs"]
    if graphs < 2:
        raise RuntimeError(f"torch.compile has compiled {graphs} graphs, not both networks")
