"""The two artifacts of training: the snapshot (what export reads) and the resume state (what training reads).

Both are written under a temporary name and renamed when they are complete.
"""

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from training.conditioning import narrowed, widened
from training.config import Config, UNet, config_from_dict
from training.files import duplicate, finish_interrupted, sha256, utf8_name, whole_file, whole_folder, write_text

FORMAT_VERSION = 1
AUTOENCODER = "autoencoder.safetensors"
UNET = "unet.safetensors"
TINY_DECODER = "tiny_decoder.safetensors"
RECORD = ("config", "scale_factor", "history", "sha256")  # in snapshot.json, besides the version of its format
ADVICE = "begin again at iteration 0, or keep the snapshot and give a new --out"
StateDict = dict[str, torch.Tensor]


class CheckpointError(ValueError):
    """A snapshot or resume state that cannot be used; the message names the path."""


@dataclass(frozen=True)
class Snapshot:
    """Weights with everything that gives them meaning.

    scale_factor and unet are None after stage 1, and tiny_decoder is None before `training.distil_decoder`.
    history: a record of the training, by stage. aligned_timesteps: grids that were optimised for the weights, one for
    each of some numbers of steps (`training.align_steps`).
    """

    config: Config
    autoencoder: StateDict
    unet: StateDict | None = None
    scale_factor: float | None = None
    history: dict[str, Any] = field(default_factory=dict)
    tiny_decoder: StateDict | None = None
    aligned_timesteps: tuple[tuple[int, ...], ...] = ()


def save_snapshot(snapshot: Snapshot, folder: Path) -> None:
    """Write `folder`/snapshot.json and its safetensors files: all of them or none, see `whole_folder`.

    Raises:
        NotWritten: the disk is full, or a similar error. The previous snapshot is kept.
    """
    parts = {AUTOENCODER: snapshot.autoencoder, UNET: snapshot.unet, TINY_DECODER: snapshot.tiny_decoder}
    weights = {name: tensors for name, tensors in parts.items() if tensors is not None}
    with whole_folder(folder) as new:
        for name, tensors in weights.items():
            plain = {key: tensor.detach().cpu().float().contiguous() for key, tensor in tensors.items()}
            with whole_file(new / name) as temporary:
                save_file(plain, temporary)
        record = {
            "format_version": FORMAT_VERSION,
            "config": asdict(snapshot.config),
            "scale_factor": snapshot.scale_factor,
            "history": snapshot.history,
            **({"aligned_timesteps": snapshot.aligned_timesteps} if snapshot.aligned_timesteps else {}),
            "sha256": {name: sha256(new / name) for name in weights},
        }
        write_text(new / "snapshot.json", json.dumps(record, indent=2) + "\n")


def load_snapshot(folder: Path) -> Snapshot:
    """Read a snapshot folder and verify its hashes.

    Raises:
        CheckpointError: a file is missing, has another format, or does not match snapshot.json.
    """
    finish_interrupted(folder)
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
        if name not in (AUTOENCODER, UNET, TINY_DECODER):
            raise CheckpointError(f"{path}: unknown weights file {name!r}")
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: missing, or not the file that snapshot.json describes")
        with utf8_name(folder / name) as readable:
            weights[name] = load_file(readable)
    if AUTOENCODER not in weights:
        raise CheckpointError(f"{path} names no {AUTOENCODER}: give the snapshot folder of a training run")
    return Snapshot(
        config_from_dict(record["config"], str(path)),
        weights[AUTOENCODER],
        weights.get(UNET),
        record["scale_factor"],
        record["history"],
        weights.get(TINY_DECODER),
        tuple(tuple(grid) for grid in record.get("aligned_timesteps", ())),
    )


def takes_labels(snapshot: Snapshot) -> bool:
    """Whether the UNet can be given label maps."""
    return snapshot.config.unet.conditioning == "labels"


def without_labels(snapshot: Snapshot) -> Snapshot:
    """The snapshot with a UNet that takes no labels, and predicts what its own does where no map is given."""
    if not takes_labels(snapshot):
        return snapshot
    config = replace(snapshot.config, unet=replace(snapshot.config.unet, conditioning="none"))
    return replace(snapshot, config=config, unet=narrowed(snapshot.unet) if snapshot.unet else None)


def initial_weights(folder: Path | None, stage: str, config: Any) -> tuple[StateDict | None, dict[str, Any] | None]:
    """The weights of a network in a snapshot, for a run to begin with, and a record of them; None without a folder.

    stage: `autoencoder` or `diffusion`; config: of its network, which the weights must fit. A UNet that takes
    labels may begin with one that takes none.

    Raises:
        CheckpointError: the snapshot cannot be read, lacks the network, or its network has other sizes.
    """
    if folder is None:
        return None, None
    snapshot = load_snapshot(folder)
    name, weights = (AUTOENCODER, snapshot.autoencoder) if stage == "autoencoder" else (UNET, snapshot.unet)
    if weights is None:
        raise CheckpointError(f"--initial {folder} holds no {name}: give a snapshot of training.train_diffusion")
    before = snapshot.config.autoencoder if stage == "autoencoder" else snapshot.config.unet
    record = {"sha256": sha256(folder / name), "history": snapshot.history.get(stage)}
    if isinstance(before, UNet) and before.conditioning == "none" and config.conditioning != "none":
        weights = widened(weights, before, config)
        before = replace(before, conditioning=config.conditioning)
    if before != config:
        now = asdict(config)
        differs = "; ".join(
            f"{key} {value}, not {now[key]}" for key, value in asdict(before).items() if value != now[key]
        )
        raise CheckpointError(f"--initial {folder} holds another network ({differs}): give its settings")
    return weights, record


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a resume state: nested dictionaries of tensors and plain values. The previous state is kept beside it.

    Raises:
        NotWritten: the disk is full, or a similar error. The state at `path` is kept.
    """
    _before(path).unlink(missing_ok=True)  # the disk has room for two states, perhaps not for three
    with whole_file(path) as temporary:
        with temporary.open("wb") as file:  # given a path, torch would not report why it cannot be written
            torch.save(state, file)
        if path.is_file():
            duplicate(path, _before(path))


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}_before{path.suffix}")


def load_state(path: Path, first: bool = True) -> dict[str, Any] | None:
    """The resume state at `path`, or None where there is none.

    If the file is damaged, for example by a power cut, the previous state takes its place.

    first: whether this process may write and print; of several processes only one may.

    Raises:
        CheckpointError: the file is damaged or is something else, and there is no previous state.
    """
    if not path.is_file():
        return None
    try:
        return _read_state(path)
    except CheckpointError as error:
        before = _before(path)
        if not before.is_file():
            raise CheckpointError(f"{error}: delete it to {ADVICE}") from error
        try:
            state = _read_state(before)
        except CheckpointError as other:
            raise CheckpointError(f"{error}, and {other}: delete both to {ADVICE}") from error
        if first:
            duplicate(before, path)
            lost = f"the run continues from the state before it, of iteration {state['iteration']}"
            print(f"WARNING: {error}: {lost}; what came after is trained again", file=sys.stderr)
        return state


def _read_state(path: Path) -> dict[str, Any]:
    """Raises CheckpointError with the path and the reason."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged archive can make the reader fail in any way
        first_line = str(error).partition("\n")[0]
        reason = f"{type(error).__name__}: {first_line}" if path.stat().st_size else "it is empty"
        raise CheckpointError(f"{path} cannot be read ({reason})") from error
    if not isinstance(state, dict) or "iteration" not in state:
        raise CheckpointError(f"{path} is no resume state of a training run")
    return state
