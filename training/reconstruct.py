"""Reconstruct slices with the autoencoder of a snapshot: a picture to look at, PSNR, SSIM and MS-SSIM to compare.

    python -m training.reconstruct --snapshot RUN/snapshot --data DIR --out OUT

Evenly spaced slices of each volume go through encoder and decoder, by the mean of the posterior, so nothing is random.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from training.cli import exit_status, run_command
from training.config import Data, Modality, Spacing

if TYPE_CHECKING:
    import numpy as np
    from monai.networks.nets import AutoencoderKL
    from numpy.typing import NDArray
    from torch import Tensor

    from brats_ldm_client.pictures import Pixels
    from training.checkpoint import Snapshot

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
    """Folder that gets reconstruction.png and reconstruction.json; made if it is not there."""
    section: Literal["validation", "training"] = "validation"
    """The fifth of the volumes that training never sees, or the others."""
    volumes: int = 0
    """The first so many volumes of the section; 0 = all."""
    slices_per_volume: int = 4
    """Evenly spaced slices of each volume."""
    modality: Modality | None = None
    """As data.modality of training; left out, what the snapshot was trained with."""
    spacing: Spacing | None = None
    """As data.spacing of training; left out, what the snapshot was trained with."""

    def reading(self, trained: Data) -> Data:
        """How volumes are read for a model that was trained on `trained`."""
        modality, spacing = self.modality or trained.modality, self.spacing or trained.spacing
        return replace(trained, modality=modality, spacing=spacing)


@dataclass(frozen=True)
class Slice:
    """One slice and how well it came back; `slice` counts from 0 among the axial slices that training uses."""

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
    """Decoded posterior means of images [B, 1, H, W], clipped by nothing. Deterministic."""
    import torch

    with torch.no_grad():
        return torch.cat([autoencoder.decode(autoencoder.encode(part)[0]) for part in images.split(BATCH)])


def measure(snapshot: Snapshot, arguments: Arguments) -> tuple[list[Slice], list[Example]]:
    """All slices with their metrics, and evenly spaced ones of them for the picture.

    Raises:
        DataError, ValueError: no such volumes, or one that cannot be used or has fewer slices than wanted.
    """
    import torch
    from monai.transforms import Compose, DivisiblePadd
    from tqdm import tqdm

    from training.data import evenly_spaced, load_volume, open_volumes, volume_transforms
    from training.decathlon import DataError
    from training.metrics import ms_ssim, reconstruction_metrics
    from training.networks import build_autoencoder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autoencoder = build_autoencoder(snapshot.config.autoencoder).to(device).eval()
    autoencoder.load_state_dict(snapshot.autoencoder)
    # Padded as in stage 1, but neither cropped nor flipped at random.
    config = arguments.reading(snapshot.config.data)
    transform = Compose([*volume_transforms(config), DivisiblePadd(keys="image", k=(4, 4, 1))])
    volumes = open_volumes(arguments.data, arguments.section, transform, config, cache=False)
    count, wanted = min(len(volumes), arguments.volumes or len(volumes)), arguments.slices_per_volume
    if not count:
        raise DataError(
            f"{arguments.data} has no {arguments.section} volumes: one in five is held out, so it takes five"
        )
    shown = set(evenly_spaced(count * wanted, min(COLUMNS, count * wanted)))

    slices: list[Slice] = []
    examples: list[Example] = []
    with tqdm(range(count), desc="reconstructing", unit="volume") as bar:
        for i in bar:
            name = volumes.data[i]["name"]
            volume = load_volume(volumes, i)["image"].as_tensor().float()  # [1, H, W, depth]
            if wanted > volume.shape[-1]:
                raise ValueError(f"--slices-per-volume is {wanted}, but {name} has {volume.shape[-1]} slices")
            places = evenly_spaced(volume.shape[-1], wanted)
            images = volume[..., places].permute(3, 0, 1, 2).contiguous().to(device)
            output = reconstruct(autoencoder, images)
            values = reconstruction_metrics(output, images) | {"ms_ssim": ms_ssim(output, images)}
            columns = zip(places, *(values[metric].tolist() for metric in UNITS), strict=True)
            for j, numbers in enumerate(columns):
                slices.append(Slice(name, *numbers))
                if len(slices) - 1 in shown:
                    examples.append(Example(slices[-1], images[j, 0].cpu().numpy(), output[j, 0].cpu().numpy()))
    return slices, examples


def summary(slices: Sequence[Slice]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation over slices, least and largest value of each metric.

    Raises:
        ValueError: a value is not finite, as from weights that hold NaN.
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
    """`summary` for people."""
    lines = [f"{'':<10}{'mean':>9}{'std':>9}{'min':>9}{'max':>9}"]
    for name, numbers in summed.items():
        digits = 2 if name == "psnr" else 4
        lines.append(f"{UNITS[name]:<10}" + "".join(f"{value:>9.{digits}f}" for value in numbers.values()))
    return "\n".join(lines)


def picture(examples: Sequence[Example]) -> Pixels:
    """Input, reconstruction and absolute error of each example below each other."""
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
        CheckpointError, DataError, ValueError: an unusable snapshot, no such volumes, or too few slices in one.
    """
    from training.checkpoint import AUTOENCODER, load_snapshot
    from training.decathlon import describe_data, read_index
    from training.files import sha256, write_text
    from training.pictures import save_picture

    if arguments.volumes < 0 or arguments.slices_per_volume < 1:
        raise ValueError("--volumes must be 0 (all) or more, and --slices-per-volume 1 or more")
    snapshot = load_snapshot(arguments.snapshot)
    data = describe_data(read_index(arguments.data))
    arguments.out.mkdir(parents=True, exist_ok=True)  # fails before the work rather than after it
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
