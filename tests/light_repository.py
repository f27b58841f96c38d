"""The committed model repository with a few bytes in place of weights, for tests that run no network."""

import json
import shutil
from pathlib import Path
from typing import Any

from common import ROOT
from training.files import sha256

NETWORKS = ("unet", "vae_decoder")
Manifest = dict[str, Any]


def copy_light(folder: Path) -> Path:
    """A copy with model.onnx and model.fp16.onnx, and a manifest."""
    ignore = shutil.ignore_patterns("__pycache__", "*.onnx", "*.plan", "*.pt2")
    shutil.copytree(ROOT / "model_repository", folder, ignore=ignore)
    for model in NETWORKS:
        for name in ("model.onnx", "model.fp16.onnx"):
            (folder / model / "1").mkdir(exist_ok=True)
            (folder / model / "1" / name).write_text(f"{name} of {model}")
    write_manifest(folder, {"name": "light"})
    return folder


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """With the hashes of what is there now."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    hashes = {str(path.relative_to(folder)): sha256(path) for path in files}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": hashes}))
