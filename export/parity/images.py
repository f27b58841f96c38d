"""Whole images of many seeds, made with the networks of a candidate, and compared with those of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from export.parity.candidates import Candidate
from training.checkpoint import Snapshot
from training.metrics import reconstruction_metrics
from training.sample import centre_crop, ddim_trajectory, start_noise


def generate(
    candidate: Candidate, snapshot: Snapshot, seeds: Sequence[int], steps: int, batch: int, bar: tqdm[Any]
) -> Tensor:
    """Images float32 [n, 1, size, size] of `seeds`, not clipped, by the reference loop of training.sample."""

    def unet(latents: Tensor, timesteps: Tensor) -> Tensor:
        return candidate.denoise(latents, timesteps[:, None].int())

    images = []
    for first in range(0, len(seeds), batch):
        noise = torch.from_numpy(np.stack([start_noise(seed) for seed in seeds[first : first + batch]]))
        for latents, _ in ddim_trajectory(unet, snapshot.config.noise_schedule, noise, steps):
            bar.update(len(latents))
        images.append(centre_crop(candidate.decode(latents), snapshot.config.data.size))
    return torch.cat(images)


def compare_images(images: Tensor, reference: Tensor) -> dict[str, float]:
    """The worst and the mean over images [n, 1, H, W] of PSNR (dB) and SSIM for a data range of 1; and differences."""
    measured = reconstruction_metrics(images, reference)
    difference = images - reference
    return {
        "max_abs": float(difference.abs().max()),
        "relative_l2": float(difference.norm() / reference.norm()),
        **{
            f"{name}_{kind}": float(getattr(values, kind)())
            for name, values in measured.items()
            for kind in ("min", "mean")
        },
    }
