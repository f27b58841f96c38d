"""Slices as latents: encoded once, kept on disk, drawn at random.

Stage 2 augments nothing, so encoding a slice anew in each epoch would only repeat the work.
"""

import os
from pathlib import Path

import torch
from monai.data import DataLoader
from monai.networks.nets import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from training.checkpoint import CheckpointError
from training.config import Data
from training.data import Section, derived_seed, diffusion_transforms, draw_volumes, open_volumes


@torch.no_grad()
def encode_volumes(
    autoencoder: AutoencoderKL, root: Path, section: Section, config: Data, device: torch.device
) -> dict[str, Tensor]:
    """Mean and sigma of the posterior of each slice: two float32 tensors [volumes, depth, 64, 64] on the CPU."""
    volumes = open_volumes(root, section, diffusion_transforms(config), config, cache=False)
    encoded: dict[str, list[Tensor]] = {"mu": [], "sigma": []}
    for batch in tqdm(DataLoader(volumes, batch_size=1), desc="encoding volumes", unit="volume"):
        slices = batch["image"].as_tensor()[0].permute(3, 0, 1, 2).float()  # [depth, 1, padded, padded]
        parts = [autoencoder.encode(part.to(device)) for part in slices.split(10)]
        for name, tensors in zip(encoded, zip(*parts, strict=True), strict=True):
            encoded[name].append(torch.cat(tensors)[:, 0].cpu())
    return {name: torch.stack(tensors) for name, tensors in encoded.items()}


def cached_latents(
    autoencoder: AutoencoderKL, root: Path, config: Data, device: torch.device, path: Path, key: str
) -> dict[str, Tensor]:
    """`encode_volumes` of the training section through the file `path`.

    `key` names the autoencoder's weights and the data; a file made with others is refused with CheckpointError.
    """
    if not path.is_file():
        temporary = path.with_name(path.name + ".tmp")
        save_file(encode_volumes(autoencoder, root, "training", config, device), temporary, metadata={"key": key})
        os.replace(temporary, path)
    with safe_open(path, "pt") as file:
        if file.metadata()["key"] != key:
            raise CheckpointError(f"{path} was encoded by another autoencoder or from other data: give a new --out")
        return {name: file.get_tensor(name) for name in ("mu", "sigma")}


def draw_latents(
    latents: dict[str, Tensor], volumes_per_batch: int, slices_per_volume: int, seed: int, iteration: int
) -> Tensor:
    """One batch of unscaled latents z = mu + sigma * eps, [volumes * slices, 1, 64, 64]; slices with replacement."""
    count, depth = latents["mu"].shape[:2]
    volumes = torch.from_numpy(draw_volumes(count, volumes_per_batch, seed, iteration))
    generator = torch.Generator().manual_seed(derived_seed(seed, iteration, 3))
    slices = torch.randint(depth, (len(volumes), slices_per_volume), generator=generator)
    mu, sigma = (latents[name][volumes[:, None], slices].flatten(0, 1)[:, None] for name in ("mu", "sigma"))
    return mu + sigma * torch.randn(mu.shape, generator=generator)


def measure_scale_factor(
    latents: dict[str, Tensor], volumes_per_batch: int, slices_per_volume: int, seed: int, batches: int
) -> float:
    """1 / std(z) over several batches, so that the UNet sees unit variance (Rombach et al. 2022, app. G).

    The bundle takes one batch of one volume pair and forgets the number after training.
    """
    drawn = [draw_latents(latents, volumes_per_batch, slices_per_volume, seed, i) for i in range(batches)]
    return 1.0 / torch.cat(drawn).double().std().item()
