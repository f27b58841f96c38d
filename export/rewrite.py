"""A served network in operations that are faster on CPUs: the same function except for rounding.

Three layers of MONAI's networks are replaced, each by one that computes the same real numbers:

- nearest-neighbour upsampling and a 3x3 convolution: one transposed convolution, 16 products instead of 36;
- the projections of queries, keys and values: one linear layer;
- group normalisation: means over the pixels of each channel. Nothing has to be reshaped to groups, so the convolutions
  around it keep their memory layout.

benchmarks/README.md says how much time each saves. Knows nothing of ONNX.
"""

import copy

import torch
import torch.nn.functional as F
from monai.networks.blocks import SABlock, Upsample
from torch import Tensor, nn

from export.graphs import Network


class TransposedUpsample(nn.Module):
    """[B, C, H, W] -> [B, C', 2H, 2W]: upsampling to the nearest neighbour and a 3x3 convolution, in one.

    Of the nine neighbours of an upsampled pixel, several are copies of the same pixel. Their weights are summed.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        sides, dtype = (convolution.in_channels, convolution.out_channels), convolution.weight.dtype
        self.transposed = nn.ConvTranspose2d(*sides, 4, stride=2, padding=1, dtype=dtype)
        with torch.no_grad():
            # A transposed convolution mirrors its kernel. Each input pixel was doubled, so it meets the kernel twice,
            # shifted by one.
            mirrored = convolution.weight.double().flip(-1, -2).flatten(0, 1)[:, None]
            sums = F.conv2d(mirrored, torch.ones(1, 1, 2, 2, dtype=torch.float64), padding=1)
            self.transposed.weight.copy_(sums.reshape(*sides[::-1], 4, 4).transpose(0, 1))
            assert self.transposed.bias is not None
            self.transposed.bias.copy_(convolution.bias)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """`emb` is ignored: MONAI's UNet passes the embedding of the timestep to every block."""
        return self.transposed(x)


class JointAttention(nn.Module):
    """[B, tokens, C] -> the same: a block of self-attention whose three projections are one."""

    def __init__(self, block: SABlock) -> None:
        super().__init__()
        projections = (block.to_q, block.to_k, block.to_v)
        self.heads, self.scale = block.num_heads, block.scale
        self.qkv = nn.Linear(block.to_q.in_features, 3 * block.inner_dim)
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([projection.weight for projection in projections]))
            self.qkv.bias.copy_(torch.cat([projection.bias for projection in projections]))
        self.out_proj = block.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """Over all tokens of each row."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class ChannelwiseGroupNorm(nn.Module):
    """[B, C, H, W] -> the same: GroupNorm (Wu and He 2018, eq. 1 to 7), by means over pixels, then over channels."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """In two passes: subtracting the square of the mean from the mean of squares would lose digits."""
        centred = x - self._mean(x)
        scale = torch.rsqrt(self._mean(centred * centred) + self.eps) * self.weight[:, None, None]
        return centred * scale + self.bias[:, None, None]

    def _mean(self, x: Tensor) -> Tensor:
        """[B, C, 1, 1]: the mean of each channel's group."""
        mean = x.mean((2, 3), keepdim=True)
        channels = x.shape[1] // self.groups
        if channels == 1:
            return mean
        of_group = mean.reshape(-1, self.groups, channels).mean(2, keepdim=True)
        return of_group.expand(-1, -1, channels).reshape(-1, x.shape[1], 1, 1)


REWRITTEN = (Upsample, SABlock, nn.GroupNorm)


def rewritten(module: Network, layers: tuple[type[nn.Module], ...] = REWRITTEN) -> Network:
    """A copy of `module` with its layers of these classes replaced by cheaper ones; float32, as `module`."""
    copied: Network = copy.deepcopy(module).eval()
    for name, layer in list(copied.named_modules()):
        if isinstance(layer, layers):
            copied.set_submodule(name, _cheaper(layer))
    return copied


def _cheaper(layer: nn.Module) -> nn.Module:
    if isinstance(layer, Upsample):
        (convolution,) = (inner for inner in layer.modules() if isinstance(inner, nn.Conv2d))
        return TransposedUpsample(convolution)
    if isinstance(layer, SABlock):
        return JointAttention(layer)
    assert isinstance(layer, nn.GroupNorm)
    return ChannelwiseGroupNorm(layer)
