"""Names of the tensors in MONAI's weight files: three generations, recognised by the names themselves."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Size, Tensor

from training.checkpoint import CheckpointError, StateDict
from training.config import Config
from training.networks import build_autoencoder, build_unet

Layout = Literal["monai-1.5", "monai-1.4", "monai-generative"]
"""Names of MONAI 1.5 to 1.6, which are ours; of MONAI 1.4; of monai-generative 0.2."""
NetworkName = Literal["autoencoder", "unet"]


def used_names(layout: Layout, keys: Iterable[str]) -> dict[str, str]:
    """Name in `layout` -> our name, for each of our `keys`."""
    if layout == "monai-generative":
        return {re.sub(r"\.attn\.(to_[qkv]\.)", r".\1", key).replace(".postconv.", ".conv."): key for key in keys}
    return {key: key for key in keys}


def unused_names(layout: Layout, keys: Iterable[str]) -> dict[str, str]:
    """Name in `layout` -> our name of the query of that attention block, which has the same shape.

    Older files hold a projection for each attention block that the bundle's networks never apply. Networks built with
    include_fc=True do apply it; the bundle's are not built so. Their files look the same and would lose it.
    """
    suffix = {"monai-1.5": "", "monai-1.4": ".attn.out_proj", "monai-generative": ".proj_attn"}[layout]
    query = re.compile(r"(.+)\.attn\.to_q\.(weight|bias)")
    matches = (query.fullmatch(key) for key in keys if suffix)
    return {f"{match[1]}{suffix}.{match[2]}": match[0] for match in matches if match}


def convert(state: Mapping[str, Tensor], expected: Mapping[str, Size], source: str) -> tuple[StateDict, Layout]:
    """`state` under our names, float32, in the order of `expected`; and the layout that it had.

    `state` is not changed. The layout is the one with the fewest differences, and there must be none. Projections that
    no network applies are dropped.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape; the message names `source` and the first
            such tensors.
    """
    layouts = {layout: used_names(layout, expected) | unused_names(layout, expected) for layout in get_args(Layout)}
    layout: Layout = min(layouts, key=lambda layout: len(layouts[layout].keys() ^ state.keys()))
    known = layouts[layout]
    other_shape = [
        f"{name} {list(state[name].shape)} instead of {list(expected[known[name]])}"
        for name in known
        if name in state and state[name].shape != expected[known[name]]
    ]
    differences = {
        "missing": [name for name in known if name not in state],
        "left over": [name for name in state if name not in known],
        "of another shape": other_shape,
    }
    if any(differences.values()):
        kinds = [(kind, names) for kind, names in differences.items() if names]
        listed = "; ".join(f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds)
        raise CheckpointError(f"{source} does not fit, with {layout} as the closest layout: {listed}")
    return {key: state[name].float() for name, key in used_names(layout, expected).items()}, layout


def _first(names: Collection[str], limit: int = 3) -> str:
    return ", ".join([*list(names)[:limit], *(["..."] if len(names) > limit else [])])


def shapes(network: NetworkName, config: Config) -> dict[str, Size]:
    """Our names and shapes of a network; allocates nothing."""
    with torch.device("meta"):
        module = build_autoencoder(config.autoencoder) if network == "autoencoder" else build_unet(config.unet)
    return {key: tensor.shape for key, tensor in module.state_dict().items()}


def in_layout(state: StateDict, layout: Layout) -> OrderedDict[str, Tensor]:
    """`state` under the names of `layout`, float32 on the CPU.

    Older layouts have projections more. They are written as the identity: the images are the same, applied or not.
    """
    named = OrderedDict((name, state[key]) for name, key in used_names(layout, state).items())
    for name, query in unused_names(layout, state).items():
        size = len(state[query])
        named[name] = torch.eye(size) if name.endswith(".weight") else torch.zeros(size)
    # Clones: a tensor that is part of a larger storage would be saved with all of it.
    plain = {name: tensor.detach().cpu().float() for name, tensor in named.items()}
    return OrderedDict((name, tensor.clone(memory_format=torch.contiguous_format)) for name, tensor in plain.items())
