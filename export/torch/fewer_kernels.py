"""A served network in fewer operations, for GPUs, where even a small operation costs a launch: the same real numbers.

- The embedding of the timestep depends only on an integer below about a thousand, and so does its projection in each
  residual block. One table, with a row for each timestep, replaces the sinusoids and a product in each block.
- A block adds that projection to the output of a convolution. The bias of this convolution is in the table too.
- The projections of queries, keys and values become one (export.rewrite).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from monai.networks.blocks import SABlock
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock, get_timestep_embedding
from torch import Tensor, nn

from export.graphs import TIMESTEPS, Denoiser, Network
from export.rewrite import rewritten


class TabledBlock(nn.Module):
    """([B, C, H, W], rows of the table [B, all channels]) -> [B, C', H', W']: a residual block of MONAI's UNet.

    Its columns of the table begin at `start`.
    """

    def __init__(self, block: DiffusionUNetResnetBlock, start: int) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.resample = block.upsample or block.downsample or nn.Identity()
        self.skip_connection = block.skip_connection
        self.columns = slice(start, start + block.out_channels)
        self.conv1.conv.register_parameter("bias", None)  # it is in the table

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Each row at its own timestep."""
        h = self.conv1(self.resample(F.silu(self.norm1(x)))) + emb[:, self.columns, None, None]
        return self.skip_connection(self.resample(x)) + self.conv2(F.silu(self.norm2(h)))


class TabledUNet(nn.Module):
    """A UNet whose timesteps are rows of a table; a timestep beyond an end of the table takes the row there."""

    def __init__(self, unet: nn.Module, timesteps: int) -> None:
        super().__init__()
        self.unet = copy.deepcopy(unet).eval()
        blocks = {
            name: layer for name, layer in self.unet.named_modules() if isinstance(layer, DiffusionUNetResnetBlock)
        }
        self.table = nn.Embedding.from_pretrained(_table(self.unet, list(blocks.values()), timesteps))
        start = 0
        for name, block in blocks.items():
            self.unet.set_submodule(name, TabledBlock(block, start))
            start += block.out_channels
        del self.unet.time_embed

    @property
    def out(self) -> nn.Module:
        """Its last layers."""
        last: nn.Module = self.unet.out
        return last

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """As MONAI's UNet, without classes, contexts and control networks, which this project's UNet does not have."""
        emb = self.table(timesteps.clamp(0, self.table.num_embeddings - 1))
        h = self.unet.conv_in(x)
        skipped = [h]
        for block in self.unet.down_blocks:
            h, outputs = block(hidden_states=h, temb=emb)
            skipped += outputs
        h = self.unet.middle_block(hidden_states=h, temb=emb)
        for block in self.unet.up_blocks:
            first = len(skipped) - len(block.resnets)
            h = block(hidden_states=h, res_hidden_states_list=skipped[first:], temb=emb)
            del skipped[first:]
        return self.unet.out(h)


@torch.no_grad()
def _table(unet: nn.Module, blocks: list[DiffusionUNetResnetBlock], timesteps: int) -> Tensor:
    """[timesteps, all channels]: what each block adds after its first convolution, with that convolution's bias."""
    embedding = get_timestep_embedding(torch.arange(timesteps), unet.block_out_channels[0])
    activated = F.silu(unet.time_embed(embedding))
    return torch.cat([block.time_emb_proj(activated) + block.conv1.conv.bias for block in blocks], dim=1)


def with_fewer_kernels(module: Network, timesteps: int = TIMESTEPS) -> Network:
    """A copy of `module` in fewer operations; float32, as `module`. It was trained with 0 to timesteps - 1."""
    joint = rewritten(module, (SABlock,))
    if isinstance(joint, Denoiser):
        joint.unet = TabledUNet(joint.unet, timesteps)
    return joint
