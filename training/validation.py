"""Validation of both stages between epochs, always on the same slices and the same noise."""

from collections.abc import Sequence
from pathlib import Path

import torch
from monai.networks.nets import AutoencoderKL
from monai.transforms import Compose
from torch import Tensor

from training.conditioning import Denoiser
from training.config import Config, NoiseSchedule, Stage
from training.data import diffusion_transforms, fixed_slices, label_transforms, open_volumes, padded
from training.decathlon import DataError
from training.losses import noise_error
from training.metrics import reconstruction_metrics
from training.reconstruct import reconstruct
from training.sample import ddim_trajectory

SLICES = 4
ROWS = 8
BANDS = 4


def validation_slices(root: Path, config: Config, settings: Stage) -> Tensor:
    """Four slices [n, 1, 256, 256] in [0, 1] of each of the first `validation_volumes` held-out volumes.

    Raises:
        DataError: nothing is held out, or a file cannot be used.
    """
    volumes = open_volumes(root, "validation", diffusion_transforms(config.data), config.data, cache=False)
    if not len(volumes):
        raise DataError(f"{root}: too few volumes to hold a fifth of them out; five are needed, or validate_every 0")
    return fixed_slices(volumes, settings.validation_volumes, SLICES)


def validation_labels(root: Path, config: Config, settings: Stage) -> Tensor:
    """The label maps uint8 [n, 256, 256] of `validation_slices`."""
    transform = Compose([*label_transforms(config.data), padded("label")])
    volumes = open_volumes(root, "validation", transform, config.data, cache=False)
    return fixed_slices(volumes, settings.validation_volumes, SLICES, key="label")[:, 0].to(torch.uint8)


def maps_to_show(maps: Tensor, count: int) -> Tensor:
    """The `count` label maps, of [n, 256, 256], with the largest lesions."""
    return maps[(maps > 0).flatten(1).sum(1).argsort(descending=True, stable=True)[:count]]


@torch.no_grad()
def encode_mean(autoencoder: AutoencoderKL, slices: Tensor) -> Tensor:
    """Posterior means [n, 1, 64, 64], unscaled, of slices [n, 1, 256, 256]; on the CPU."""
    device = next(autoencoder.parameters()).device
    return torch.cat([autoencoder.encode(images.to(device))[0].cpu() for images in slices.split(ROWS)])


@torch.no_grad()
def validate_autoencoder(autoencoder: AutoencoderKL, slices: Tensor) -> dict[str, float]:
    """Mean L1, PSNR in dB and SSIM of the reconstructions, without sampling, of slices [n, 1, H, W] in [0, 1]."""
    rows: dict[str, list[Tensor]] = {}
    device = next(autoencoder.parameters()).device
    for images in slices.split(ROWS):
        images = images.to(device)
        reconstruction = reconstruct(autoencoder, images)
        measured = reconstruction_metrics(reconstruction, images)
        for name, values in {"l1": (reconstruction - images).abs().flatten(1).mean(1), **measured}.items():
            rows.setdefault(name, []).append(values.flatten().cpu())
    return {name: torch.cat(values).mean().item() for name, values in rows.items()}


@torch.no_grad()
def validate_diffusion(
    unet: Denoiser, latents: Tensor, alpha_bars: Tensor, seed: int, condition: Tensor | None = None
) -> dict[str, float]:
    """Noise-prediction error of scaled latents [n, 1, 64, 64] in each quarter of the timesteps, and their mean.

    condition: [n, CHANNELS, 64, 64], for a UNet that takes one.
    The errors of the quarters differ in size, so a single mean over random timesteps would say little about them.
    """
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    width = len(alpha_bars) // BANDS
    spread = ((torch.arange(len(latents)) + 0.5) / len(latents) * width).long()
    device = alpha_bars.device
    losses = {}
    parts: Sequence[Tensor | None] = [None] * len(latents.split(ROWS)) if condition is None else condition.split(ROWS)
    for start in range(0, BANDS * width, width):
        rows = zip(latents.split(ROWS), (start + spread).split(ROWS), noise.split(ROWS), parts, strict=True)
        errors = [noise_error(unet, z.to(device), t.to(device), eps.to(device), alpha_bars, c) for z, t, eps, c in rows]
        losses[f"loss_t{start:03d}_{start + width - 1:03d}"] = torch.cat(errors).mean().item()
    return {"loss": sum(losses.values()) / BANDS, **losses}


def denoising_strips(
    unet: Denoiser, schedule: NoiseSchedule, noise: Tensor, steps: int = 20, columns: int = 6
) -> Tensor:
    """The estimates of x0 during DDIM from noise [B, 1, 64, 64], evenly spaced: [B, columns, 1, 64, 64]."""
    estimates = [estimate for _, estimate in ddim_trajectory(unet, schedule, noise, steps)]
    chosen = torch.linspace(0, steps - 1, columns).round().long()
    return torch.stack(estimates, dim=1)[:, chosen]
