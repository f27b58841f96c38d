"""One iteration of each stage: from a batch to new weights. Knows nothing of files or progress bars.

A batch comes in parts (see `training.processes`): {part: [B, 1, H, W]}. Each part has its own random numbers.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from training.config import Config, Stage, TinyDecoderTraining
from training.data import derived_seed
from training.losses import diffusion_step, discriminator_step, generator_step
from training.networks import average_of
from training.perceptual import PerceptualLoss
from training.processes import Processes, synchronised
from training.tiny_decoder import distillation_losses

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Losses = dict[str, Tensor]
Numbers = dict[str, float]


def learning_rate(settings: Stage, iteration: int, epoch: int) -> float:
    """Linear warm-up times MultiStepLR. It depends on iteration and epoch alone, so there is no state to resume."""
    risen = min(1.0, (iteration + 1) / settings.warmup) if settings.warmup else 1.0
    return settings.learning_rate * risen * settings.gamma ** sum(epoch >= m for m in settings.milestones)


class Trained:
    """A network with its Adam, loss scaler and running average.

    network: the module with the weights.
    model: the module to call in training; with several processes it synchronises the gradients.
    averaged: the module for validation, pictures and the snapshot; with a decay of 0 it is `network`.
    """

    def __init__(self, network: torch.nn.Module, settings: Stage, processes: Processes) -> None:
        self._settings, self._device = settings, processes.device
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.network = network.to(processes.device, memory_format=layout)
        self._average = average_of(network, settings.ema_decay) if settings.ema_decay else None
        if settings.compile:
            self.network.compile()  # in place, so that the names in the state dict stay
        self.model = processes.wrap(self.network)
        self._optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=settings.precision == "fp16")

    @property
    def averaged(self) -> torch.nn.Module:
        return self._average.module if self._average else self.network

    def begin(self, rate: float) -> None:
        """Start an update at the learning rate `rate`."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """Context of the forward pass of one part: autocast. Processes exchange gradients after the last part."""
        dtype = DTYPES.get(self._settings.precision)
        with synchronised(self.model, last), torch.autocast(self._device.type, dtype, enabled=dtype is not None):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one part, scaled so that the sum over all parts is their mean."""
        self._scaler.scale(loss / self._settings.accumulate).backward()

    def step(self) -> float:
        """Update the weights and their average; returns the 2-norm of the gradient before it was clipped.

        With fp16 a gradient that is not finite is not an error: the update is skipped, and the loss scale is lowered.

        Raises:
            FloatingPointError: a gradient is not finite; the weights have not changed.
        """
        self._scaler.unscale_(self._optimizer)
        limit = self._settings.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit).item()
        if not self._scaler.is_enabled():
            check_finite({"the gradient's norm": norm})
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average:
            self._average.update_parameters(self.network)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """The state on which the next update depends."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        average = {"average": self._average} if self._average else {}
        return {"network": self.network, "optimizer": self._optimizer, "scaler": self._scaler, **average}


def update_autoencoder(
    autoencoder: Trained,
    discriminator: Trained,
    perceptual: PerceptualLoss | None,
    batch: dict[int, Tensor],
    iteration: int,
    config: Config,
) -> tuple[Numbers, Numbers, Tensor]:
    """One update of the autoencoder, then one of the discriminator, on images in [0, 1].

    Returns the losses, averaged over the parts, the gradients' norms, and the reconstruction of the last part.

    Raises:
        FloatingPointError: a loss or gradient is not finite; the weights of that network have not changed.
    """
    settings = config.autoencoder_training
    adversarial = settings.adversarial_weight > 0 and iteration >= settings.adversarial_start
    critic = discriminator.network if adversarial else None
    terms: list[Losses] = []
    reconstructions: dict[int, Tensor] = {}

    # Generator. The discriminator is used, but not trained.
    discriminator.network.requires_grad_(False)
    for part, images in batch.items():
        torch.manual_seed(derived_seed(config.seed, iteration, 2, part))
        with autoencoder.part(last=part == max(batch)):
            losses, reconstruction = generator_step(autoencoder.model, critic, perceptual, images, config)
        autoencoder.backward(losses["loss"])
        terms.append(losses)
        reconstructions[part] = reconstruction.detach()
    averaged = means(terms)
    norms = {"autoencoder_gradient": autoencoder.step()}

    # Discriminator.
    if adversarial:
        discriminator.network.requires_grad_(True)
        terms = []
        for part, images in batch.items():
            with discriminator.part(last=part == max(batch)):
                loss = discriminator_step(discriminator.model, images, reconstructions[part], config)
            discriminator.backward(loss)
            terms.append({"discriminator": loss})
        averaged |= means(terms)
        norms["discriminator_gradient"] = discriminator.step()
    return averaged, norms, reconstructions[max(batch)]


def update_unet(
    unet: Trained,
    batch: dict[int, Tensor],
    alpha_bars: Tensor,
    iteration: int,
    config: Config,
    conditions: Mapping[int, Tensor] = MappingProxyType({}),
) -> tuple[Numbers, Numbers]:
    """One update of the UNet on scaled latents; returns the loss, averaged over the parts, and the gradient's norm.

    conditions: of each part, for a UNet that takes labels.

    Raises:
        FloatingPointError: the loss or gradient is not finite; the weights have not changed.
    """
    terms: list[Losses] = []
    max_weight = config.diffusion_training.max_loss_weight
    for part, latents in batch.items():
        torch.manual_seed(derived_seed(config.seed, iteration, 4, part))
        with unet.part(last=part == max(batch)):
            loss = diffusion_step(unet.model, latents, alpha_bars, conditions.get(part), max_weight).mean()
        unet.backward(loss)
        terms.append({"diffusion_loss": loss})
    return means(terms), {"unet_gradient": unet.step()}


def update_tiny_decoder(
    tiny: Trained, batch: dict[int, Tensor], targets: dict[int, Tensor], settings: TinyDecoderTraining
) -> tuple[Numbers, Numbers]:
    """One update of the tiny decoder on scaled latents and the full decoder's images of them, as `update_unet`."""
    terms: list[Losses] = []
    for part, latents in batch.items():
        with tiny.part(last=part == max(batch)):
            losses = distillation_losses(tiny.model, latents, targets[part], settings)
        tiny.backward(losses["loss"])
        terms.append(losses)
    return means(terms), {"tiny_decoder_gradient": tiny.step()}


def means(terms: list[Losses]) -> Numbers:
    """Each loss, averaged over the parts. Raises FloatingPointError if one is not finite."""
    averaged = {name: sum(losses[name].item() for losses in terms) / len(terms) for name in terms[0]}
    check_finite(averaged)
    return averaged


def check_finite(values: Numbers) -> None:
    """Raises FloatingPointError with the name of a value that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}")
