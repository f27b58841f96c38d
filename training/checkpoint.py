"""The two artifacts of training: the snapshot (what export reads) and the resume state (what training reads).

Both are written under a temporary name and renamed when whole.
"""

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from training.config import Config, config_from_dict
from training.files import sha256, whole_file, write_text

FORMAT_VERSION = 1
AUTOENCODER = "autoencoder.safetensors"
UNET = "unet.safetensors"
RECORD = ("config", "scale_factor", "history", "sha256")  # what snapshot.json holds besides its format
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


def save_snapshot(snapshot: Snapshot, folder: Path) -> None:
    """Write `folder`/snapshot.json and its safetensors files, beside `folder` first and then in its place.

    An interruption leaves the snapshot before or the new one, whole; where it came between the two renames, the next
    `save_snapshot` or `load_snapshot` puts it in its place.
    """
    weights = {AUTOENCODER: snapshot.autoencoder}
    if snapshot.unet is not None:
        weights[UNET] = snapshot.unet
    new, old = _beside(folder)
    _finish_interrupted(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    for name, tensors in weights.items():
        save_file({key: tensor.detach().cpu().float().contiguous() for key, tensor in tensors.items()}, new / name)
    record = {
        "format_version": FORMAT_VERSION,
        "config": asdict(snapshot.config),
        "scale_factor": snapshot.scale_factor,
        "history": snapshot.history,
        "sha256": {name: sha256(new / name) for name in weights},
    }
    write_text(new / "snapshot.json", json.dumps(record, indent=2) + "\n")
    if folder.exists():
        folder.rename(old)
    with suppress(FileNotFoundError):  # a reader that came just now has taken it for interrupted
        new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")


def _finish_interrupted(folder: Path) -> None:
    """Do the second rename of a `save_snapshot` that ended between its two: `folder`.new is then whole."""
    new, old = _beside(folder)
    if folder.exists() or not old.is_dir():
        return
    with suppress(FileNotFoundError):  # its writer lives and was faster
        (new if (new / "snapshot.json").is_file() else old).rename(folder)


def load_snapshot(folder: Path) -> Snapshot:
    """Read a snapshot folder and verify its hashes.

    Raises:
        CheckpointError: something is missing, of another format, or not what snapshot.json says.
    """
    _finish_interrupted(folder)
    path = folder / "snapshot.json"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give the snapshot folder of a training run")
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {version}, this version reads {FORMAT_VERSION}")
    if lacking := [name for name in RECORD if name not in record]:
        raise CheckpointError(f"{path} has no {', '.join(lacking)}: give the snapshot folder of a training run")
    weights: dict[str, StateDict] = {}
    for name, digest in record["sha256"].items():
        if name not in (AUTOENCODER, UNET):
            raise CheckpointError(f"{path}: unknown weights file {name!r}")
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: missing, or not the file that snapshot.json describes")
        weights[name] = load_file(folder / name)
    if AUTOENCODER not in weights:
        raise CheckpointError(f"{path} names no {AUTOENCODER}: give the snapshot folder of a training run")
    config = config_from_dict(record["config"], str(path))
    return Snapshot(config, weights[AUTOENCODER], weights.get(UNET), record["scale_factor"], record["history"])


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a resume state: nested dictionaries of tensors and plain values."""
    with whole_file(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> dict[str, Any] | None:
    """The resume state at `path`, or None where there is none.

    Raises:
        CheckpointError: the file is torn, or something else.
    """
    if not path.is_file():
        return None
    advice = "delete it to begin again at iteration 0, or give a new --out"
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a torn archive can upset the reader in any way
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {reason}): {advice}") from error
    if not isinstance(state, dict) or "iteration" not in state:
        raise CheckpointError(f"{path} is no resume state of a training run: {advice}")
    return state
