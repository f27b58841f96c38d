"""Folders of slices, for evaluation: reads what the client writes, and writes real slices for comparison.

    python -m training.evaluation.slices --data DIR --section validation --out REAL --count 1000
    python -m training.evaluation.slices --data DIR --section training --out TRAINING

Writes one compressed npz per volume: `images` [n, 240, 240], scaled and oriented as for the networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from training.cli import exit_status, run_command
from training.config import Data, Modality, Spacing
from training.file_problems import describe_file, list_problems

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE = 240  # pixels of 1 mm
OVERSHOOT = 5.0  # decoders have reached 2.4; raw values of scanners are in the hundreds
SUFFIXES = (
    ".npz",
    ".nii.gz",
    ".nii",
    "_16bit.png",
    ".png",
)  # by precision: of several formats in a folder the first is read
_LEVELS = {"L": 255, "I;16": 65535, "I": 65535}  # by mode; older Pillows say I of a PNG of 16 bits
ADVICE = "slices are 240 x 240 with values in [0, 1], as the client and training.evaluation.slices write them"


class SliceError(ValueError):
    """A folder or file of slices that cannot be used; the message names its path."""


class Slices(NamedTuple):
    """The slices of a folder, sorted by file name."""

    images: "NDArray[np.float32]"  # [n, 240, 240] in [0, 1]; axes point to patient Right and Anterior
    names: list[str]  # for each slice its file, with an index if the file holds several


@dataclass(frozen=True)
class Arguments:
    """Command line of the writer."""

    data: Path
    """Folder that holds Task01_BrainTumour."""
    section: Literal["training", "validation"]
    """training: slices that a model may have memorised. validation: the volumes that no stage trains on."""
    out: Path
    """New or empty folder for the slices."""
    count: int = 0
    """Number of slices, drawn at random from all volumes; 0 = all, 100 per volume (about 4 MB)."""
    channel: int = 0
    """Modality: 0 FLAIR, 1 T1w, 2 T1gd, 3 T2w. Names in dataset.json may give it another index."""
    modality: Modality = "named"
    """any = use the channel with the index `channel`, whatever dataset.json calls it."""
    spacing: Spacing = "1mm"
    """any = accept voxels of any size."""
    seed: int = 0
    """The same seed draws the same slices."""


def read_slices(folder: Path) -> Slices:
    """All slices of a folder; a slice takes 230 kB of memory.

    If a folder has several formats, only one is read, because they hold the same images: npz, else NIfTI, else PNG of
    16 bits, else PNG of 8.
    Contact sheets and hidden files are left out, such as the companion files of macOS.

    Raises:
        SliceError: there is nothing to read, or there are files that cannot be read or have another shape, range or
            spacing; all of these are named.
    """
    import numpy as np
    from tqdm import tqdm

    if not folder.is_dir():
        raise SliceError(f"{folder} is not a folder: give a folder of slices, .npz, .nii.gz or .png")
    files = [path for path in sorted(folder.iterdir()) if path.name[0] != "." and path.name != "contact_sheet.png"]
    chosen = next((suffix for suffix in SUFFIXES if any(path.name.endswith(suffix) for path in files)), None)
    if chosen is None:
        raise SliceError(f"{folder} holds no .npz, .nii.gz or .png file: {ADVICE}")
    files = [path for path in files if path.name.endswith(chosen)]
    images, names, problems = [], [], []
    for path in tqdm(files, desc=f"reading {folder.name}", unit="file", leave=False):
        try:
            part = read_images(path, _READERS[chosen])
        except SliceError as error:
            problems.append(str(error))
            continue
        images.append(part)
        names += [path.name] if len(part) == 1 else [f"{path.name}[{index}]" for index in range(len(part))]
    if problems:
        raise SliceError(list_problems("files", problems, ADVICE))
    return Slices(np.concatenate(images), names)


def read_images(path: Path, read: "Callable[[Path], NDArray[Any]]") -> "NDArray[np.float32]":
    """The slices of one file, float32 [n, 240, 240] in [0, 1]; clipped, because decoders overshoot.

    Raises:
        SliceError: the file cannot be read, or has another shape or range.
    """
    images = read_planes(path, read)
    if not (abs(images) <= OVERSHOOT).all():
        raise SliceError(f"{path} has values from {images.min():g} to {images.max():g}")
    return images.clip(0, 1)


def read_planes(path: Path, read: "Callable[[Path], NDArray[Any]]") -> "NDArray[np.float32]":
    """What `read` finds in a file, float32 [n, 240, 240]. Raises SliceError if it cannot, or the shape is another."""
    import numpy as np

    try:
        planes = np.asarray(read(path), np.float32)
    except Exception as error:  # a damaged file can make its reader fail in any way
        raise SliceError(describe_file(path, error)) from None
    if planes.ndim != 3 or planes.shape[1:] != (SIDE, SIDE) or not len(planes):
        raise SliceError(f"{path} has the shape {list(planes.shape)}")
    return planes


def _read_npz(path: Path) -> "NDArray[Any]":
    import zipfile

    import numpy as np

    if not zipfile.is_zipfile(path):  # NumPy would try to read it as a pickle
        raise ValueError("it is no npz archive")
    with np.load(path) as archive:
        images: NDArray[Any] = archive["images"]
    return images


def read_nifti(path: Path) -> "NDArray[Any]":
    """The slices of a NIfTI file [n, x, y]; axes point to patient Right and Anterior. Raises any error of a reader."""
    import nibabel as nib

    from training.nifti import TOLERANCE, check_whole, in_mm, open_nifti, spacing

    check_whole(path)
    image = open_nifti(path)
    sizes = spacing(image)
    if abs(sizes[:2] - 1).max() > TOLERANCE:
        raise ValueError(f"its pixels are {in_mm(sizes[:2])}, and 1 x 1 mm is needed")
    voxels = image.get_fdata(dtype="float32")
    if voxels.ndim == 2:  # one slice
        voxels = voxels[..., None]
    volume = nib.as_closest_canonical(nib.squeeze_image(nib.Nifti1Image(voxels, image.affine)))
    if volume.ndim != 3:
        raise ValueError(f"its shape is {volume.shape}, and slices have two axes or, counted by the third, three")
    return volume.get_fdata(dtype="float32").transpose(2, 0, 1)  # axes Right, Anterior; Superior counts slices


def _read_png(path: Path) -> "NDArray[Any]":
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        if picture.mode not in _LEVELS:
            raise ValueError(f"its mode is {picture.mode}, and grey of 8 or 16 bits is needed: L or I;16")
        pixels = np.asarray(picture).astype(np.float32) / _LEVELS[picture.mode]
    return pixels[None, ::-1, ::-1].transpose(0, 2, 1)  # anterior up, patient right on the left


_READERS = dict(zip(SUFFIXES, (_read_npz, read_nifti, read_nifti, _read_png, _read_png), strict=True))


def write_slices(arguments: Arguments) -> str:
    """Make the folder; returns a line on its content. Values are stored as float16, with errors below 0.0003.

    Raises:
        SliceError: the folder is not empty, or there are too few slices.
        DataError: the data folder or a volume in it cannot be used.
        NotWritten: the disk is full, or a similar error.
    """
    import numpy as np
    from monai.transforms import Compose
    from tqdm import tqdm

    from training.data import load_volume, open_volumes, volume_transforms
    from training.files import whole_folder, write_npz

    config = Data(channel=arguments.channel, modality=arguments.modality, spacing=arguments.spacing)
    out = arguments.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SliceError(f"{out} exists and is not an empty folder: give a new --out")
    transform = Compose(volume_transforms(config))
    volumes = open_volumes(arguments.data, arguments.section, transform, config, cache=False)
    total = len(volumes) * config.depth
    if not 0 <= arguments.count <= total:
        raise SliceError(f"--count {arguments.count}: the section has {total} slices; give 1 to {total}, or 0 for all")
    drawn = np.random.default_rng(arguments.seed).permutation(total)[: arguments.count or total]
    by_volume = [np.sort(drawn[drawn // config.depth == index] % config.depth) for index in range(len(volumes))]

    bar = tqdm(by_volume, desc=f"{arguments.section} volumes", unit="volume")
    with whole_folder(out) as new:
        for index, chosen in enumerate(bar):
            if len(chosen):
                images = np.asarray(load_volume(volumes, index)["image"])[0].transpose(2, 0, 1)[chosen]
                file = new / f"{volumes.data[index]['name']}.npz"
                write_npz(file, images=images.astype(np.float16), slices=chosen)
    return f"{len(drawn)} slices of {len(list(out.glob('*.npz')))} {arguments.section} volumes: {out}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    import tyro

    arguments = tyro.cli(Arguments, prog="python -m training.evaluation.slices", description=__doc__, args=argv)
    return exit_status(lambda: print(write_slices(arguments)))


if __name__ == "__main__":
    run_command(main)
