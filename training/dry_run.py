"""What a run is going to do, without doing it: `--dry-run`. Networks are built without memory for their weights."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from training.config import Config, Stage
from training.data import autoencoder_transforms, open_volumes
from training.decathlon import describe_data, read_index
from training.losses import diffusion_step, discriminator_step, generator_step
from training.networks import build_autoencoder, build_discriminator, build_unet
from training.processes import joined

Networks = dict[str, torch.nn.Module]
GB = 1e9
# Weight, gradient and Adam's two moments, float32 each; one more for a running average.
BYTES_PER_PARAMETER = 16
LATENT = 64


def describe(config: Config, stage: str, data: Path, out: Path) -> None:
    """Print settings, sizes, memory, steps and files of the stage `autoencoder` or `diffusion`.

    Raises:
        DataError: the data cannot be used.
    """
    settings = stage_settings(config, stage)
    uncached = open_volumes(data, "training", autoencoder_transforms(config.data, 1), config.data, cache=False)
    processes = joined()
    if not processes.first:
        return
    volumes = settings.volumes_per_batch * processes.all_parts(settings.accumulate)
    steps = max(1, len(uncached) // volumes)
    print("Settings")
    print_fields(asdict(config))
    print("\nNetworks")
    networks, needed = memory(config, stage)
    for name, parameters in networks.items():
        print(f"  {name:16} {parameters:>12,} parameters")
    print("\nMemory of one process, estimated for fp32, without the libraries' own and without fragmentation")
    for name, size in needed.items():
        print(f"  {name:40} {size / GB:8.2f} GB")
    print(f"  {'sum':40} {sum(needed.values()) / GB:8.2f} GB")
    name, size = host_memory(config, stage, len(uncached))
    print(f"  {name:40} {size / GB:8.2f} GB")
    print("\nSteps")
    print(f"  {len(uncached)} training volumes of {describe_data(read_index(data))['name']}, {data}")
    print(f"  {volumes} volumes x {settings.slices_per_volume} slices an update, in {processes.world_size} process(es)")
    print(f"  {steps} updates an epoch x {settings.epochs} epochs = {steps * settings.epochs} updates")
    print("\nFiles")
    files = {"snapshot/": "the last weights", "state.pt": "what a resumed run continues from, and state_before.pt"}
    files |= {"best/": "the weights of the best validation"} if settings.validate_every else {}
    files |= {"latents.safetensors": "the encoded slices"} if stage == "diffusion" else {}
    files |= {"events/": "TensorBoard", "pictures/": "samples every " + f"{settings.checkpoint_every} updates"}
    for name, what in files.items():
        print(f"  {out / name!s:40} {what}")


def host_memory(config: Config, stage: str, volumes: int) -> tuple[str, float]:
    """What each process keeps of `volumes` training volumes, and its bytes."""
    slices = volumes * config.data.depth * 4
    if stage == "autoencoder":
        return "host: cached volumes", config.data.cache_rate * slices * config.data.size**2
    return "host: mean and sigma of all latents", 2.0 * slices * LATENT**2


def print_fields(values: dict[str, Any], indent: str = "  ") -> None:
    """Nested settings, one a line."""
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}[{name}]")
            print_fields(value, indent + "  ")
        else:
            print(f"{indent}{name} = {value}")


def memory(config: Config, stage: str) -> tuple[dict[str, int], dict[str, float]]:
    """Parameters of the networks that a stage trains, and bytes by use; nothing is allocated."""
    settings = stage_settings(config, stage)
    with FakeTensorMode():
        if stage == "autoencoder":
            networks, kept = autoencoder_activations(config)
        else:
            networks, kept = unet_activations(config)
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
    return {"unet": unet}, bytes_for_backward(lambda: diffusion_step(unet, latents, alpha_bars).mean(), {"unet": unet})


def stage_settings(config: Config, stage: str) -> Stage:
    return config.autoencoder_training if stage == "autoencoder" else config.diffusion_training


def batch(settings: Stage, size: int) -> Tensor:
    """A batch, [volumes * slices, 1, size, size]."""
    return torch.zeros(settings.volumes_per_batch * settings.slices_per_volume, 1, size, size)


def bytes_for_backward(loss: Callable[[], Tensor], networks: Networks) -> float:
    """Bytes of all tensors that autograd keeps between `loss()` and its backward pass; parameters are not counted."""
    own = {p.untyped_storage()._cdata for network in networks.values() for p in network.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # an id is unique only as long as its owner lives

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return float(sum(kept.values()))
