"""Slices as latents: encoded once, kept on disk, drawn at random.

Stage 2 has no augmentation, so encoding a slice in every epoch would only repeat the work.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from monai.networks.nets import AutoencoderKL
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from training.checkpoint import AUTOENCODER, CheckpointError
from training.config import Data
from training.data import derived_seed, diffusion_transforms, draw_volumes, load_volume, open_volumes
from training.decathlon import Index, Section, channel_of
from training.files import sha256, utf8_name, whole_file
from training.processes import Processes

LATENTS = "latents.safetensors"
"""The file of `cached_latents` in the folder of a run."""


@torch.no_grad()
def encode_volumes(
    autoencoder: AutoencoderKL, root: Path, section: Section, config: Data, device: torch.device
) -> dict[str, Tensor]:
    """Mean and sigma of the posterior of each slice: two float32 tensors [volumes, depth, 64, 64] on the CPU.

    Raises:
        DataError: a volume cannot be used; it is named.
    """
    volumes = open_volumes(root, section, diffusion_transforms(config), config, cache=False)
    encoded: dict[str, list[Tensor]] = {"mu": [], "sigma": []}
    for index in tqdm(range(len(volumes)), desc="encoding volumes", unit="volume"):
        volume = load_volume(volumes, index)["image"].as_tensor()
        slices = volume.permute(3, 0, 1, 2).float()  # [depth, 1, padded, padded]
        parts = [autoencoder.encode(part.to(device)) for part in slices.split(10)]
        for name, tensors in zip(encoded, zip(*parts, strict=True), strict=True):
            encoded[name].append(torch.cat(tensors)[:, 0].cpu())
    return {name: torch.stack(tensors) for name, tensors in encoded.items()}


def latents_key(snapshot: Path, index: Index, config: Data) -> str:
    """What the latents of `cached_latents` depend on: the autoencoder of a snapshot folder, the data, what is read.

    Raises:
        DataError: dataset.json has no such channel.
    """
    data = f"{sha256(index.path)} {channel_of(index, config)} {config.size} {config.depth}"
    return f"{sha256(snapshot / AUTOENCODER)} {data}"


def cached_latents(
    autoencoder: AutoencoderKL, root: Path, config: Data, processes: Processes, path: Path, key: str
) -> dict[str, Tensor]:
    """`encode_volumes` of the training section through the file `path`, which the first process writes.

    `key` identifies the weights of the autoencoder and the data. A file with another key raises CheckpointError.
    """
    return cached_tensors(
        path, key, processes, lambda: encode_volumes(autoencoder, root, "training", config, processes.device)
    )


def cached_tensors(
    path: Path, key: str, processes: Processes, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `make` returns, through the file `path`, which the first process writes; `key` says what it depends on.

    Raises:
        CheckpointError: the file has another key.
    """
    if processes.first and not _complete(path):
        made = make()
        with whole_file(path) as temporary:
            save_file(made, temporary, metadata={"key": key})
    processes.agree(0)  # the others wait
    with utf8_name(path) as readable, safe_open(readable, "pt") as file:
        if (file.metadata() or {}).get("key") != key:
            raise CheckpointError(
                f"{path} was encoded by another autoencoder or from other data: give a new --out, and to "
                "training.distil_decoder another --latents"
            )
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _complete(path: Path) -> bool:
    """Whether there is a complete file of tensors; warns about a damaged one."""
    try:
        with utf8_name(path) as readable, safe_open(readable, "pt"):
            return True
    except FileNotFoundError:
        return False
    except SafetensorError as error:
        print(f"WARNING: {path} cannot be read ({error}): the volumes are encoded again", file=sys.stderr)
        return False


def draw_latents(
    latents: dict[str, Tensor],
    volumes_per_batch: int,
    slices_per_volume: int,
    seed: int,
    iteration: int,
    part: int = 0,
    all_parts: int = 1,
    lesions: Tensor | None = None,
) -> Tensor:
    """One part of an iteration's unscaled latents z = mu + sigma * eps, [volumes * slices, 1, 64, 64].

    Slices are drawn with replacement. The result does not depend on the process that draws it. lesions: see
    `draw_slices`.
    """
    count, depth = latents["mu"].shape[:2]
    share = (volumes_per_batch, slices_per_volume, seed, iteration, part, all_parts)
    volumes, slices, generator = draw_slices(count, depth, *share, lesions)
    mu, sigma = (latents[name][volumes, slices].flatten(0, 1)[:, None] for name in ("mu", "sigma"))
    return mu + sigma * torch.randn(mu.shape, generator=generator)


def draw_slices(
    count: int,
    depth: int,
    volumes_per_batch: int,
    slices_per_volume: int,
    seed: int,
    iteration: int,
    part: int,
    all_parts: int,
    lesions: Tensor | None = None,
) -> tuple[Tensor, Tensor, torch.Generator]:
    """Numbers of volumes, out of `count`, [volumes, 1], and of slices, out of `depth`, [volumes, slices].

    With the generator for what else a part draws. lesions: bool [count, depth], where a slice shows one; the rows of
    `sees_labels` are then drawn among those slices, if their volume has any.
    """
    drawn = draw_volumes(count, volumes_per_batch * all_parts, seed, iteration).reshape(all_parts, -1)[part]
    generator = torch.Generator().manual_seed(derived_seed(seed, iteration, 3, part))
    slices = torch.randint(depth, (len(drawn), slices_per_volume), generator=generator)
    if lesions is not None:
        which = torch.rand(slices.shape, generator=generator)
        for row in sees_labels(slices.numel(), iteration).nonzero().flatten().tolist():
            volume, place = divmod(row, slices_per_volume)
            shown = lesions[drawn[volume]].nonzero().flatten()
            if len(shown):
                slices[volume, place] = shown[int(which[volume, place] * len(shown))]
    return torch.from_numpy(drawn)[:, None], slices, generator


def sees_labels(rows: int, iteration: int) -> Tensor:
    """Which rows of a batch see their label map, bool [rows]: every second one, the others in the next iteration."""
    return (torch.arange(rows) + iteration) % 2 == 0


def measure_scale_factor(
    latents: dict[str, Tensor], volumes_per_batch: int, slices_per_volume: int, seed: int, batches: int
) -> float:
    """1 / std(z) over several batches, so that the UNet sees unit variance (Rombach et al. 2022, app. G).

    The bundle measures one batch of two volumes, another one in each process, and does not store the number.
    """
    drawn = [draw_latents(latents, volumes_per_batch, slices_per_volume, seed, i) for i in range(batches)]
    return 1.0 / torch.cat(drawn).double().std().item()
