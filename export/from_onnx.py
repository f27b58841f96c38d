"""The snapshot of an exported repository, from its ONNX files: for a checkout that has the served files alone.

The exporter keeps the names of a state dict, but for tensors that it reshapes: scales and shifts of group
normalisations, and the transposed matrices of queries, keys and values. The order of their use tells which is which.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from export.graphs import UNET, VAE_DECODER, Decoder, Denoiser, Graph, random_inputs
from training.checkpoint import CheckpointError, Snapshot, StateDict
from training.config import config_from_dict
from training.files import sha256
from training.networks import build_autoencoder, build_unet

if TYPE_CHECKING:
    import onnx


def snapshot_from_onnx(repository: Path) -> Snapshot:
    """What `repository` was exported from: the weights of both model.onnx, the rest of manifest.json.

    The encoder is that of a fresh network: no served file holds it.

    Raises:
        CheckpointError: a file is missing, is not the one of the manifest, or holds rewritten operations.
    """
    path = repository / "manifest.json"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give a repository that `python -m export` has written")
    manifest = json.loads(path.read_text())
    config = config_from_dict(manifest["training"]["config"], str(path))
    scale_factor, history = manifest["scale_factor"], manifest["training"]["history"]
    autoencoder, unet = build_autoencoder(config.autoencoder).state_dict(), build_unet(config.unet).state_dict()
    fresh = Snapshot(config, autoencoder, unet, scale_factor, history)
    for graph, state in ((UNET, unet), (VAE_DECODER, autoencoder)):
        file = f"{graph.name}/1/model.onnx"
        if not (repository / file).is_file() or sha256(repository / file) != manifest["sha256"].get(file):
            raise CheckpointError(f"{repository / file}: missing, or not the file that manifest.json describes")
        weights = _weights(graph, graph.build(fresh).eval(), repository / file)
        state |= {name.partition(".")[2]: tensor for name, tensor in weights.items()}
    return fresh


def _weights(graph: Graph, module: Denoiser | Decoder, path: Path) -> StateDict:
    """Every parameter that a call of `module` uses, from the file at `path`."""
    import onnx

    proto, shapes = onnx.load(path).graph, _in_order_of_use(graph, module)
    found = {each.name: _tensor(each) for each in proto.initializer if each.name in shapes}
    unnamed, places = list(_renamed(proto, found)), [name for name in shapes if name not in found]
    found |= zip(places, unnamed, strict=False)
    wrong = [name for name in found if found[name].shape != shapes[name]]
    if len(unnamed) != len(places) or wrong:
        where = f", the first of another shape is {wrong[0]}" if wrong else ""
        raise CheckpointError(
            f"{path} does not hold this network in MONAI's layers ({len(unnamed)} tensors without a name for "
            f"{len(places)} places{where}): what export has rewritten is not read back, so give the snapshot itself"
        )
    return found


@torch.no_grad()
def _in_order_of_use(graph: Graph, module: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of the parameters, by one call."""
    shapes: dict[str, torch.Size] = {}
    for name, layer in module.named_modules():
        own = {f"{name}.{key}": parameter.shape for key, parameter in layer.named_parameters(recurse=False)}
        layer.register_forward_hook(lambda *_, own=own: shapes.update(own))
    module(*random_inputs(graph, rows=1, seed=0))
    return shapes


def _renamed(proto: onnx.GraphProto, named: Container[str]) -> Iterator[Tensor]:
    """Weights whose name is the exporter's own, once for each use, in the shape of a state dict."""
    others = {each.name: each for each in proto.initializer if each.name not in named}
    for node in proto.node:
        for name in node.input:
            if name not in others:
                continue
            tensor = _tensor(others[name])
            if node.op_type == "MatMul":
                yield tensor.T.contiguous()
            elif node.op_type in ("Mul", "Add") and tensor.shape[1:] == (1, 1):
                yield tensor.flatten()


def _tensor(initializer: onnx.TensorProto) -> Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(initializer).copy())
