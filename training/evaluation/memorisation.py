"""Finds synthetic slices that are copies of training slices: nearest training slice against nearest held-out slice.

The similarity of two slices is the largest normalised cross-correlation of their smoothed gradients over the four flips
and all shifts of up to 8 pixels. Gradients keep the detail of the anatomy and little of the outline of the head, which
is alike in all slices. Normalisation removes the gain. Knows nothing of files and of other metrics.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import gumbel_r
from torch import Tensor
from tqdm import tqdm

SMOOTHING = 2.0  # pixels; standard deviation of the Gaussian before the gradient
CUTOFF = 40  # cycles across the slice; the Gaussian removes almost everything above
MAX_SHIFT = 8  # pixels
CANDIDATES = 16  # slices that are compared at all shifts and flips, for each slice
FALSE_ALARM = 1e-4  # per slice; a tenth of the promised rate, because the tail is extrapolated
CONTROLS = 100  # planted copies, to measure the share that is found


@dataclass(frozen=True)
class Nearest:
    """The most similar slice of another folder, for each of n slices."""

    index: NDArray[np.int64]  # [n], in that folder
    similarity: NDArray[np.float64]  # [n], -1 to 1


@dataclass(frozen=True)
class Memorisation:
    """The result of the check.

    score: z_training - max(z_held_out, typical), with z = artanh(similarity) and `typical` the median of z_training
        over the held-out slices. It measures how much closer a slice is to the training slices than to new patients.
    """

    training: Nearest
    held_out: Nearest
    score: NDArray[np.float64]  # [n]
    threshold: float  # of the score
    copies: NDArray[np.bool_]  # [n]
    new_similarity: NDArray[np.float64]  # [held-out slices]: to their nearest training slice
    controls: int  # planted copies
    controls_found: int
    held_out_alarms: int  # held-out slices above the threshold, which is calibrated on them
    least_similarity: float  # to a training slice; below it nothing is a copy


class Folder:
    """Slices of one folder, prepared for comparison: their spectra and descriptors."""

    def __init__(self, images: NDArray[np.float32], name: str) -> None:
        """images: float32 [n, H, H]; `name` is for the progress bars."""
        parts = torch.from_numpy(images).split(64)
        self.name, self.size = name, images.shape[-1]
        self.spectra = torch.cat([spectra(part) for part in tqdm(parts, f"indexing {name}", leave=False)])
        self.descriptors = descriptors(self.spectra)

    def nearest(self, others: "Folder") -> Nearest:
        """The most similar slice of `others` for each slice here: candidates by descriptor, then a full comparison."""
        index, similarity = [], []
        with tqdm(total=len(self.spectra), desc=f"{self.name} among {others.name}", leave=False) as bar:
            for spectrum, descriptor in zip(self.spectra.split(64), self.descriptors.split(64), strict=True):
                likeness = descriptor @ others.descriptors.T
                candidates = likeness.topk(min(CANDIDATES, likeness.shape[1])).indices  # [64, k]
                for one, chosen in zip(spectrum, candidates, strict=True):
                    best = correlations(flips(one, self.size), others.spectra[chosen], self.size).amax(0)
                    index.append(int(chosen[best.argmax()]))
                    similarity.append(float(best.max()))
                    bar.update()
        return Nearest(np.array(index), np.array(similarity))


def spectra(images: Tensor) -> Tensor:
    """Fourier coefficients of the smoothed gradient of `images` [n, H, H]: complex64 [n, 2 CUTOFF + 1, CUTOFF + 1].

    Half of the plane, scaled to unit energy with its conjugate half. The two components of the gradient share one
    spectrum with the weight |f|, because only their summed products are wanted.
    """
    size = images.shape[-1]
    u, v = torch.arange(-CUTOFF, CUTOFF + 1)[:, None], torch.arange(CUTOFF + 1)
    squared = (u / size) ** 2 + (v / size) ** 2  # (cycles a pixel)^2
    weight = squared.sqrt() * torch.exp(-2 * (torch.pi * SMOOTHING) ** 2 * squared)
    weight[:, 1:] *= 2**0.5  # counts for its conjugate too
    band = torch.fft.rfft2(images.float())[:, u[:, 0] % size, : CUTOFF + 1] * weight
    return band / torch.linalg.vector_norm(band, dim=(1, 2), keepdim=True).clamp(min=1e-9)


def flips(spectrum: Tensor, size: int) -> Tensor:
    """Spectra [4, R, C] of an image of `size` pixels, of its mirror images in either axis, and in both.

    Mirroring negates a frequency. The phase is that of one pixel, because pixel 0 moves to the last position.
    """
    u, v = torch.arange(-CUTOFF, CUTOFF + 1)[:, None], torch.arange(CUTOFF + 1)
    turn_u, turn_v = (torch.exp(2j * torch.pi / size * frequency) for frequency in (u, v))
    other = spectrum.flip(0)
    return torch.stack([spectrum, turn_u * other, turn_v * other.conj(), turn_u * turn_v * spectrum.conj()])


def descriptors(spectrum: Tensor) -> Tensor:
    """Invariant to flip, shift and gain: magnitudes, summed over mirrored frequencies; [n, d], length 1."""
    magnitude = spectrum.abs()
    mirrored = magnitude[:, CUTOFF:] + magnitude[:, : CUTOFF + 1].flip(1)
    return torch.nn.functional.normalize(mirrored.flatten(1), dim=1)


def correlations(spectrum: Tensor, references: Tensor, size: int) -> Tensor:
    """Largest correlation over all shifts of each of `spectrum` [m, R, C] with each of `references` [k, R, C]: [m, k].

    An inverse Fourier transform for these shifts only, as two small matrix products.
    """
    turn = 2j * torch.pi / size * torch.arange(-MAX_SHIFT, MAX_SHIFT + 1)[:, None]
    rows, columns = torch.exp(turn * torch.arange(-CUTOFF, CUTOFF + 1)), torch.exp(turn * torch.arange(CUTOFF + 1))
    cross = spectrum[:, None].conj() * references
    return (rows @ cross @ columns.T).real.flatten(2).amax(2)


def plant_copies(images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Disguised copies: flips, shifts of up to 8 pixels, gain 0.7 to 1.4, noise 0.02, clipped to [0, 1].

    images: [n, H, W] in [0, 1]. Returns the same shape.
    """
    copies = np.empty_like(images)
    for copy, image in zip(copies, images, strict=True):
        flips = [axis for axis in (0, 1) if rng.random() < 0.5]
        shift = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2)
        moved = np.roll(np.flip(image, flips), shift, (0, 1))
        copy[:] = np.clip(rng.uniform(0.7, 1.4) * moved + rng.normal(0, 0.02, image.shape), 0, 1)
    return copies


def find_copies(
    synthetic: NDArray[np.float32], training: NDArray[np.float32], held_out: NDArray[np.float32], seed: int = 0
) -> Memorisation:
    """Compare each synthetic slice with the training and the held-out slices, all float32 [n, H, W] (or float16).

    The held-out slices show how similar a new slice can be to the training slices. A Gumbel distribution, the one of
    the largest of many values, is fitted to their scores. It exceeds the threshold with the probability FALSE_ALARM.
    Training and held-out slices must come from different patients. The seed decides which controls are planted; nothing
    else is random.
    """
    rng = np.random.default_rng(seed)
    known, new = Folder(training, "training slices"), Folder(held_out, "held-out slices")
    nulls = new.nearest(known)
    typical = float(np.median(_z(nulls.similarity)))
    null_score = _z(nulls.similarity) - typical
    threshold = float(gumbel_r(*gumbel_r.fit(null_score)).isf(FALSE_ALARM))

    def search(images: NDArray[np.float32], name: str) -> tuple[Nearest, Nearest, NDArray[np.float64]]:
        folder = Folder(images, name)
        in_training, in_held_out = folder.nearest(known), folder.nearest(new)
        score = _z(in_training.similarity) - np.maximum(_z(in_held_out.similarity), typical)
        return in_training, in_held_out, score

    originals = training[rng.choice(len(training), min(CONTROLS, len(training)), replace=False)]
    control_score = search(plant_copies(originals, rng), "planted copies")[2]
    in_training, in_held_out, score = search(synthetic, "synthetic slices")
    return Memorisation(
        training=in_training,
        held_out=in_held_out,
        score=score,
        threshold=threshold,
        copies=score > threshold,
        new_similarity=nulls.similarity,
        controls=len(control_score),
        controls_found=int((control_score > threshold).sum()),
        held_out_alarms=int((null_score > threshold).sum()),
        least_similarity=float(np.tanh(typical + threshold)),
    )


def _z(similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fisher's transform, which makes the spread of correlations near 1 like that of others."""
    return np.arctanh(np.clip(similarity, -1, 1 - 1e-7))
