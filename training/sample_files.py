"""Sampled slices on disk, with names and records as the client has them: PNG, npz, contact sheet and provenance.json.

Every file is complete or absent. provenance.json is written last, so all files that it names are there. Knows nothing
of networks.
"""

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brats_ldm_client.pictures import NOTICE, SHEET_LIMIT, SOURCE_TYPE, Pixels, legend, png, sheet, to_display
from training.files import sha256, whole_file, write_npz, write_text
from training.pictures import FOOT_GREY, save_picture

Array = NDArray[np.float32]


def recipe(snapshot: Path, steps: int) -> dict[str, Any]:
    """The record of how images were made, without the seed; `snapshot` is the folder of the weights."""
    weights = sorted(snapshot.glob("*.safetensors"))
    packages = ("torch", "monai", "numpy")
    return {
        "synthetic": True,
        "sampler": "ddim",
        "steps": steps,
        "eta": 0.0,
        "timestep_grid": "leading",
        "start_noise": "seed",
        "made_by": "training.sample",
        "weights_sha256": {path.name: sha256(path) for path in weights},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def claim_folder(out: Path) -> None:
    """Make the folder, before any work.

    Raises:
        ValueError, OSError: it holds images already, or cannot be made.
    """
    if (out / "provenance.json").exists():
        raise ValueError(f"{out} holds generated images already: give another --out")
    out.mkdir(parents=True, exist_ok=True)


def write_samples(
    out: Path,
    seeds: Sequence[int],
    images: NDArray[np.float32],
    latents: NDArray[np.float32],
    record: Mapping[str, Any],
) -> None:
    """Write all files.

    images: float32 [n, H, W]; latents: float32 [n, 1, 64, 64]; record: what `recipe` gives.
    """
    entries = []
    for seed, image in zip(seeds, images, strict=True):
        path = out / f"slice_seed{seed:09d}.png"
        entry = {"seed": seed, **record}
        with whole_file(path) as temporary:
            temporary.write_bytes(png(to_display(image), entry, xmp=False))
        entries.append({"file": path.name, "sha256": sha256(path), **entry})
    texts = {"notice": NOTICE, "provenance": json.dumps(record)}
    write_npz(out / "images.npz", images=images, latents=latents, seeds=np.array(seeds, np.int64), **texts)
    save_picture(_contact_sheet(seeds, images), out / "contact_sheet.png")
    document = {"synthetic": True, "notice": NOTICE, "digital_source_type": SOURCE_TYPE, "images": entries}
    write_text(out / "provenance.json", json.dumps(document, indent=1) + "\n")


def _contact_sheet(seeds: Sequence[int], images: Array) -> Pixels:
    """The first 64 images with their seeds, about as wide as high."""
    pictures = [
        (to_display(image), f"seed {seed}")
        for seed, image in zip(seeds[:SHEET_LIMIT], images[:SHEET_LIMIT], strict=True)
    ]
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = [pictures[first : first + columns] for first in range(0, len(pictures), columns)]
    return sheet(rows, [(NOTICE, FOOT_GREY), (legend(len(pictures), len(seeds)), FOOT_GREY)])
