"""The three networks of the recipe, built from their configuration with MONAI's classes.

State-dict keys are those of MONAI >= 1.5. Knows nothing of losses or files.
"""

import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet, PatchDiscriminator
from torch.optim.swa_utils import AveragedModel

from training.conditioning import extra_channels
from training.config import Autoencoder, Discriminator, UNet


def build_autoencoder(config: Autoencoder) -> AutoencoderKL:
    """The VAE: image [B, 1, H, W] <-> latent [B, 1, H/4, W/4]."""
    return AutoencoderKL(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        latent_channels=1,
        channels=config.channels,
        num_res_blocks=config.num_res_blocks,
        norm_num_groups=config.norm_num_groups,
        norm_eps=1e-6,
        attention_levels=(False,) * len(config.channels),
        with_encoder_nonlocal_attn=config.nonlocal_attention,
        with_decoder_nonlocal_attn=config.nonlocal_attention,
        include_fc=False,
        # The same keys and numbers as the default attention; it exports without Einsum and runs faster.
        use_flash_attention=config.nonlocal_attention,
    )


def build_unet(config: UNet) -> DiffusionModelUNet:
    """The denoiser: (latent [B, 1, 64, 64], timesteps int [B]) -> predicted noise [B, 1, 64, 64].

    With `config.conditioning` the channels of the condition follow the latent (`training.conditioning`).
    """
    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=1 + extra_channels(config),
        out_channels=1,
        channels=config.channels,
        attention_levels=config.attention_levels,
        num_head_channels=config.num_head_channels,
        num_res_blocks=config.num_res_blocks,
        norm_num_groups=config.norm_num_groups,
        norm_eps=1e-6,
        include_fc=False,
        use_combined_linear=False,
        use_flash_attention=True,
    )


def build_discriminator(config: Discriminator) -> PatchDiscriminator:
    """The PatchGAN discriminator: image [B, 1, H, W] -> feature maps, the last of them the logits."""
    return PatchDiscriminator(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=config.channels,
        num_layers_d=config.num_layers,
        norm="INSTANCE",
    )


def average_of(network: torch.nn.Module, decay: float) -> AveragedModel:
    """A running exponential average of a network's weights; call `update_parameters` after each step.

    The decay starts low and grows to `decay` with the number of updates. A fixed decay would keep the random initial
    weights in the average for thousands of steps, and the samples would be pure noise.
    """

    def average(averaged: torch.Tensor, current: torch.Tensor, updates: torch.Tensor | int) -> torch.Tensor:
        return torch.lerp(averaged, current, 1 - min(decay, (1 + int(updates)) / (10 + int(updates))))

    return AveragedModel(network, avg_fn=average)


@torch.no_grad()
def randomize_zero_tensors(module: torch.nn.Module, seed: int) -> None:
    """Fill every all-zero parameter with N(0, 0.05^2).

    MONAI initialises the last convolution of each residual block with zeros, so a new UNet returns exactly 0, and every
    comparison of two runtimes would pass.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if not parameter.any():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
