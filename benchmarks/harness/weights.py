"""The weights that are measured, and MONAI's networks with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import COMMITTED, DEMO_SNAPSHOT
from export.onnx.read import snapshot_from_onnx
from training.checkpoint import Snapshot, load_snapshot, without_labels
from training.config import load_config
from training.networks import build_autoencoder, build_unet, randomize_zero_tensors
from training.tiny_decoder import build_tiny_decoder

if TYPE_CHECKING:
    from torch import nn

SMALL = Path(__file__).with_name("small.toml")
ANY_GRID = tuple(range(999, 0, -100))
"""Where the steps of an image are does not change its time."""


def load_weights(name: str, demo_snapshot: Path = DEMO_SNAPSHOT) -> Snapshot:
    """demo: the trained small networks. bundle: the networks of brats.toml, random. small: tiny ones, random.

    A checkout that has not trained the demo takes its weights from the committed model.onnx, which lacks the encoder.
    The bundle's networks have a tiny decoder and aligned timesteps as well, which change no other tensor.

    No random tensor is zero. MONAI starts the last convolution of each block at zero, which is faster and proves
    nothing.

    Raises:
        CheckpointError: another `demo_snapshot` is given, and cannot be used.
    """
    if name == "demo":
        if demo_snapshot == DEMO_SNAPSHOT and not demo_snapshot.exists():
            return snapshot_from_onnx(COMMITTED)
        return load_snapshot(demo_snapshot)
    config = load_config("brats" if name == "bundle" else str(SMALL))
    torch.manual_seed(0)
    autoencoder, unet = build_autoencoder(config.autoencoder), build_unet(config.unet)
    randomize_zero_tensors(autoencoder, seed=1)
    randomize_zero_tensors(unet, seed=2)
    snapshot = Snapshot(config, autoencoder.state_dict(), unet.state_dict(), scale_factor=0.8)
    if name == "small":
        return snapshot
    tiny = build_tiny_decoder(config.tiny_decoder).state_dict()
    return replace(snapshot, scale_factor=1.0, tiny_decoder=tiny, aligned_timesteps=(ANY_GRID,))


def networks(snapshot: Snapshot, device: torch.device, fused: bool = False) -> tuple[nn.Module, nn.Module]:
    """UNet and autoencoder with their weights, as the bundle builds them: by default without fused attention.

    Of a UNet that takes labels, the one that it is without.
    """
    snapshot = without_labels(snapshot)
    unet, autoencoder = build_unet(snapshot.config.unet), build_autoencoder(snapshot.config.autoencoder)
    assert snapshot.unet is not None
    unet.load_state_dict(snapshot.unet)
    autoencoder.load_state_dict(snapshot.autoencoder)
    for module in [*unet.modules(), *autoencoder.modules()]:
        if hasattr(module, "use_flash_attention"):
            module.use_flash_attention = fused
    return unet.to(device).eval(), autoencoder.to(device).eval()
