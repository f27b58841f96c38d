"""Latents to figures of each image: decoded once, then its features and how close it is to the reference's.

What is measured is kept beside the latents, chunk by chunk, for as long as latents, weights and features are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.harness.engine import Array, Engine
from benchmarks.quality.latents import chunks, latents_file, load
from benchmarks.quality.settings import Design, Setting
from training.evaluation.features import extract, load_extractor
from training.files import sha256, write_npz
from training.metrics import reconstruction_metrics

Figures = dict[str, Array]
"""Of n images: `features` float64 [n, d]; `psnr` (dB) and `ssim` float32 [n], against the reference's of the seed; and
`image` int64 [n], its seed above FIRST_SEED."""


class Measurer:
    """The networks that measuring needs: the decoder of `repository`, and what makes features."""

    def __init__(self, folder: Path, repository: Path, features: Path, design: Design) -> None:
        self._folder, self._design, self._device = folder, design, torch.device("cpu")
        self._engine = Engine(repository)
        self.digest: str = self._engine.settings.digest
        self._extractor, self.origin = load_extractor(features, self._device)
        self.images = lru_cache(maxsize=2)(self._images)

    def _images(self, setting: Setting, first: int) -> Array:
        """Float32 [8, 240, 240], not clipped."""
        return self._engine.decode(load(self._folder, setting, first, self.digest))[:, 0]

    def features(self, images: Array, name: str) -> Array:
        """Of images [n, H, W], clipped to [0, 1] as a viewer shows them; float64 [n, d]."""
        features: Array = extract(self._extractor, images.clip(0, 1), self._device, name).numpy()
        return features

    def chunk(self, setting: Setting, first: int) -> Figures:
        """Of a chunk whose setting and reference are there."""
        used = [latents_file(self._folder, one, first) for one in (setting, self._design.reference)]
        key = " ".join([*map(sha256, used), self.digest, self.origin])

        def measure() -> Figures:
            images, reference = self.images(setting, first), self.images(self._design.reference, first)
            pairs = (torch.from_numpy(array)[:, None] for array in (images, reference))
            close = {name: values.numpy() for name, values in reconstruction_metrics(*pairs).items()}
            number = np.arange(first, first + len(images))
            return {"features": self.features(images, setting.name), **close, "image": number}

        return cached(self._folder / "measured" / setting.name / f"{first}.npz", key, measure)

    def real(self, images: Array) -> Array:
        """Features of real slices [n, H, W] in [0, 1]."""
        key = f"{hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()} {self.origin}"
        path = self._folder / "measured" / "real.npz"
        return cached(path, key, lambda: {"features": self.features(images, "real")})["features"]


def cached(path: Path, key: str, make: Callable[[], Figures]) -> Figures:
    """The arrays at `path` if they have this `key`; else made now, and kept there."""
    if path.is_file():
        with np.load(path) as stored:
            if str(stored["key"]) == key:
                return {name: stored[name] for name in stored.files if name != "key"}
    made = make()
    write_npz(path, key=key, **made)
    return made


def measure_all(measurer: Measurer, folder: Path, design: Design, images: int) -> dict[Setting, Figures]:
    """By setting, the figures of all images that count, in the order of their seeds.

    Settings of `design.paired` have the same seeds: the whole chunks that all of them have. The ancestral sampler has
    those of its own chunks among them.
    """
    shared = set.intersection(*(chunks(folder, setting, images) for setting in design.paired))
    measured = {setting: sorted(shared) for setting in design.paired}
    measured[design.ancestral] = sorted(shared & chunks(folder, design.ancestral, images))
    figures: dict[Setting, list[Figures]] = {setting: [] for setting in design.all}
    with tqdm(total=sum(map(len, measured.values())), unit="chunk", disable=None) as bar:
        for first in sorted(shared):  # chunk by chunk, so that the reference's is decoded once
            for setting in design.all:
                if first in measured[setting]:
                    bar.set_description(f"{setting.name}, image {first}")
                    figures[setting].append(measurer.chunk(setting, first))
                    bar.update()
    return {
        setting: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for setting, parts in figures.items()
        if parts
    }
