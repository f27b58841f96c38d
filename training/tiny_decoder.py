"""The tiny decoder: latents to the images of the full decoder, with a fraction of the operations.

The idea is TAESD's (Bohan 2023): a small convolutional network learns from the full decoder, and needs neither
attention nor normalisation. Here all blocks work at the size of the latent, where a convolution is sixteen times
cheaper than at that of the image. Knows nothing of files and optimisers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.losses import SSIMLoss
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from training.checkpoint import StateDict
from training.config import TinyDecoder as TinyDecoderConfig
from training.config import TinyDecoderTraining
from training.data import derived_seed
from training.metrics import reconstruction_metrics

UPSCALING = 4  # pixels of the image for one of the latent, along each axis
ROWS = 8
# 1 - SSIM (Wang et al. 2004), as in training.metrics.
dissimilarity = SSIMLoss(spatial_dims=2, data_range=1.0)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3 each (He et al. 2016, "pre-activation"); [B, C, H, W] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class TinyDecoder(nn.Module):
    """Scaled latent [B, 1, h, w] -> image [B, 1, 4h, 4w]: the last convolution makes the 4x4 pixels of each place."""

    def __init__(self, config: TinyDecoderConfig) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, config.channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(config.channels) for _ in range(config.blocks)))
        self.activate = nn.ReLU()
        self.leave = nn.Conv2d(config.channels, UPSCALING**2, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        features = self.activate(self.blocks(self.enter(latent)))
        return F.pixel_shuffle(self.leave(features), UPSCALING)


def build_tiny_decoder(config: TinyDecoderConfig, weights: StateDict | None = None) -> TinyDecoder:
    """The network with the given weights, or with new ones from torch's global generator."""
    network = TinyDecoder(config)
    if weights is not None:
        network.load_state_dict(weights)
    return network


def distillation_losses(
    tiny: nn.Module, latents: Tensor, targets: Tensor, settings: TinyDecoderTraining
) -> dict[str, Tensor]:
    """L1, squared error and 1 - SSIM of tiny(latents) beside the full decoder's images; `loss` is the weighted sum.

    latents: scaled, [B, 1, H / 4, W / 4]; targets: [B, 1, H, W] in [0, 1]. A term without weight is left out. SSIM is
    that of the first rows, a quarter of them: on a CPU its windows cost more than the rest of an update.
    """
    images = tiny(latents).float()
    losses = {"l1": F.l1_loss(images, targets), "squared": F.mse_loss(images, targets)}
    loss = losses["l1"] + settings.squared_weight * losses["squared"]
    if settings.ssim_weight:
        rows = math.ceil(len(images) / 4)
        # Autocast would round the sums of squares whose differences are the variances.
        with torch.autocast(images.device.type, enabled=False):
            losses["ssim"] = dissimilarity(images[:rows], targets[:rows])
        loss = loss + settings.ssim_weight * losses["ssim"]
    return losses | {"loss": loss}


def with_noise(latents: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Latents [B, 1, h, w] plus normal noise; the standard deviation of each row is uniform in 0..most.

    Sampled latents are not quite like encoded ones, and the tiny decoder has to serve those.
    """
    spread = most * torch.rand(len(latents), 1, 1, 1, generator=generator)
    return latents + spread * torch.randn(latents.shape, generator=generator)


@dataclass(frozen=True)
class Lesson:
    """Noisy scaled latents [N, 1, h, w] and the full decoder's images of them [N, 1, 4h, 4w], for several updates."""

    latents: Tensor
    images: Tensor

    def batch(self, update: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
        """Latents and images of the update with this number: in N / rows updates each latent comes once."""
        time_through, place = divmod(update, len(self.latents) // rows)
        generator = torch.Generator().manual_seed(derived_seed(seed, time_through))
        chosen = torch.randperm(len(self.latents), generator=generator)[place * rows : (place + 1) * rows]
        return self.latents[chosen], self.images[chosen]


@torch.no_grad()
def decoded(autoencoder: AutoencoderKL, latents: Tensor, scale_factor: float) -> Tensor:
    """The full decoder's images [B, 1, 4h, 4w] of scaled latents [B, 1, h, w], on the device of the network."""
    device = next(autoencoder.parameters()).device
    parts = latents.to(device).split(ROWS)
    return torch.cat([autoencoder.decode(part / scale_factor) for part in parts])


@torch.no_grad()
def compare(tiny: nn.Module, latents: Tensor, targets: Tensor) -> dict[str, float]:
    """Mean L1, PSNR in dB and SSIM of tiny(latents) against the full decoder's images [B, 1, H, W]."""
    rows: dict[str, list[Tensor]] = {}
    for part, wanted in zip(latents.split(ROWS), targets.split(ROWS), strict=True):
        images = tiny(part.to(wanted.device)).float()
        measured = reconstruction_metrics(images, wanted)
        for name, values in {"l1": (images - wanted).abs().flatten(1).mean(1), **measured}.items():
            rows.setdefault(name, []).append(values.flatten().cpu())
    return {name: torch.cat(values).mean().item() for name, values in rows.items()}


@torch.no_grad()
def operations(call: Callable[[Tensor], Tensor], network: nn.Module) -> int:
    """Floating-point operations of a call of `network` for one latent [1, 1, 64, 64]; a product and a sum are two."""
    with FlopCounterMode(display=False) as counter:
        call(torch.zeros(1, 1, 64, 64, device=next(network.parameters()).device))
    return counter.get_total_flops()
