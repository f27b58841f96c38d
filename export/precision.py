"""A served network in fp16 or bf16, with float32 where rounding would show. Knows nothing of ONNX or TensorRT.

The casts are operations of the network itself. So every exporter writes them, and the builder of a strongly typed
TensorRT network has nothing to decide.
"""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from export.graphs import Network

Precision = Literal["fp32", "tf32", "fp16", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,  # the weights and the graph are those of fp32; the GPU rounds inside its matrix products
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class Float32(nn.Module):
    """Runs a layer in float32 within a network of `dtype`."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Any float tensor in, `dtype` out."""
        return self.layer(x.float()).to(self.dtype)


def reduced_precision(module: Network, dtype: torch.dtype, *, float32_norms: bool = True) -> Network:
    """A copy of `module` that computes in `dtype` (float16 or bfloat16) and takes and returns float32 as before.

    Convolutions, linear layers and attention compute in `dtype`, with weights of `dtype`. Float32 remain: the sinusoids
    of the timestep, the division by the scale factor, normalisations with their weights, and the last normalisation,
    activation and convolution together. Attention stays one call, whose kernels keep the softmax in float32. An
    exporter that splits attention must do so itself (export.onnx.write does). For float32 the result is `module`.

    Without `float32_norms` all normalisations except the last are in `dtype` too, which saves their casts.
    """
    if dtype == torch.float32:
        return module
    reduced: Network = copy.deepcopy(module).eval()
    kept = {inner for layer in reduced.last_layers() for inner in layer.modules()}
    for name, layer in list(reduced.named_modules()):
        if layer in kept:
            continue
        is_norm = isinstance(layer, nn.GroupNorm | nn.LayerNorm)
        if is_norm and float32_norms:
            reduced.set_submodule(name, Float32(layer, dtype))
        elif is_norm or isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            layer.to(dtype)
    last_norm = next(name for name, layer in reduced.named_modules() if layer is reduced.last_layers()[0])
    reduced.set_submodule(last_norm, Float32(reduced.last_layers()[0], torch.float32))
    reduced.dtype = dtype
    return reduced
