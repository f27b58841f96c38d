"""Phantom data: a folder in the format of the Medical Segmentation Decathlon's Task01_BrainTumour.

The anatomy is ONE head, deformed at random: the averaged ICBM152 2009a template in nilearn's wheel or, with --colin27,
the sharper Colin27, a healthy volunteer who was scanned 27 times. Contrasts, noise and lesions are invented. No volume
shows a patient, and no lesion is a real pathology. The data exercise the code where BraTS cannot be downloaded. They
support no clinical conclusion and no claim about real images.

    python -m training.phantom --out DIR --volumes N --seed S [--colin27 ch2better.nii.gz]
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.cli import exit_status, run_command
from training.decathlon import TASK
from training.files import whole_file, write_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECIPE = 2  # increase it when the same (seed, index) gives other voxels: two recipes must not mix in a folder
NOTICE = "SYNTHETIC PHANTOM from a template; not a patient"
ICBM152 = "ICBM152 2009a symmetric template, as shipped with nilearn"
COLIN27 = "Colin27 template, as shipped with MRIcron"
LABELS = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
MODALITIES = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}


def save_nifti(path: Path, data: NDArray[np.int16] | NDArray[np.uint8]) -> None:
    """Write a file completely or not at all. The same data give the same bytes: the gzip header has no time or name."""
    import nibabel as nib
    import numpy as np

    nifti = nib.Nifti1Image(data, np.eye(4))
    nifti.header["descrip"] = NOTICE.encode()
    nifti.header.set_xyzt_units("mm")
    with whole_file(path) as temporary, temporary.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as stream:
        nifti.to_stream(stream)


def claim(folder: Path, seed: int, template: str) -> None:
    """Record what the folder holds. Refuse a folder with other data, because two seeds would mix without notice."""
    record, wanted = folder / "phantom.json", json.dumps({"seed": seed, "recipe": RECIPE, "template": template})
    if not record.exists():
        if any(folder.glob("[!.]*")):  # a second run may be writing under a hidden name
            raise ValueError(f"{folder} holds data that is not a phantom; choose another --out")
        write_text(record, wanted + "\n")
    if (content := record.read_text(errors="replace").strip()) != wanted:
        raise ValueError(f"{record} says {content or 'nothing'}, not {wanted}; use that or another --out")


def index(volumes: int, seed: int, template: str) -> dict[str, Any]:
    """The dataset.json of the Decathlon for `volumes` volumes."""
    names = (f"BRATS_{i + 1:03d}.nii.gz" for i in range(volumes))
    return {
        "name": "BRATS",
        "description": f"{NOTICE}. No real pathology; no clinical use. seed {seed}, recipe {RECIPE}",
        "reference": template,
        "licence": "that of the template",
        "tensorImageSize": "4D",
        "modality": MODALITIES,
        "labels": LABELS,
        "numTraining": volumes,
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [],
    }


def write_dataset(out: Path, volumes: int, seed: int, colin27: Path | None = None) -> Path:
    """Make sure that `out` holds volumes 1 to `volumes` of `seed`; returns its Task01_BrainTumour folder.

    colin27: the file of that template; without it the anatomy is ICBM152's.
    Volume i depends on the template and (seed, i) alone, and complete volumes are kept. So a run can be repeated after
    an interruption, or for more volumes. dataset.json is written last and lists exactly the requested volumes.
    """
    import numpy as np
    from tqdm import tqdm

    from training import phantom_template
    from training.phantom_volume import make_volume

    if volumes < 1 or not 0 <= seed < 2**64:
        raise ValueError(f"need volumes >= 1 and 0 <= seed < 2**64, not {volumes} and {seed}")
    folder, anatomy = out / TASK, COLIN27 if colin27 else ICBM152
    claim(folder, seed, anatomy)
    content, template = index(volumes, seed, anatomy), None
    for i, entry in enumerate(tqdm(content["training"], desc="phantom", unit="volume")):
        paths = [folder / name for name in entry.values()]
        if all(path.exists() for path in paths):
            continue
        template = template or (phantom_template.colin27(colin27) if colin27 else phantom_template.icbm152())
        rng = np.random.Generator(np.random.Philox(key=[seed, i]))
        image, labels = make_volume(template, rng)
        save_nifti(paths[0], image)
        save_nifti(paths[1], labels)
    write_text(folder / "dataset.json", json.dumps(content, indent=1) + "\n")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see --help."""
    text = f"Write {TASK}/ for monai.apps.DecathlonDataset. {NOTICE}; not for clinical use."
    parser = argparse.ArgumentParser("python -m training.phantom", description=text)
    parser.add_argument("--out", type=Path, required=True, help=f"gets {TASK}/; a repeated run completes it")
    parser.add_argument("--volumes", type=int, default=50, help="number of volumes, 11 MB each (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="one seed per folder, 0 or more (default %(default)s)")
    text = "file of the Colin27 template (Debian's mricron-data has it); default: the averaged ICBM152"
    parser.add_argument("--colin27", type=Path, metavar="ch2better.nii.gz", help=text)
    args = parser.parse_args(argv)
    return exit_status(lambda: print(write_dataset(args.out, args.volumes, args.seed, args.colin27)))


if __name__ == "__main__":
    run_command(main)
