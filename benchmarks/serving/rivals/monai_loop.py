"""The bundle's own inference: MONAI's networks and scheduler, eager PyTorch, without fused attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.serving.worker import Array, Generate
from benchmarks.weights import load_weights, networks
from training.sample import decode, sample_latents, start_noise


def monai_loop(
    weights: str, snapshot: Path, precision: Literal["fp32", "bf16"], batch: int, compiled: bool = False
) -> Generate:
    """DDIM in batches of at most `batch`; bf16 is autocast. `compiled`: both networks by Inductor.

    What it returns raises RuntimeError where Inductor has compiled less than both.
    """
    loaded = load_weights(weights, snapshot)
    unet, autoencoder = networks(loaded, torch.device("cpu"))
    if compiled:
        unet = torch.compile(unet)  # type: ignore[assignment]
        autoencoder.decode = torch.compile(autoencoder.decode)  # type: ignore[operator]

    def generate(seeds: Sequence[int], steps: int) -> Array:
        images = []
        for first in range(0, len(seeds), batch):
            noise = torch.from_numpy(np.stack([start_noise(seed) for seed in seeds[first : first + batch]]))
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                latents = sample_latents(unet, loaded.config.noise_schedule, noise, steps)
                images.append(decode(autoencoder, latents, loaded.scale_factor).float().numpy()[:, 0])
        if compiled:
            check_compiled()
        return np.concatenate(images)

    return generate


def check_compiled() -> None:
    """Raises RuntimeError where torch.compile has left a network as it was."""
    from torch._dynamo.utils import counters  # two seconds, which who compiles nothing need not wait

    graphs = counters["stats"]["unique_graphs"]
    if graphs < 2:
        raise RuntimeError(f"torch.compile has compiled {graphs} graphs, not both networks")
