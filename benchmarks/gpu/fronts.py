"""Front models beside `mri_ldm`, each with its number of steps a call: one server and its networks measure them all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from export.configs import parse_config
from training.files import write_text

FRONT = "mri_ldm"


def front(steps_a_call: int) -> str:
    """The name of the front model that has so many steps in a call."""
    return f"{FRONT}_{steps_a_call}"


def add_fronts(repository: Path, steps_a_call: Sequence[int]) -> None:
    """Beside `mri_ldm`, which chooses: copies for fixed numbers of steps a call, with the same networks; 1 is `unet`.

    None where there is no `unet_steps`.
    """
    if not (repository / "unet_steps").is_dir():
        return
    for steps in steps_a_call:
        folder = repository / front(steps)
        shutil.copytree(repository / FRONT, folder)
        record = json.loads((folder / "1" / "model.json").read_text())
        if steps == 1:
            del record["steps_per_call"]
            write_text(folder / "1" / "model.json", json.dumps(record))
        for path in (folder / "config.pbtxt", *folder.glob("configs/*.pbtxt")):
            config = parse_config(path)
            config.name = folder.name
            config.parameters["steps_per_call"].string_value = str(steps)
            write_text(path, str(config))
