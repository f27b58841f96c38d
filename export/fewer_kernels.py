"""A served network in fewer operations, for GPUs, where each small one costs its launch: the same real numbers.

- The embedding of the timestep is a function of one of some hundred integers, and so is what each residual block
  projects from it: one table, a row for each timestep, in place of sinusoids and a product for each block.
- The bias of the convolution to which a block adds that projection is in the table, too.
- The projections of queries, keys and values are one (export.rewrite).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from monai.networks.blocks import SABlock
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock, get_timestep_embedding
from torch import Tensor, nn

from export.graphs import TIMESTEPS, Decoder, Denoiser
from export.rewrite import rewritten


class TabledBlock(nn.Module):
    """([B, C, H, W], rows of the table [B, all channels]) -> [B, C', H', W']: a residual block of MONAI's UNet.

    Its own columns begin at `start`.
    """

    def __init__(self, block: DiffusionUNetResnetBlock, start: int) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.resample = block.upsample or block.downsample or nn.Identity()
        self.skip_connection = block.skip_connection
        self.columns = slice(start, start + block.out_channels)
        self.conv1.conv.register_parameter("bias", None)  # is in the table

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Each row at its own timestep."""
        h = self.conv1(self.resample(F.silu(self.norm1(x)))) + emb[:, self.columns, None, None]
        return self.skip_connection(self.resample(x)) + self.conv2(F.silu(self.norm2(h)))


class TabledDenoiser(Denoiser):
    """A denoiser whose timesteps are rows of a table; those beyond its ends take the last or the first of them."""

    def __init__(self, denoiser: Denoiser, timesteps: int) -> None:
        nn.Module.__init__(self)
        self.unet = copy.deepcopy(denoiser.unet).eval()
        blocks = {
            name: layer for name, layer in self.unet.named_modules() if isinstance(layer, DiffusionUNetResnetBlock)
        }
        self.table = nn.Embedding.from_pretrained(_table(self.unet, list(blocks.values()), timesteps))
        start = 0
        for name, block in blocks.items():
            self.unet.set_submodule(name, TabledBlock(block, start))
            start += block.out_channels
        del self.unet.time_embed

    def forward(self, latent: Tensor, timesteps: Tensor) -> Tensor:
        """As MONAI's UNet, without what this project's UNet has none of: classes, contexts and control networks."""
        emb = self.table(timesteps.flatten().clamp(0, self.table.num_embeddings - 1))
        h = self.unet.conv_in(latent.to(self.dtype))
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
    """[timesteps, all channels]: what each block adds after its first convolution, with that one's bias."""
    embedding = get_timestep_embedding(torch.arange(timesteps), unet.block_out_channels[0])
    activated = F.silu(unet.time_embed(embedding))
    return torch.cat([block.time_emb_proj(activated) + block.conv1.conv.bias for block in blocks], dim=1)


def with_fewer_kernels(module: Denoiser | Decoder, timesteps: int = TIMESTEPS) -> Denoiser | Decoder:
    """A copy of `module` in fewer operations; float32, as `module`. timesteps: of its training, 0 to timesteps - 1."""
    joint = rewritten(module, (SABlock,))
    return TabledDenoiser(joint, timesteps) if isinstance(joint, Denoiser) else joint
