"""MONAI's weight files to a snapshot and back.

A MONAI file holds tensors and nothing else. The architecture comes from a configuration of ours and must fit without a
tensor left over. The scale factor comes from the user, except for the files that MONAI publishes. In files that we
write, it is folded into the weights. Knows nothing of ONNX.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from export.monai.layouts import Layout, NetworkName, convert, in_layout, shapes
from training.checkpoint import CheckpointError, Snapshot, StateDict, without_labels
from training.config import Config
from training.files import sha256, whole_file
from training.weights import read_weights

# From large_files.yml of the bundle brats_mri_axial_slices_generative_diffusion, the same since its first version.
PUBLISHED_MD5: dict[NetworkName, str] = {
    "autoencoder": "847a61ad13a68ebfca9c0a8fa6d0d6bd",
    "unet": "93a19ea3eaafd9781b4140286b121f37",
}
BUNDLE_FILES: dict[NetworkName, str] = {"autoencoder": "models/model_autoencoder.pt", "unet": "models/model.pt"}


def bundle_files(folder: Path, required: Collection[NetworkName] = ("autoencoder", "unet")) -> dict[NetworkName, Path]:
    """The weights of a bundle folder: the `required` ones, and the others if they are there.

    Raises:
        CheckpointError: a required one is missing. MONAI's tools download them separately.
    """
    files = {network: folder / name for network, name in BUNDLE_FILES.items()}
    if missing := [str(files[network]) for network in required if not files[network].is_file()]:
        raise CheckpointError(f"{' and '.join(missing)}: missing; download what the bundle's large_files.yml names")
    return {network: path for network, path in files.items() if path.is_file()}


def is_bundle(folder: Path) -> bool:
    """Whether a folder looks like a MONAI bundle, with or without its weights."""
    return (folder / "models").is_dir() or (folder / "configs" / "metadata.json").is_file()


def load_monai(files: Mapping[NetworkName, Path], config: Config, scale_factor: float | None = None) -> Snapshot:
    """A snapshot of the networks of `config` with MONAI's weights; its history records the files, by stage.

    `files` holds the autoencoder, and may hold the UNet. Without a UNet the result is a snapshot of stage 1, which has
    no scale factor. No MONAI file holds the scale factor of the training. The bundle's own inference uses 1.0 in
    effect, and so does this function for the published pair; for other files `scale_factor` must be given.

    Raises:
        CheckpointError: a file does not fit, or the scale factor is missing, not a positive number, or given without a
            UNet.
    """
    if "unet" not in files and scale_factor is not None:
        raise CheckpointError(
            "a scale factor without a UNet: give --unet as well, or leave --scale-factor out; "
            "training.train_diffusion measures its own"
        )
    md5 = {network: _md5(path) for network, path in files.items()}  # first: it names a file that is missing
    weights: dict[NetworkName, StateDict] = {}
    record: dict[NetworkName, dict[str, Any]] = {}
    for network, path in files.items():
        weights[network], layout = convert(read_weights(path), shapes(network, config), f"{path} ({network})")
        record[network] = {
            "file": path.name,
            "layout": layout,
            "published": md5[network] == PUBLISHED_MD5[network],
            "md5": md5[network],
            "sha256": sha256(path),
        }
    if "unet" in files:
        origin = "given" if scale_factor is not None else "1.0, as the bundle's inference has it"
        published = all(entry["published"] for entry in record.values())
        scale_factor = _scale_factor(scale_factor, published, files["unet"])
        record["unet"]["scale_factor"] = origin
    return Snapshot(config, weights["autoencoder"], weights.get("unet"), scale_factor, _by_stage(record))


def _scale_factor(given: float | None, published: bool, path: Path) -> float:
    """The number by which latents are divided; the error names `path`, the UNet's file."""
    if given is None and not published:
        raise CheckpointError(
            f"{path}: MONAI saves no scale factor, and these are not the two published files: give "
            "--scale-factor with the number that their diffusion training printed as 'scale factor: ...', or with 1.0, "
            "which the bundle's inference uses in effect"
        )
    scale_factor = 1.0 if given is None else given
    if not (math.isfinite(scale_factor) and scale_factor > 0):
        raise CheckpointError(f"the scale factor is {scale_factor}; it must be a positive number")
    return scale_factor


def _by_stage(record: Mapping[NetworkName, dict[str, Any]]) -> dict[str, Any]:
    """The history of a snapshot, by stage: if the UNet is trained anew, its entry replaces MONAI's."""
    stages: dict[NetworkName, str] = {"autoencoder": "autoencoder", "unet": "diffusion"}
    return {stages[network]: {"monai": entry} for network, entry in record.items()}


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def fold_scale_factor(autoencoder: StateDict, scale_factor: float) -> StateDict:
    """The autoencoder whose latents are ours times `scale_factor`, with the same images and reconstructions.

    With s the scale factor and z' = s z: decode'(z') = decode(z'/s), mu' = s mu, sigma' = s sigma. 1x1 convolutions do
    all of it: the weight of the decoder's first one is divided by s, weight and bias of mu are multiplied by s, and the
    log variance is raised by 2 ln s. Exact except for rounding, and for variances at the limits of MONAI's clamp, e^-30
    and e^20. `autoencoder` is not changed.
    """
    s = torch.tensor(scale_factor, dtype=torch.float64)
    changed = {
        "post_quant_conv.conv.weight": autoencoder["post_quant_conv.conv.weight"].cpu().double() / s,
        "quant_conv_mu.conv.weight": autoencoder["quant_conv_mu.conv.weight"].cpu().double() * s,
        "quant_conv_mu.conv.bias": autoencoder["quant_conv_mu.conv.bias"].cpu().double() * s,
        "quant_conv_log_sigma.conv.bias": autoencoder["quant_conv_log_sigma.conv.bias"].cpu().double() + 2 * s.log(),
    }
    return {key: changed.get(key, tensor).float() for key, tensor in autoencoder.items()}


def differences_from_bundle(config: Config) -> list[str]:
    """What the bundle's configurations would have to say for these weights: `section.field = value`."""
    bundle = Config()
    return [
        f"{section}.{field} = {value}"
        for section in ("autoencoder", "unet", "noise_schedule")
        for field, value in asdict(getattr(config, section)).items()
        if value != getattr(getattr(bundle, section), field)
    ]


def save_monai(snapshot: Snapshot, folder: Path, layout: Layout = "monai-1.5") -> list[Path]:
    """Write models/model_autoencoder.pt and models/model.pt below `folder`, each a dictionary of tensors.

    The bundle divides by no scale factor, so it is folded into the autoencoder: for these files it is 1.0. It knows no
    labels: of a UNet that takes them, the files hold what it is without.

    Raises:
        CheckpointError: the snapshot is one of stage 1, or one of the files exists already; nothing is written then.
    """
    snapshot = without_labels(snapshot)
    if snapshot.unet is None or snapshot.scale_factor is None:
        raise CheckpointError("the snapshot holds no UNet: give the one that training.train_diffusion wrote")
    paths = {network: folder / name for network, name in BUNDLE_FILES.items()}
    for path in paths.values():
        if path.exists():
            raise CheckpointError(f"{path} exists already: give another folder, or move the file away")
    autoencoder = fold_scale_factor(snapshot.autoencoder, snapshot.scale_factor)
    states: dict[NetworkName, StateDict] = {"autoencoder": autoencoder, "unet": snapshot.unet}
    for network, path in paths.items():
        with whole_file(path) as temporary, temporary.open("wb") as file:  # with a path, torch hides why a write failed
            torch.save(in_layout(states[network], layout), file)
    return list(paths.values())
