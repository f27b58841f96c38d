"""Whether synthetic slices follow the label maps that they were made from. Draws nothing and writes nothing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.conditioning import LABELS
from training.evaluation.memorisation import Memorisation, Nearest, find_copies
from training.evaluation.pairs import Pairs, draw, joined
from training.evaluation.segmenter import dice_by_region, segment, train_segmenter

TARGET = 0.9  # Dice of the whole lesion in synthetic slices, as a share of that in real ones
FEW = 0.1  # share of the real training volumes in the arms with little data
BRAIN = 0.05  # brighter than this is brain; the background is 0, or nearly so in synthetic slices
SAME_MAP = 0.99  # Dice of two label maps that are called the same
HELD_OUT, SYNTHETIC = "held-out real", "synthetic"
Arm = tuple[str, str]
"""What a segmenter was trained on, and what it was tested on."""
REAL_ARM, FOLLOWING_ARM = ("real", HELD_OUT), ("real", SYNTHETIC)


@dataclass(frozen=True)
class Following:
    """Everything that the page and the report show.

    dice: by arm, float32 [n, REGIONS] of the slices tested on; NaN where a map lacks the region.
    found: the label maps that the segmenter of real slices finds in the synthetic ones.
    contrast: of HELD_OUT and SYNTHETIC, see `lesion_contrast`.
    maps_nearest: the most similar training map of each synthetic map.
    """

    held_out: Pairs
    synthetic: Pairs
    training: Pairs
    drawn: int  # slices of `training` that segmenters are trained on
    dice: dict[Arm, NDArray[np.float32]]
    found: NDArray[np.uint8]
    contrast: dict[str, NDArray[np.float64]]
    memorisation: Memorisation
    maps_nearest: Nearest

    def ratios(self) -> NDArray[np.floating[Any]]:
        """[REGIONS]: the mean Dice in synthetic slices as a share of that in real ones; NaN where that is 0."""
        real, synthetic = means(self.dice[REAL_ARM]), means(self.dice[FOLLOWING_ARM])
        return np.divide(synthetic, real, out=np.full_like(real, np.nan), where=real > 0)

    def same_maps(self) -> NDArray[np.bool_]:
        """[n]: synthetic slices whose map is one of the training data."""
        return self.maps_nearest.similarity >= SAME_MAP


def measure(
    training: Pairs, held_out: Pairs, synthetic: Pairs, updates: int, seed: int, device: torch.device
) -> Following:
    """Train four segmenters, and compare the synthetic pairs with the real ones.

    training: all slices of the training volumes. held_out: slices of other volumes. updates: of each segmenter, on
    however many slices, so that only the slices differ.
    """
    real = draw(training, seed)
    few = real.part(real.files < max(1, round(FEW * (real.files.max() + 1))))  # volumes come shuffled
    arms = {"real": real, SYNTHETIC: synthetic, "10 % real": few, "10 % real + synthetic": joined([few, synthetic])}
    dice = {}
    for name, pairs in arms.items():
        network = train_segmenter(pairs, updates, seed, device, name)
        dice[name, HELD_OUT] = dice_by_region(segment(network, held_out.images, device), held_out.maps)
        if name == "real":
            found = segment(network, synthetic.images, device)
            dice[FOLLOWING_ARM] = dice_by_region(found, synthetic.maps)
    return Following(
        held_out=held_out,
        synthetic=synthetic,
        training=training,
        drawn=len(real.names),
        dice=dice,
        found=found,
        contrast={name: lesion_contrast(part) for name, part in ((HELD_OUT, held_out), (SYNTHETIC, synthetic))},
        memorisation=find_copies(synthetic.images, training.images, held_out.images, seed),
        maps_nearest=nearest_maps(synthetic.maps, training.maps),
    )


def means(values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Means [k] of the columns of `values` [n, k] without NaN; NaN for a column with nothing else."""
    return np.ma.masked_invalid(values).mean(0).filled(np.nan)


def lesion_contrast(pairs: Pairs) -> NDArray[np.float64]:
    """How much brighter each of LABELS is than the brain without label in the same slice: [n, LABELS].

    The difference of two means of intensities in [0, 1]; NaN where a map lacks the label.
    """
    brain = (pairs.images > BRAIN) & (pairs.maps == 0)
    healthy = _mean_inside(pairs.images, brain)
    return np.stack([_mean_inside(pairs.images, pairs.maps == label) - healthy for label in LABELS], axis=1)


def _mean_inside(images: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[n]; NaN where a mask is empty."""
    return np.ma.masked_array(images, ~masks).mean((1, 2), dtype=np.float64).filled(np.nan)


def nearest_maps(maps: NDArray[np.uint8], others: NDArray[np.uint8]) -> Nearest:
    """The most similar of the label maps `others` [m, H, W] for each of `maps` [n, H, W]: Dice, all labels together.

    It compares places as they are, without flips and shifts. The similarity of an empty map is 0.
    """
    wanted = _one_hot(maps)
    likeness = []
    for part in np.array_split(others, max(1, len(others) // 256)):
        candidates = _one_hot(part)
        total = wanted.sum(1)[:, None] + candidates.sum(1)
        likeness.append(2 * (wanted @ candidates.T) / total.clamp(min=1))
    similarity, index = torch.cat(likeness, dim=1).max(1)
    return Nearest(index.numpy(), similarity.double().numpy())


def _one_hot(maps: NDArray[np.uint8]) -> torch.Tensor:
    """float32 [n, LABELS * H * W]."""
    numbers = torch.from_numpy(maps)
    return torch.stack([numbers == label for label in LABELS], dim=1).flatten(1).float()
