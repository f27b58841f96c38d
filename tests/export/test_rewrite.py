"""The cheaper operations of export against the layers of MONAI and PyTorch that they replace, in float64."""

from pathlib import Path

import pytest
import torch
from monai.networks.blocks import SABlock, Upsample
from torch import nn

from benchmarks.harness.weights import load_weights
from export.graphs import GRAPHS, Graph, random_inputs
from export.rewrite import ChannelwiseGroupNorm, JointAttention, TransposedUpsample, rewritten

EXACT = 1e-12  # float64, some thousand terms: only the order of sums differs


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
def test_transposed_convolution_is_upsampling_and_convolution() -> None:
    """Also at the borders, where zeros surround the upsampled image."""
    convolution = nn.Conv2d(3, 5, 3, padding=1).double()
    upsample = Upsample(2, 3, 3, scale_factor=2.0, mode="nontrainable", interp_mode="nearest", align_corners=None)
    x = drawn(2, 3, 7, 6)
    torch.testing.assert_close(
        TransposedUpsample(convolution).double()(x), convolution(upsample(x)), rtol=EXACT, atol=EXACT
    )


@pytest.mark.parametrize("include_fc", [False, True])
@torch.no_grad()
def test_joint_attention_is_attention(include_fc: bool) -> None:
    block = SABlock(
        12, 3, qkv_bias=True, include_fc=include_fc, use_combined_linear=False, use_flash_attention=False
    ).double()
    x = drawn(2, 10, 12)
    torch.testing.assert_close(JointAttention(block).double()(x), block(x), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("groups", [1, 3, 12])
@torch.no_grad()
def test_channelwise_group_norm_is_group_norm(groups: int) -> None:
    """Means far from zero, where a variance from the mean of squares would lose digits."""
    norm = nn.GroupNorm(groups, 12, eps=1e-6).double()
    norm.weight.copy_(drawn(12))
    norm.bias.copy_(drawn(12))
    x = drawn(2, 12, 5, 4) + 1e4
    torch.testing.assert_close(ChannelwiseGroupNorm(norm).double()(x), norm(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
@torch.no_grad()
def test_whole_network(graph: Graph, tmp_path: Path) -> None:
    """Every layer of these classes is replaced, and the original is unchanged."""
    module = graph.build(load_weights("small", tmp_path)).eval()
    layers = [type(layer) for layer in module.modules()]
    inputs = random_inputs(graph, rows=2, seed=3)
    cheaper = rewritten(module)
    assert [type(layer) for layer in module.modules()] == layers
    assert not any(isinstance(layer, Upsample | SABlock | nn.GroupNorm) for layer in cheaper.modules())
    expected, result = module(*inputs), cheaper(*inputs)
    assert expected.any()
    assert (result - expected).norm() <= 1e-5 * expected.norm()  # float32
