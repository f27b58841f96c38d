"""The reference sampling loop in PyTorch with MONAI's scheduler: what served images are held to."""

import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor

from training.config import NoiseSchedule


def ddim_scheduler(schedule: NoiseSchedule, steps: int) -> DDIMScheduler:
    """MONAI's DDIM as the bundle configures it, on the grid of MONAI < 1.6: 980, 960, ..., 0 for 50 steps.

    MONAI 1.6 spreads the timesteps over 0..999 while its `step` still takes t - 1000 // steps for the previous one.
    """
    scheduler = DDIMScheduler(
        num_train_timesteps=schedule.num_train_timesteps,
        schedule="scaled_linear_beta",
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    stride = schedule.num_train_timesteps // steps
    scheduler.timesteps = torch.arange(steps - 1, -1, -1) * stride
    return scheduler


@torch.no_grad()
def sample_latents(
    unet: DiffusionModelUNet, schedule: NoiseSchedule, noise: Tensor, steps: int = 50, eta: float = 0.0
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12) from noise [B, 1, 64, 64] to scaled latents of the same shape."""
    scheduler = ddim_scheduler(schedule, steps)
    latents = noise
    for timestep in scheduler.timesteps:
        timesteps = timestep.expand(len(latents)).to(latents.device)
        latents, _ = scheduler.step(unet(latents, timesteps).float(), int(timestep), latents, eta=eta)
    return latents


@torch.no_grad()
def decode(autoencoder: AutoencoderKL, latents: Tensor, scale_factor: float, size: int = 240) -> Tensor:
    """Scaled latents [B, 1, 64, 64] to slices [B, 1, size, size]: divided by the scale factor, centre-cropped."""
    images = autoencoder.decode(latents / scale_factor)
    margin = (images.shape[-1] - size) // 2
    return images[..., margin : margin + size, margin : margin + size]
