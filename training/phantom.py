"""Phantom data: a folder in the format of the Medical Segmentation Decathlon's Task01_BrainTumour.

The anatomy is ONE averaged template, deformed at random: the ICBM152 2009a tissue maps in nilearn's wheel. Contrasts,
noise and lesions are invented. No volume shows a patient, and no lesion is a real pathology. The data exercise the code
where BraTS cannot be downloaded. They support no clinical conclusion and no claim about real images.

    python -m training.phantom --out DIR --volumes N --seed S
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

RECIPE = 1  # increase it when the same (seed, index) gives other voxels: two recipes must not mix in a folder
NOTICE = "SYNTHETIC PHANTOM from the ICBM152 template; not a patient"
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


def claim(folder: Path, seed: int) -> None:
    """Record `seed` in the folder. Refuse a folder with other data, because two seeds would mix without notice."""
    record, wanted = folder / "phantom.json", json.dumps({"seed": seed, "recipe": RECIPE})
    if not record.exists():
        if any(folder.glob("[!.]*")):  # a second run may be writing under a hidden name
            raise ValueError(f"{folder} holds data that is not a phantom; choose another --out")
        write_text(record, wanted + "\n")
    if (content := record.read_text(errors="replace").strip()) != wanted:
        raise ValueError(f"{record} says {content or 'nothing'}, not {wanted}; use that or another --out")


def index(volumes: int, seed: int) -> dict[str, Any]:
    """The dataset.json of the Decathlon for `volumes` volumes."""
    names = (f"BRATS_{i + 1:03d}.nii.gz" for i in range(volumes))
    return {
        "name": "BRATS",
        "description": f"{NOTICE}. No real pathology; no clinical use. seed {seed}, recipe {RECIPE}",
        "reference": "ICBM152 2009a symmetric template, as shipped with nilearn",
        "licence": "that of the template",
        "tensorImageSize": "4D",
        "modality": MODALITIES,
        "labels": LABELS,
        "numTraining": volumes,
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [],
    }


def write_dataset(out: Path, volumes: int, seed: int) -> Path:
    """Make sure that `out` holds volumes 1 to `volumes` of `seed`; returns its Task01_BrainTumour folder.

    Volume i depends on (seed, i) alone, and complete volumes are kept. So a run can be repeated after an interruption,
    or for more volumes. dataset.json is written last and lists exactly the requested volumes.
    """
    import numpy as np
    from tqdm import tqdm

    from training.phantom_volume import load_template, make_volume

    if volumes < 1 or not 0 <= seed < 2**64:
        raise ValueError(f"need volumes >= 1 and 0 <= seed < 2**64, not {volumes} and {seed}")
    folder = out / TASK
    claim(folder, seed)
    content, template = index(volumes, seed), None
    for i, entry in enumerate(tqdm(content["training"], desc="phantom", unit="volume")):
        paths = [folder / name for name in entry.values()]
        if all(path.exists() for path in paths):
            continue
        template = template or load_template()
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
    args = parser.parse_args(argv)
    return exit_status(lambda: print(write_dataset(args.out, args.volumes, args.seed)))


if __name__ == "__main__":
    run_command(main)
