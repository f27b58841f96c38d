"""Reconstruct slices with the autoencoder of a snapshot: a picture, with PSNR, SSIM and MS-SSIM.

    python -m training.reconstruct --snapshot RUN/snapshot --data DIR --out OUT

Encodes and decodes evenly spaced slices of each volume. Uses the mean of the posterior, so nothing is random.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from training.cli import exit_status, run_command
from training.config import Data, Modality, Spacing

if TYPE_CHECKING:
    import numpy as np
    import torch
    from monai.networks.nets import AutoencoderKL
    from numpy.typing import NDArray
    from torch import Tensor

    from brats_ldm_client.pictures import Pixels
    from training.checkpoint import Snapshot
    from training.data import Volumes

COLUMNS = 6
# Slices that go through the network at once.
BATCH = 8
UNITS = {"psnr": "PSNR [dB]", "ssim": "SSIM", "ms_ssim": "MS-SSIM"}


@dataclass(frozen=True)
class Arguments:
    """Command line."""

    snapshot: Path
    """Snapshot folder of either stage."""
    data: Path
    """Folder that holds Task01_BrainTumour."""
    out: Path
    """Folder that gets reconstruction.png and reconstruction.json; made if needed."""
    section: Literal["validation", "training"] = "validation"
    """validation: the fifth of the volumes that training never sees. training: the others."""
    volumes: int = 0
    """Number of volumes, the first ones of the section; 0 = all."""
    slices_per_volume: int = 4
    """Number of evenly spaced slices of each volume."""
    modality: Modality | None = None
    """As data.modality of training; the default is that of the snapshot."""
    spacing: Spacing | None = None
    """As data.spacing of training; the default is that of the snapshot."""

    def reading(self, trained: Data) -> Data:
        """The settings for reading volumes, for a model with the training settings `trained`."""
        modality, spacing = self.modality or trained.modality, self.spacing or trained.spacing
        return replace(trained, modality=modality, spacing=spacing)


@dataclass(frozen=True)
class Slice:
    """The metrics of one slice. `slice` counts from 0 among the axial slices that training uses."""

    volume: str
    slice: int
    psnr: float
    ssim: float
    ms_ssim: float


@dataclass(frozen=True)
class Example:
    """A column of the picture: arrays [H, W] in [0, 1]."""

    slice: Slice
    image: NDArray[np.float32]
    reconstruction: NDArray[np.float32]


def reconstruct(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    """Decoded posterior means of images [B, 1, H, W], not clipped. Deterministic."""
    import torch

    with torch.no_grad():
        return torch.cat([autoencoder.decode(autoencoder.encode(part)[0]) for part in images.split(BATCH)])


def measure(snapshot: Snapshot, arguments: Arguments) -> tuple[list[Slice], list[Example]]:
    """The metrics of all slices, and evenly spaced examples for the picture.

    Raises:
        DataError, ValueError: there are no such volumes, or one cannot be used or has too few slices.
    """
    import torch
    from tqdm import tqdm

    from training.data import evenly_spaced
    from training.networks import build_autoencoder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autoencoder = build_autoencoder(snapshot.config.autoencoder).to(device).eval()
    autoencoder.load_state_dict(snapshot.autoencoder)
    volumes = _open(arguments, snapshot.config.data)
    count = min(len(volumes), arguments.volumes or len(volumes))
    total = count * arguments.slices_per_volume
    shown = set(evenly_spaced(total, min(COLUMNS, total)))

    slices: list[Slice] = []
    examples: list[Example] = []
    with tqdm(range(count), desc="reconstructing", unit="volume") as bar:
        for number in bar:
            for example in _of_volume(autoencoder, volumes, number, arguments.slices_per_volume, device):
                if len(slices) in shown:
                    examples.append(example)
                slices.append(example.slice)
    return slices, examples


def _open(arguments: Arguments, trained: Data) -> Volumes:
    """The volumes of the section, padded as in stage 1, but neither cropped nor flipped at random."""
    from monai.transforms import Compose, DivisiblePadd

    from training.data import open_volumes, volume_transforms
    from training.decathlon import DataError

    config = arguments.reading(trained)
    transform = Compose([*volume_transforms(config), DivisiblePadd(keys="image", k=(4, 4, 1))])
    volumes = open_volumes(arguments.data, arguments.section, transform, config, cache=False)
    if not len(volumes):
        raise DataError(
            f"{arguments.data} has no {arguments.section} volumes: one in five is held out, so five are needed"
        )
    return volumes


def _of_volume(
    autoencoder: AutoencoderKL, volumes: Volumes, number: int, count: int, device: torch.device
) -> Iterator[Example]:
    """`count` evenly spaced slices of a volume, with their reconstructions and metrics."""
    from training.data import evenly_spaced, load_volume
    from training.metrics import ms_ssim, reconstruction_metrics

    name = volumes.data[number]["name"]
    volume = load_volume(volumes, number)["image"].as_tensor().float()  # [1, H, W, depth]
    if count > volume.shape[-1]:
        raise ValueError(f"--slices-per-volume is {count}, but {name} has {volume.shape[-1]} slices")
    places = evenly_spaced(volume.shape[-1], count)
    images = volume[..., places].permute(3, 0, 1, 2).contiguous().to(device)
    output = reconstruct(autoencoder, images)
    values = reconstruction_metrics(output, images) | {"ms_ssim": ms_ssim(output, images)}
    rows = zip(places, *(values[metric].tolist() for metric in UNITS), strict=True)
    for row, image, reconstruction in zip(rows, images[:, 0].cpu().numpy(), output[:, 0].cpu().numpy(), strict=True):
        yield Example(Slice(name, *row), image, reconstruction)


def summary(slices: Sequence[Slice]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation, minimum and maximum of each metric over all slices.

    Raises:
        ValueError: a value is not finite, for example because the weights hold NaN.
    """
    import numpy as np

    result = {}
    for name in UNITS:
        values = np.array([getattr(row, name) for row in slices])
        if not np.isfinite(values).all():
            raise ValueError(f"{name} is not finite: the weights of the snapshot are broken")
        numbers = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
        result[name] = {key: float(number) for key, number in numbers.items()}
    return result


def table(summed: dict[str, dict[str, float]]) -> str:
    """The summary as text."""
    lines = [f"{'':<10}{'mean':>9}{'std':>9}{'min':>9}{'max':>9}"]
    for name, numbers in summed.items():
        digits = 2 if name == "psnr" else 4
        lines.append(f"{UNITS[name]:<10}" + "".join(f"{value:>9.{digits}f}" for value in numbers.values()))
    return "\n".join(lines)


def picture(examples: Sequence[Example]) -> Pixels:
    """One column per example: input, reconstruction, absolute error."""
    from brats_ldm_client.pictures import legend, sheet, to_display
    from training.pictures import ERROR_GAIN, FOOT_GREY

    rows: list[list[tuple[Pixels, str]]] = [[], [], []]
    for example in examples:
        row, difference = example.slice, abs(example.reconstruction - example.image)
        rows[0].append((to_display(example.image), f"{row.volume}, slice {row.slice}"))
        rows[1].append((to_display(example.reconstruction), f"PSNR {row.psnr:.1f} dB, SSIM {row.ssim:.3f}"))
        rows[2].append((to_display(ERROR_GAIN * difference), f"{ERROR_GAIN} x |difference|"))
    explanation = f"input, reconstruction, {ERROR_GAIN} x absolute difference"
    return sheet(rows, [(explanation, FOOT_GREY), (legend(len(examples), len(examples)), FOOT_GREY)])


def run(arguments: Arguments) -> None:
    """Reconstruct, measure, write and print.

    Raises:
        CheckpointError, DataError, ValueError: the snapshot or the volumes cannot be used, or have too few slices.
    """
    from training.checkpoint import AUTOENCODER, load_snapshot
    from training.decathlon import describe_data, read_index
    from training.files import sha256, write_text
    from training.pictures import save_picture

    if arguments.volumes < 0 or arguments.slices_per_volume < 1:
        raise ValueError("--volumes must be 0 (all) or more, and --slices-per-volume 1 or more")
    snapshot = load_snapshot(arguments.snapshot)
    data = describe_data(read_index(arguments.data))
    arguments.out.mkdir(parents=True, exist_ok=True)  # errors come before the work and not after it
    slices, examples = measure(snapshot, arguments)
    summed, volumes = summary(slices), len({row.volume for row in slices})
    record = {
        "autoencoder_sha256": sha256(arguments.snapshot / AUTOENCODER),
        "data": data,
        "section": arguments.section,
        "volumes": volumes,
        "slices_per_volume": arguments.slices_per_volume,
        "data_range": 1.0,
        "metrics": summed,
        "slices": [asdict(row) for row in slices],
        "versions": {package: importlib.metadata.version(package) for package in ("torch", "monai", "numpy")},
    }
    save_picture(picture(examples), arguments.out / "reconstruction.png")
    write_text(arguments.out / "reconstruction.json", json.dumps(record, indent=1) + "\n")
    print(f"{len(slices)} slices of {volumes} {arguments.section} volumes\n{table(summed)}")
    print(arguments.out / "reconstruction.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = tyro.cli(Arguments, prog="python -m training.reconstruct", description=__doc__, args=argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    run_command(main)
