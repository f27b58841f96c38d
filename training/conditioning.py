"""What a UNet with `unet.conditioning = "labels"` sees beside the latent: a label map at the size of the latent.

The condition of a slice is [CHANNELS, 64, 64]: the share of each label's pixels in the 4 x 4 pixels of a latent, then a
channel that is 1 where a map is given. Without a map all of it is 0, which is not an empty map: that one says that the
slice shows no lesion. So one network works with and without labels (Ho & Salimans 2022, section 3.2).
Knows nothing of files.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from training.config import UNet

LABELS = {1: "oedema", 2: "non-enhancing tumour", 3: "enhancing tumour"}
"""What the numbers in a label map of Task01_BrainTumour mean; 0 is everything else."""
CHANNELS = len(LABELS) + 1
PIXELS = 4
"""Pixels of a side that one number of a latent stands for."""
FIRST = "conv_in.conv.weight"
"""The only weights that see the condition."""
Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(latents [B, 1, 64, 64], timesteps [B]) -> predicted noise [B, 1, 64, 64]"""


def extra_channels(config: UNet) -> int:
    """Channels of the UNet's input besides the latent."""
    return CHANNELS if config.conditioning == "labels" else 0


def label_counts(labels: Tensor) -> Tensor:
    """Pixels of each label in each latent's place: uint8 [..., 256, 256] to uint8 [..., 3, 64, 64], 0 to 16."""
    present = torch.stack([labels == number for number in LABELS], dim=-3)
    rows, columns = (side // PIXELS for side in labels.shape[-2:])
    return present.unflatten(-1, (columns, PIXELS)).unflatten(-3, (rows, PIXELS)).sum((-3, -1), dtype=torch.uint8)


def condition_of(counts: Tensor) -> Tensor:
    """`label_counts` [B, 3, 64, 64] to the condition of given maps, float32 [B, CHANNELS, 64, 64]."""
    shares = counts.float() / PIXELS**2
    return torch.cat([shares, torch.ones_like(shares[:, :1])], dim=1)


def condition_of_maps(labels: Tensor) -> Tensor:
    """Label maps uint8 [B, 240, 240] to their condition, float32 [B, CHANNELS, 64, 64]; padded as images are."""
    margins = [(-labels.shape[-1] % 32) // 2] * 4
    return condition_of(label_counts(F.pad(labels, margins)))


def given_labels(unet: Denoiser, condition: Tensor) -> Denoiser:
    """A UNet that takes labels as a function of latents and timesteps alone; condition: [B, CHANNELS, 64, 64]."""
    return lambda latents, timesteps: unet(torch.cat([latents, condition.to(latents)], dim=1), timesteps)


def given_none(unet: Denoiser, config: UNet) -> Denoiser:
    """A UNet as a function of latents and timesteps alone, with no map given; `unet` itself if it takes none."""
    if not extra_channels(config):
        return unet
    return lambda latents, timesteps: unet(F.pad(latents, (0, 0, 0, 0, 0, CHANNELS)), timesteps)


def narrowed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the UNet without labels that predicts the same noise as this one where no map is given."""
    return {**weights, FIRST: weights[FIRST][:, :1].clone()}


def widened(weights: dict[str, Tensor], before: UNet, now: UNet) -> dict[str, Tensor]:
    """The weights of a UNet of `before` for the input of `now`; channels that are new have weights of 0.

    So the network predicts the same noise as before, whatever the labels.
    """
    extra = extra_channels(now) - extra_channels(before)
    return {**weights, FIRST: F.pad(weights[FIRST], (0, 0, 0, 0, 0, extra))}
