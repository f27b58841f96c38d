"""MONAI's weight files to a snapshot and back: three generations of names, told apart by the names themselves.

A MONAI file holds tensors and nothing else. The architecture comes from a configuration of ours and must fit without a
tensor left over; the scale factor comes from the user, but for the files that MONAI publishes. Files that we write
carry it in their weights. Knows nothing of ONNX.
"""

import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Size, Tensor

from training.checkpoint import CheckpointError, Snapshot, StateDict
from training.config import Config
from training.files import sha256, whole_file
from training.networks import build_autoencoder, build_unet
from training.weights import read_weights

Layout = Literal["monai-1.5", "monai-1.4", "monai-generative"]
"""Names of MONAI 1.5 to 1.6, which are ours; of MONAI 1.4; of monai-generative 0.2."""
Network = Literal["autoencoder", "unet"]
# From large_files.yml of the bundle brats_mri_axial_slices_generative_diffusion, the same since its first version.
PUBLISHED_MD5: dict[Network, str] = {
    "autoencoder": "847a61ad13a68ebfca9c0a8fa6d0d6bd",
    "unet": "93a19ea3eaafd9781b4140286b121f37",
}
BUNDLE_FILES: dict[Network, str] = {"autoencoder": "models/model_autoencoder.pt", "unet": "models/model.pt"}


def used_names(layout: Layout, keys: Iterable[str]) -> dict[str, str]:
    """Name in `layout` -> our name, for each of our `keys`."""
    if layout == "monai-generative":
        return {re.sub(r"\.attn\.(to_[qkv]\.)", r".\1", key).replace(".postconv.", ".conv."): key for key in keys}
    return {key: key for key in keys}


def unused_names(layout: Layout, keys: Iterable[str]) -> dict[str, str]:
    """Name in `layout` -> our name of the query of that attention block, which has the same shape.

    Older files hold a projection for each attention block that the bundle's networks never apply. Networks built with
    include_fc=True, which the bundle's are not, do apply it; their files look the same and would lose it.
    """
    suffix = {"monai-1.5": "", "monai-1.4": ".attn.out_proj", "monai-generative": ".proj_attn"}[layout]
    query = re.compile(r"(.+)\.attn\.to_q\.(weight|bias)")
    matches = (query.fullmatch(key) for key in keys if suffix)
    return {f"{match[1]}{suffix}.{match[2]}": match[0] for match in matches if match}


def convert(state: Mapping[str, Tensor], expected: Mapping[str, Size], source: str) -> tuple[StateDict, Layout]:
    """`state` under our names, float32, in the order of `expected`; and the layout that it had.

    `state` is left as it is. The layout is that of the fewest differences, which must be none. Drops the projections
    that no network applies.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape; `source` and the first of them are named.
    """
    names = {layout: used_names(layout, expected) | unused_names(layout, expected) for layout in get_args(Layout)}
    layout: Layout = min(names, key=lambda layout: len(names[layout].keys() ^ state.keys()))
    known = names[layout]
    wrong = [
        f"{name} {list(state[name].shape)} instead of {list(expected[known[name]])}"
        for name in known
        if name in state and state[name].shape != expected[known[name]]
    ]
    differences = {
        "missing": [name for name in known if name not in state],
        "left over": [name for name in state if name not in known],
        "of another shape": wrong,
    }
    if any(differences.values()):
        listed = "; ".join(f"{len(found)} {kind} ({_first(found)})" for kind, found in differences.items() if found)
        raise CheckpointError(f"{source} does not fit, with {layout} as the closest layout: {listed}")
    return {key: state[name].float() for name, key in used_names(layout, expected).items()}, layout


def _first(names: Collection[str], limit: int = 3) -> str:
    return ", ".join([*list(names)[:limit], *(["..."] if len(names) > limit else [])])


def shapes(network: Network, config: Config) -> dict[str, Size]:
    """Our names and shapes of a network; allocates nothing."""
    with torch.device("meta"):
        built = build_autoencoder(config.autoencoder) if network == "autoencoder" else build_unet(config.unet)
    return {key: tensor.shape for key, tensor in built.state_dict().items()}


def bundle_files(folder: Path, required: Collection[Network] = ("autoencoder", "unet")) -> dict[Network, Path]:
    """The weights of a bundle folder: the `required` ones, and the others if they are there.

    Raises:
        CheckpointError: a required one is missing; MONAI's tools download them apart from the rest.
    """
    files = {network: folder / name for network, name in BUNDLE_FILES.items()}
    if missing := [str(files[network]) for network in required if not files[network].is_file()]:
        raise CheckpointError(f"{' and '.join(missing)}: not there; download what the bundle's large_files.yml names")
    return {network: path for network, path in files.items() if path.is_file()}


def is_bundle(folder: Path) -> bool:
    """Whether a folder looks like a MONAI bundle, with or without its weights."""
    return (folder / "models").is_dir() or (folder / "configs" / "metadata.json").is_file()


def load_monai(files: Mapping[Network, Path], config: Config, scale_factor: float | None = None) -> Snapshot:
    """A snapshot of the networks of `config` with MONAI's weights; its history says by stage which files they were.

    `files` holds the autoencoder, and the UNet or not: without it the snapshot is one of stage 1, with no scale factor.
    The scale factor of a training in MONAI is in no file. 1.0 is what the bundle's own inference amounts to, and is
    taken for the published pair; for other files it must be given.

    Raises:
        CheckpointError: a file that does not fit, or a scale factor that is missing, no positive number, or there
            without a UNet.
    """
    if "unet" not in files and scale_factor is not None:
        raise CheckpointError(
            "a scale factor without a UNet: give --unet as well, or leave --scale-factor out; "
            "training.train_diffusion measures the one that it trains with"
        )
    md5 = {network: _md5(path) for network, path in files.items()}  # a file that is not there is named first
    weights: dict[Network, StateDict] = {}
    record: dict[Network, dict[str, Any]] = {}
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
    """What latents are divided by; `path` of the UNet is named in the error."""
    if given is None and not published:
        raise CheckpointError(
            f"{path}: MONAI saves no scale factor, and these are not the two published files: give "
            "--scale-factor with the number that their diffusion training printed as 'scale factor: ...', or with 1.0, "
            "which is what the bundle's inference amounts to"
        )
    scale_factor = 1.0 if given is None else given
    if not (math.isfinite(scale_factor) and scale_factor > 0):
        raise CheckpointError(f"the scale factor must be a positive number, and {scale_factor} is none")
    return scale_factor


def _by_stage(record: Mapping[Network, dict[str, Any]]) -> dict[str, Any]:
    """The history of a snapshot; by stage, so that a UNet which is trained anew leaves no trace of MONAI's."""
    stages: dict[Network, str] = {"autoencoder": "autoencoder", "unet": "diffusion"}
    return {stages[network]: {"monai": entry} for network, entry in record.items()}


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def fold_scale_factor(autoencoder: StateDict, scale_factor: float) -> StateDict:
    """The autoencoder whose latents are ours times `scale_factor`, with the same images and reconstructions.

    With s the scale factor and z' = s z: decode'(z') = decode(z'/s), mu' = s mu, sigma' = s sigma. All of it is done by
    1x1 convolutions: the weight of the first one of the decoder is divided by s, weight and bias of mu are multiplied
    by it, and the log variance is raised by 2 ln s. Exact but for rounding, and for variances at the limits of MONAI's
    clamp, e^-30 and e^20. `autoencoder` is left as it is.
    """
    s = torch.tensor(scale_factor, dtype=torch.float64)
    changed = {
        "post_quant_conv.conv.weight": autoencoder["post_quant_conv.conv.weight"].cpu().double() / s,
        "quant_conv_mu.conv.weight": autoencoder["quant_conv_mu.conv.weight"].cpu().double() * s,
        "quant_conv_mu.conv.bias": autoencoder["quant_conv_mu.conv.bias"].cpu().double() * s,
        "quant_conv_log_sigma.conv.bias": autoencoder["quant_conv_log_sigma.conv.bias"].cpu().double() + 2 * s.log(),
    }
    return {key: changed.get(key, tensor).float() for key, tensor in autoencoder.items()}


def in_layout(state: StateDict, layout: Layout) -> OrderedDict[str, Tensor]:
    """`state` under the names of `layout`, float32 on the CPU.

    The projections that older layouts have besides are the identity: the same images, whether applied or not.
    """
    written = OrderedDict((name, state[key]) for name, key in used_names(layout, state).items())
    for name, query in unused_names(layout, state).items():
        size = len(state[query])
        written[name] = torch.eye(size) if name.endswith(".weight") else torch.zeros(size)
    # Clones: a tensor that is part of a larger storage would be saved with all of it.
    plain = {name: tensor.detach().cpu().float() for name, tensor in written.items()}
    return OrderedDict((name, tensor.clone(memory_format=torch.contiguous_format)) for name, tensor in plain.items())


def save_monai(snapshot: Snapshot, folder: Path, layout: Layout = "monai-1.5") -> list[Path]:
    """Write models/model_autoencoder.pt and models/model.pt below `folder`, each a dictionary of tensors.

    The bundle divides by no scale factor, so it is folded into the autoencoder: for these files it is 1.0.

    Raises:
        CheckpointError: a snapshot of stage 1, or one of the files is there already; nothing is written then.
    """
    if snapshot.unet is None or snapshot.scale_factor is None:
        raise CheckpointError("the snapshot holds no UNet: give the one that training.train_diffusion wrote")
    paths = {network: folder / name for network, name in BUNDLE_FILES.items()}
    for path in paths.values():
        if path.exists():
            raise CheckpointError(f"{path} is there already: give another folder, or move the file away")
    autoencoder = fold_scale_factor(snapshot.autoencoder, snapshot.scale_factor)
    states: dict[Network, StateDict] = {"autoencoder": autoencoder, "unet": snapshot.unet}
    for network, path in paths.items():
        with whole_file(path) as temporary, temporary.open("wb") as file:  # of a path, torch would not say why not
            torch.save(in_layout(states[network], layout), file)
    return list(paths.values())
