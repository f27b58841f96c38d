"""A script in the manner of diffusers: its DDIMScheduler around the PyTorch networks, with fused attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.serving.worker import Array, Generate
from benchmarks.weights import load_weights, networks
from training.sample import decode, start_noise


def diffusers_loop(weights: str, snapshot: Path, batch: int) -> Generate:
    """DDIM in batches of at most `batch`."""
    from diffusers import DDIMScheduler

    loaded = load_weights(weights, snapshot)
    unet, autoencoder = networks(loaded, torch.device("cpu"), fused=True)
    schedule = loaded.config.noise_schedule
    scheduler = DDIMScheduler(
        num_train_timesteps=schedule.num_train_timesteps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="leading",
    )

    @torch.no_grad()
    def generate(seeds: Sequence[int], steps: int) -> Array:
        images = []
        scheduler.set_timesteps(steps)
        for first in range(0, len(seeds), batch):
            latents = torch.from_numpy(np.stack([start_noise(seed) for seed in seeds[first : first + batch]]))
            for timestep in scheduler.timesteps:
                noise = unet(latents, timestep.expand(len(latents)))
                latents = scheduler.step(noise, timestep, latents).prev_sample
            images.append(decode(autoencoder, latents, loaded.scale_factor).numpy()[:, 0])
        return np.concatenate(images)

    return generate
