"""Repositories to measure: the front model of one, beside toy networks or its own, and a model of bare calls."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from export.configs import parse_config
from training.files import write_text

MODELS = Path(__file__).parent / "models"
FRONT = "mri_ldm"
CALLS = "bls_calls"
NETWORKS = ("unet", "vae_decoder", "unet_steps")


def write_toy(source: Path, folder: Path, steps: int) -> Path:
    """The front model of `source` on toy networks, with `unet_steps` where a call may have more than one step."""
    _write_front(source, folder)
    for model in ("unet", "vae_decoder", *(["unet_steps"] if steps > 1 else [])):
        _copy_model(model, folder)
    if steps > 1:
        path = folder / FRONT / "1" / "model.json"
        write_text(path, json.dumps(json.loads(path.read_text()) | {"steps_per_call": steps}))
        config = parse_config(folder / FRONT / "config.pbtxt")
        for name, value in {"steps_per_call": steps, "any_steps": 1}.items():
            config.parameters[name].string_value = str(value)
        write_text(folder / FRONT / "config.pbtxt", str(config))
    return folder


def write_own(source: Path, folder: Path) -> Path:
    """The front model of `source` beside its own networks."""
    _write_front(source, folder)
    for model in NETWORKS:
        if (source / model).is_dir():
            (folder / model).symlink_to((source / model).resolve())
    return folder


def _write_front(source: Path, folder: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source / FRONT, folder / FRONT, ignore=ignore)
    _copy_model(CALLS, folder)


def _copy_model(model: str, folder: Path) -> None:
    (folder / model / "1").mkdir(parents=True)
    shutil.copy(MODELS / model / "config.pbtxt", folder / model)
    shutil.copy(MODELS / model / "model.py", folder / model / "1")
