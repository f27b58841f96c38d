"""A small segmenter of lesions, trained from nothing on slices and their label maps, and its Dice by region.

It measures images and label maps together: where the lesion that a map asks for is in the image, it can be found.
"""

import numpy as np
import torch
from monai.data import list_data_collate
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks.nets import UNet
from monai.transforms import Compose, RandFlipd, RandScaleIntensityd
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from training.conditioning import LABELS
from training.data import draw_volumes
from training.evaluation.pairs import Pairs

REGIONS = {"whole lesion": 1, "core": 2, "enhancing": 3}
"""The regions of BraTS. They lie in each other: each holds the labels from its number on."""
BATCH = 8
LEARNING_RATE = 1e-2


def train_segmenter(pairs: Pairs, updates: int, seed: int, device: torch.device, name: str) -> torch.nn.Module:
    """A UNet [B, 1, H, W] -> logits [B, 4, H, W] after `updates` updates of 8 pairs; H and W are multiples of 8.

    Slices are flipped left and right, and their gain varies by a fifth. The result depends on pairs, updates and seed,
    and on rounding, which the number of threads changes. Seeds torch's generator. name: for the progress bar.
    """
    torch.manual_seed(seed)
    network = UNet(2, 1, 1 + len(LABELS), channels=(16, 32, 64, 128), strides=(2, 2, 2), norm="batch").to(device)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    augment = Compose(
        [
            RandFlipd(("image", "label"), prob=0.5, spatial_axis=0),
            RandScaleIntensityd("image", factors=0.2, prob=1.0),
        ]
    )
    augment.set_random_state(seed)
    for update in tqdm(range(updates), f"segmenter, {name}", unit="update", leave=False):
        drawn = draw_volumes(len(pairs.names), BATCH, seed, update)
        items = [augment({"image": pairs.images[i][None], "label": pairs.maps[i][None]}) for i in drawn]
        batch = {key: value.as_tensor().to(device) for key, value in list_data_collate(items).items()}
        loss = criterion(network(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def segment(network: torch.nn.Module, images: NDArray[np.float32], device: torch.device) -> NDArray[np.uint8]:
    """The label maps [n, H, W] that the network finds in `images` [n, H, W]."""
    parts = torch.from_numpy(images)[:, None].split(16)
    return torch.cat([network(part.to(device)).argmax(1).byte().cpu() for part in parts]).numpy()


def dice_by_region(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Dice [n, REGIONS] of the label maps `found` and `wanted` [n, H, W].

    NaN where `wanted` lacks the region: a Dice of 0 or 1 would then hang on a single pixel. So what is found in slices
    without a region does not count.
    """
    both = zip(torch.from_numpy(found).split(64), torch.from_numpy(wanted).split(64), strict=True)
    return torch.cat([compute_dice(_regions(one), _regions(other)) for one, other in both]).numpy()


def _regions(maps: Tensor) -> Tensor:
    return torch.stack([maps >= first for first in REGIONS.values()], dim=1)
