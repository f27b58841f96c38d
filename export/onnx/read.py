"""The snapshot of an exported repository, from its ONNX files: for a checkout that has only the served files.

The exporter keeps the names of a state dict, except for tensors that it reshapes: scales and shifts of group
normalisations, and the transposed matrices of queries, keys and values. These are recognised by the order of their use.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from export.graphs import VAE_DECODER, VAE_DECODER_TINY, Graph, Network, random_inputs, unet
from export.manifest import MANIFEST, read_manifest, read_model
from training.checkpoint import CheckpointError, Snapshot, StateDict
from training.config import config_from_dict
from training.files import sha256
from training.networks import build_autoencoder, build_unet
from training.tiny_decoder import build_tiny_decoder

if TYPE_CHECKING:
    import onnx


def snapshot_from_onnx(repository: Path) -> Snapshot:
    """The snapshot from which `repository` was exported: weights from each model.onnx, the rest from its JSON files.

    No served file holds the encoder, so the encoder is that of a fresh network.

    Raises:
        RepositoryError: there is no manifest.
        CheckpointError: a file is missing, differs from the manifest's, or holds rewritten operations.
    """
    manifest = read_manifest(repository)
    config = config_from_dict(manifest["training"]["config"], str(repository / MANIFEST))
    scale_factor, history = manifest["scale_factor"], manifest["training"]["history"]
    autoencoder, denoiser = build_autoencoder(config.autoencoder).state_dict(), build_unet(config.unet).state_dict()
    states = [(unet(config.unet.conditioning == "labels"), denoiser), (VAE_DECODER, autoencoder)]
    tiny = None
    if f"{VAE_DECODER_TINY.name}/1/model.onnx" in manifest["sha256"]:
        tiny = build_tiny_decoder(config.tiny_decoder).state_dict()
        states.append((VAE_DECODER_TINY, tiny))
    aligned = tuple(tuple(grid) for grid in read_model(repository).get("aligned_timesteps", ()))
    fresh = Snapshot(config, autoencoder, denoiser, scale_factor, history, tiny, aligned)
    for graph, state in states:
        file = f"{graph.name}/1/model.onnx"
        if not (repository / file).is_file() or sha256(repository / file) != manifest["sha256"].get(file):
            raise CheckpointError(f"{repository / file}: missing, or not the file that manifest.json describes")
        weights = _weights(graph, graph.build(fresh).eval(), repository / file)
        state |= {name.partition(".")[2]: tensor for name, tensor in weights.items()}
    return fresh


def _weights(graph: Graph, module: Network, path: Path) -> StateDict:
    """Every parameter that a call of `module` uses, from the file at `path`."""
    import onnx

    proto, shapes = onnx.load(path).graph, _in_order_of_use(graph, module)
    weights = {tensor.name: _tensor(tensor) for tensor in proto.initializer if tensor.name in shapes}
    unnamed, places = list(_renamed(proto, weights)), [name for name in shapes if name not in weights]
    weights |= zip(places, unnamed, strict=False)
    other_shape = [name for name in weights if weights[name].shape != shapes[name]]
    if len(unnamed) != len(places) or other_shape:
        where = f", the first of another shape is {other_shape[0]}" if other_shape else ""
        raise CheckpointError(
            f"{path} does not hold this network in MONAI's layers ({len(unnamed)} tensors without a name for "
            f"{len(places)} places{where}): rewritten operations cannot be read back, so give the snapshot itself"
        )
    return weights


@torch.no_grad()
def _in_order_of_use(graph: Graph, module: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of the parameters, found by one call of the module."""
    shapes: dict[str, torch.Size] = {}
    for name, layer in module.named_modules():
        of_layer = {f"{name}.{key}": parameter.shape for key, parameter in layer.named_parameters(recurse=False)}
        layer.register_forward_hook(lambda *_, of_layer=of_layer: shapes.update(of_layer))
    module(*random_inputs(graph, rows=1, seed=0))
    return shapes


def _renamed(proto: onnx.GraphProto, named: Container[str]) -> Iterator[Tensor]:
    """Weights that the exporter has renamed, once for each use, in the shape of a state dict."""
    others = {tensor.name: tensor for tensor in proto.initializer if tensor.name not in named}
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
