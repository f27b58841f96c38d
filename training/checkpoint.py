"""The two artifacts of training: the snapshot (what export reads) and the resume state (what training reads).

Both are written to a temporary name and renamed, so an interruption leaves the one before.
"""

import hashlib
import importlib.metadata
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from training.config import Config, config_from_dict

FORMAT_VERSION = 1
AUTOENCODER = "autoencoder.safetensors"
UNET = "unet.safetensors"
StateDict = dict[str, torch.Tensor]


class CheckpointError(ValueError):
    """A snapshot or resume state that cannot be used; the message names the path."""


@dataclass(frozen=True)
class Snapshot:
    """Weights with everything that gives them meaning.

    scale_factor and unet are None after stage 1. history: by stage, how the weights were made.
    """

    config: Config
    autoencoder: StateDict
    unet: StateDict | None = None
    scale_factor: float | None = None
    history: dict[str, Any] = field(default_factory=dict)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def save_snapshot(snapshot: Snapshot, folder: Path) -> None:
    """Write `folder`/snapshot.json and its safetensors files; snapshot.json, written last, seals them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {AUTOENCODER: snapshot.autoencoder}
    if snapshot.unet is not None:
        weights[UNET] = snapshot.unet
    for name, tensors in weights.items():
        temporary = folder / f"{name}.tmp"
        save_file({key: tensor.detach().cpu().float().contiguous() for key, tensor in tensors.items()}, temporary)
        os.replace(temporary, folder / name)
    record = {
        "format_version": FORMAT_VERSION,
        "config": asdict(snapshot.config),
        "scale_factor": snapshot.scale_factor,
        "history": snapshot.history,
        "versions": {package: importlib.metadata.version(package) for package in ("torch", "monai", "numpy")},
        "sha256": {name: sha256(folder / name) for name in weights},
    }
    temporary = folder / "snapshot.json.tmp"
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, folder / "snapshot.json")


def load_snapshot(folder: Path) -> Snapshot:
    """Read a snapshot folder and verify its hashes.

    Raises:
        CheckpointError: something is missing, of another format, or not what snapshot.json says.
    """
    path = folder / "snapshot.json"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give the snapshot folder of a training run")
    record = json.loads(path.read_text())
    if record.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {record.get('format_version')}, this version reads {FORMAT_VERSION}")
    weights: dict[str, StateDict] = {}
    for name, digest in record["sha256"].items():
        if name not in (AUTOENCODER, UNET):
            raise CheckpointError(f"{path}: unknown weights file {name!r}")
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: missing, or not the file that snapshot.json describes")
        weights[name] = load_file(folder / name)
    config = config_from_dict(record["config"], str(path))
    return Snapshot(config, weights[AUTOENCODER], weights.get(UNET), record["scale_factor"], record["history"])


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a resume state: nested dictionaries of tensors and plain values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The resume state at `path`, or None where there is none."""
    return torch.load(path, weights_only=True, map_location="cpu") if path.is_file() else None
