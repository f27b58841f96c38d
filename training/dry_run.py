"""`--dry-run`: describes a run without doing it. Networks are built without memory for their weights."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from training.conditioning import extra_channels
from training.config import Config, Stage
from training.data import autoencoder_transforms, open_volumes
from training.decathlon import describe_data, read_index
from training.latents import LATENTS
from training.losses import diffusion_step, discriminator_step, generator_step
from training.networks import build_autoencoder, build_discriminator, build_unet
from training.processes import joined
from training.tiny_decoder import UPSCALING, build_tiny_decoder, distillation_losses

Networks = dict[str, torch.nn.Module]
GB = 1e9
# Weight, gradient and the two moments of Adam, all float32; a running average takes four more bytes.
BYTES_PER_PARAMETER = 16
LATENT = 64


def describe(config: Config, stage: str, data: Path, out: Path) -> None:
    """Print the settings, sizes, memory, steps and files of the stage `autoencoder`, `diffusion` or `tiny_decoder`.

    Raises:
        DataError: the data cannot be used.
    """
    volumes = open_volumes(data, "training", autoencoder_transforms(config.data, 1), config.data, cache=False)
    if not joined().first:
        return
    print("Settings")
    print_fields(asdict(config))
    print_memory(config, stage, len(volumes))
    name = describe_data(read_index(data))["name"]
    print(f"\nSteps\n  {len(volumes)} training volumes of {name}, {data}")
    print_steps(stage_settings(config, stage), len(volumes))
    print("\nFiles")
    for file, content in files(config, stage).items():
        print(f"  {out / file!s:40} {content}")


def print_memory(config: Config, stage: str, volumes: int) -> None:
    """Print the sizes of the networks and the memory that training needs."""
    networks, needed = memory(config, stage)
    print("\nNetworks")
    for name, parameters in networks.items():
        print(f"  {name:16} {parameters:>12,} parameters")
    print("\nMemory of one process, estimated for fp32, without that of the libraries and without fragmentation")
    for name, size in {**needed, "sum": sum(needed.values()), **host_memory(config, stage, volumes)}.items():
        print(f"  {name:40} {size / GB:8.2f} GB")


def print_steps(settings: Stage, volumes: int) -> None:
    """Print how many updates there are, and of what size."""
    processes = joined()
    per_update = settings.volumes_per_batch * processes.all_parts(settings.accumulate)
    steps = max(1, volumes // per_update)
    print(
        f"  {per_update} volumes x {settings.slices_per_volume} slices an update, in {processes.world_size} process(es)"
    )
    print(f"  {steps} updates an epoch x {settings.epochs} epochs = {steps * settings.epochs} updates")


def files(config: Config, stage: str) -> dict[str, str]:
    """The files of a run and what they hold."""
    settings = stage_settings(config, stage)
    names = {"snapshot/": "the last weights", "state.pt": "what a resumed run continues from, and state_before.pt"}
    if settings.validate_every:
        names["best/"] = "the weights of the best validation"
    if stage != "autoencoder":
        names[LATENTS] = "the encoded slices"
    return names | {"events/": "TensorBoard", "pictures/": f"samples every {settings.checkpoint_every} updates"}


def host_memory(config: Config, stage: str, volumes: int) -> dict[str, float]:
    """The bytes that each process keeps in memory for `volumes` training volumes, with their name."""
    slices = volumes * config.data.depth * 4
    if stage == "autoencoder":
        return {"host: cached volumes": config.data.cache_rate * slices * config.data.size**2}
    return {"host: mean and sigma of all latents": 2.0 * slices * LATENT**2}


def print_fields(values: dict[str, Any], indent: str = "  ") -> None:
    """Print nested settings, one per line."""
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}[{name}]")
            print_fields(value, indent + "  ")
        else:
            print(f"{indent}{name} = {value}")


def memory(config: Config, stage: str) -> tuple[dict[str, int], dict[str, float]]:
    """The number of parameters by network, and bytes by use, of a stage. Allocates nothing."""
    settings = stage_settings(config, stage)
    with FakeTensorMode():
        if stage == "autoencoder":
            networks, kept = autoencoder_activations(config)
        elif stage == "diffusion":
            networks, kept = unet_activations(config)
        else:
            networks, kept = tiny_decoder_activations(config)
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    per_parameter = BYTES_PER_PARAMETER + (4 if settings.ema_decay else 0)
    return counts, {
        "weights, gradients, optimiser": float(per_parameter * sum(counts.values())),
        "activations kept for the backward pass": kept,
    }


def autoencoder_activations(config: Config) -> tuple[Networks, float]:
    """The networks of stage 1, and the bytes that the larger of its two backward passes needs."""
    autoencoder, discriminator = build_autoencoder(config.autoencoder), build_discriminator(config.discriminator)
    networks: Networks = {"autoencoder": autoencoder, "discriminator": discriminator}
    images = batch(config.autoencoder_training, config.data.size)

    def generator() -> Tensor:
        discriminator.requires_grad_(False)
        return generator_step(autoencoder, discriminator, None, images, config)[0]["loss"]

    def critic() -> Tensor:
        discriminator.requires_grad_(True)
        return discriminator_step(discriminator, images, images, config)

    return networks, max(bytes_for_backward(generator, networks), bytes_for_backward(critic, networks))


def unet_activations(config: Config) -> tuple[Networks, float]:
    """The network of stage 2, and the bytes that its backward pass needs."""
    unet = build_unet(config.unet)
    latents, alpha_bars = (
        batch(config.diffusion_training, LATENT),
        torch.ones(config.noise_schedule.num_train_timesteps),
    )
    extra = extra_channels(config.unet)
    condition = torch.ones(len(latents), extra, LATENT, LATENT) if extra else None

    def loss() -> Tensor:
        return diffusion_step(unet, latents, alpha_bars, condition).mean()

    return {"unet": unet}, bytes_for_backward(loss, {"unet": unet})


def tiny_decoder_activations(config: Config) -> tuple[Networks, float]:
    """The network that `training.distil_decoder` trains, and the bytes that its backward pass needs."""
    tiny, settings = build_tiny_decoder(config.tiny_decoder), config.tiny_decoder_training
    latents, targets = batch(settings, LATENT), batch(settings, UPSCALING * LATENT)

    def loss() -> Tensor:
        return distillation_losses(tiny, latents, targets, settings)["loss"]

    return {"tiny decoder": tiny}, bytes_for_backward(loss, {"tiny decoder": tiny})


def stage_settings(config: Config, stage: str) -> Stage:
    stages: dict[str, Stage] = {
        "autoencoder": config.autoencoder_training,
        "diffusion": config.diffusion_training,
        "tiny_decoder": config.tiny_decoder_training,
    }
    return stages[stage]


def batch(settings: Stage, size: int) -> Tensor:
    """A batch, [volumes * slices, 1, size, size]."""
    return torch.zeros(settings.volumes_per_batch * settings.slices_per_volume, 1, size, size)


def bytes_for_backward(loss: Callable[[], Tensor], networks: Networks) -> float:
    """Bytes of all tensors that autograd keeps between `loss()` and its backward pass; parameters are not counted."""
    parameters = {p.untyped_storage()._cdata for network in networks.values() for p in network.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # an id is unique only as long as its tensor lives

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return float(sum(kept.values()))
