"""Features of slices: one vector per slice from a network, for the metrics that compare distributions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

Extractor = Callable[[Tensor], Tensor]  # images float32 [B, 1, H, W] in [0, 1] -> features [B, d]
RELATIVE = "encoder of this project: relative only; compare with figures by the same sha256, never with published ones"


def load_extractor(path: Path, device: torch.device) -> tuple[Extractor, str]:
    """The network for features at `path`, and a sentence that describes it, with the start of its weights' sha256.

    A folder is a snapshot: the features are the last feature map of its encoder, before the projection to latents. A
    file holds weights of a ResNet-50: the features are its last feature map. Both are averaged over the slice.

    Raises:
        CheckpointError: the path is neither a snapshot nor a file of weights that can be read.
    """
    from training.checkpoint import AUTOENCODER, CheckpointError
    from training.files import sha256

    if path.is_dir():
        extractor = _encoder(path, device)
        return extractor, f"{path} (sha256 {sha256(path / AUTOENCODER)[:12]}), {RELATIVE}"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give a snapshot folder, or a file of ResNet-50 weights")
    from training.perceptual import ResNet50Features

    network = ResNet50Features(path).to(device).eval()
    digest = sha256(path)[:12]
    origin = f"{path} (sha256 {digest}), ResNet-50: compare only with figures by the same weights"
    return lambda images: network(images).mean((2, 3)), origin


def _encoder(folder: Path, device: torch.device) -> Extractor:
    from training.checkpoint import load_snapshot
    from training.networks import build_autoencoder

    snapshot = load_snapshot(folder)
    autoencoder = build_autoencoder(snapshot.config.autoencoder)
    autoencoder.load_state_dict(snapshot.autoencoder)
    # Without the last normalisation, which removes most of the mean, and the convolution to one latent channel.
    encoder = torch.nn.Sequential(*autoencoder.encoder.blocks[:-2]).to(device).eval()
    return lambda images: encoder(images).mean((2, 3))


@torch.no_grad()
def extract(extractor: Extractor, images: NDArray[np.float32], device: torch.device, name: str) -> Tensor:
    """Features float64 [n, d] on the CPU of `images`, float32 [n, H, W] in [0, 1]; `name` labels the progress bar.

    Raises:
        FloatingPointError: a feature is not finite.
    """
    parts = torch.from_numpy(images)[:, None].split(16)
    bar = tqdm(parts, desc=f"features, {name}", leave=False, disable=None)
    features = torch.cat([extractor(part.to(device)).double().cpu() for part in bar])
    if not features.isfinite().all():
        raise FloatingPointError(f"features of the {name} slices are not finite: the weights of --features are damaged")
    return features
