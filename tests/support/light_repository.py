"""The committed model repository with a few bytes in place of weights, for tests that run no network."""

import json
import shutil
from pathlib import Path
from typing import Any

from export.configs import FRONT_MODELS, TINY_MODEL, write_condition, write_steps_configs, write_tiny_configs
from support.common import ROOT
from training.files import sha256, write_text

NETWORKS = ("unet", "vae_decoder")
Manifest = dict[str, Any]


def copy_light(folder: Path) -> Path:
    """A copy with model.onnx and model.fp16.onnx, and a manifest; without a tiny decoder."""
    ignore = shutil.ignore_patterns("__pycache__", "*.onnx", "*.plan", "*.pt2", TINY_MODEL)
    shutil.copytree(ROOT / "model_repository", folder, ignore=ignore)
    set_rows(folder, {"unet": 64, "vae_decoder": 4})
    for model in NETWORKS:
        for name in ("model.onnx", "model.fp16.onnx"):
            (folder / model / "1").mkdir(exist_ok=True)
            (folder / model / "1" / name).write_text(f"{name} of {model}")
    write_manifest(folder, {"name": "light"})
    return folder


def _record() -> dict[str, Any]:
    """The committed model.json without the aligned timesteps, which are of the demo weights."""
    record: dict[str, Any] = json.loads((ROOT / "model_repository" / "mri_ldm" / "1" / "model.json").read_text())
    record.pop("aligned_timesteps", None)
    return record


def set_rows(folder: Path, rows: dict[str, int]) -> None:
    """The networks of such a copy and the most rows of their calls, in model.json."""
    record = _record()
    for front in FRONT_MODELS:
        write_text(folder / front / "1" / "model.json", json.dumps(record | {"max_batch_size": rows}))


def add_tiny(folder: Path) -> None:
    """Give such a copy a tiny decoder, as export does."""
    write_tiny_configs(folder / TINY_MODEL)
    (folder / TINY_MODEL / "1").mkdir()
    for name in ("model.onnx", "model.fp16.onnx"):
        (folder / TINY_MODEL / "1" / name).write_text(f"{name} of {TINY_MODEL}")
    set_rows(folder, {"unet": 64, "vae_decoder": 4, TINY_MODEL: 16})
    write_manifest(folder, {"name": "light"})


def add_steps(folder: Path, steps: int) -> None:
    """Give such a copy unet_steps, as export does."""
    write_steps_configs(folder / "unet_steps", steps)
    write_condition(folder / "unet_steps", folder / "unet_steps", 4)  # the demo weights take labels
    (folder / "unet_steps" / "1").mkdir()
    for name in ("model.onnx", "model.fp16.onnx"):
        (folder / "unet_steps" / "1" / name).write_text(f"{name} of unet_steps")
    record = _record()
    record |= {"max_batch_size": {"unet": 64, "vae_decoder": 4, "unet_steps": 64}, "steps_per_call": steps}
    for front in ("mri_ldm", "mri_ldm_stream"):
        write_text(folder / front / "1" / "model.json", json.dumps(record))
    write_manifest(folder, {"name": "light"})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """With the hashes of what is there now."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    hashes = {str(path.relative_to(folder)): sha256(path) for path in files}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": hashes}))
