"""The losses of both stages, as pure functions of networks and a batch: no optimiser, no device, no logging."""

import torch
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet, PatchDiscriminator
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor
from torch.nn import functional as F

from training.conditioning import Denoiser, given_labels
from training.config import Config, NoiseSchedule
from training.perceptual import PerceptualLoss

# Least-squares GAN (Mao et al. 2017), as the bundle's code; its documentation says binary cross-entropy.
adversarial = PatchAdversarialLoss(criterion="least_squares")


def kl_divergence(mu: Tensor, sigma: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)), summed over the latent, averaged over the batch (Kingma & Welling 2014, app. B).

    mu, sigma: [B, 1, h, w]. Returns a scalar.
    """
    kl = 0.5 * (mu.square() + sigma.square() - sigma.square().clamp_min(1e-12).log() - 1)
    return kl.flatten(1).sum(1).mean()


def generator_step(
    autoencoder: AutoencoderKL,
    discriminator: PatchDiscriminator | None,
    perceptual: PerceptualLoss | None,
    images: Tensor,
    config: Config,
) -> tuple[dict[str, Tensor], Tensor]:
    """Losses of the autoencoder on a batch of images [B, 1, H, W] in [0, 1]. A network that is None has no term.

    Returns the unweighted terms with their weighted sum under `loss`, and the reconstruction [B, 1, H, W].
    """
    weights = config.autoencoder_training
    reconstruction, mu, sigma = (output.float() for output in autoencoder(images))
    losses = {"l1": F.l1_loss(reconstruction, images), "kl": kl_divergence(mu, sigma)}
    total = losses["l1"] + weights.kl_weight * losses["kl"]
    if perceptual is not None:
        losses["perceptual"] = perceptual(reconstruction, images).float()
        total = total + config.perceptual.weight * losses["perceptual"]
    if discriminator is not None:
        logits = discriminator(reconstruction)[-1].float()
        losses["adversarial"] = adversarial(logits, target_is_real=True, for_discriminator=False)
        total = total + weights.adversarial_weight * losses["adversarial"]
    return losses | {"loss": total}, reconstruction


def discriminator_step(
    discriminator: PatchDiscriminator, images: Tensor, reconstruction: Tensor, config: Config
) -> Tensor:
    """Loss of the discriminator on real and reconstructed images [B, 1, H, W]; a scalar."""
    fake = discriminator(reconstruction.detach())[-1].float()
    real = discriminator(images)[-1].float()
    loss_fake = adversarial(fake, target_is_real=False, for_discriminator=True)
    loss_real = adversarial(real, target_is_real=True, for_discriminator=True)
    return config.autoencoder_training.adversarial_weight * 0.5 * (loss_fake + loss_real)


def alpha_bars_of(schedule: NoiseSchedule) -> Tensor:
    """Products of 1 - beta up to each timestep, float32 [T] (Ho et al. 2020, section 2), from MONAI's scheduler."""
    return DDPMScheduler(
        num_train_timesteps=schedule.num_train_timesteps,
        schedule="scaled_linear_beta",
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
    ).alphas_cumprod


def diffusion_step(
    unet: DiffusionModelUNet,
    latents: Tensor,
    alpha_bars: Tensor,
    condition: Tensor | None = None,
    max_weight: float = 1.0,
) -> Tensor:
    """The simplified objective, E |eps - eps_theta(x_t, t)|^2 (Ho et al. 2020, eq. 14), t uniform.

    latents: scaled, [B, 1, 64, 64]; alpha_bars: float [T]. Draws t and eps from torch's global generator.
    condition: [B, CHANNELS, 64, 64], for a UNet that takes one. max_weight: see `loss_weights`.
    Returns the weighted mean squared error of each row, [B].
    """
    timesteps = torch.randint(len(alpha_bars), (len(latents),), device=latents.device)
    errors = noise_error(unet, latents, timesteps, torch.randn_like(latents), alpha_bars, condition)
    return loss_weights(alpha_bars, max_weight)[timesteps] * errors


def loss_weights(alpha_bars: Tensor, maximum: float) -> Tensor:
    """Weights [T] of the timesteps in the loss, with a mean of 1: 1/alpha_bar, up to `maximum` before they are scaled.

    1/alpha_bar is the "SNR+1" weighting (Salimans & Ho 2022, section 4). An error in the predicted noise counts as the
    error in the image that it makes, so the noisiest timesteps count, where a slice's shape and brightness are decided.
    """
    weights = (1 / alpha_bars).clamp(max=maximum)
    return weights / weights.mean()


def noise_error(
    unet: Denoiser,
    latents: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    alpha_bars: Tensor,
    condition: Tensor | None = None,
) -> Tensor:
    """|noise - eps_theta(x_t, t)|^2 of each row, [B], for latents and noise [B, 1, 64, 64] and timesteps int [B].

    condition: [B, CHANNELS, 64, 64], for a UNet that takes one.
    """
    alpha_bar = alpha_bars[timesteps].view(-1, 1, 1, 1)
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
    denoise = unet if condition is None else given_labels(unet, condition)
    prediction = denoise(noisy, timesteps).float()
    return F.mse_loss(prediction, noise, reduction="none").flatten(1).mean(1)
