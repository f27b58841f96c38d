"""Latents to figures of each image: its features, and how close it is to another setting's of the same seed.

What is measured is kept beside the latents, chunk by chunk, for as long as latents, weights and features are the same.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
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
"""Of n images, in the order of their seeds: arrays whose first axis is n."""


class Measurer:
    """The networks that measuring needs: the decoders of `repository`, and what makes features."""

    def __init__(self, folder: Path, repository: Path, features: Path) -> None:
        self._folder, self._device = folder, torch.device("cpu")
        self._engine = Engine(repository)
        self.digest: str = self._engine.settings.digest
        self._extractor, self.origin = load_extractor(features, self._device)
        self.images = lru_cache(maxsize=16)(self._images)

    def _images(self, setting: Setting, first: int) -> Array:
        """Float32 [8, 240, 240], not clipped."""
        return self._engine.decode(load(self._folder, setting, first, self.digest), setting.decoder)[:, 0]

    def _key(self, first: int, *settings: Setting) -> str:
        used = [sha256(latents_file(self._folder, setting, first)) for setting in settings]
        return " ".join([*used, self.digest, self.origin])

    def features(self, setting: Setting, first: int) -> Figures:
        """Of a chunk: `features` float64 [n, d] of images clipped to [0, 1], as a viewer shows them.

        `image` int64 [n]: their seeds above FIRST_SEED.
        """

        def measure() -> Figures:
            features = self._extracted(self.images(setting, first), setting.name)
            return {"features": features, "image": np.arange(first, first + len(features))}

        path = self._folder / "measured" / setting.name / f"{first}.npz"
        return cached(path, self._key(first, setting), measure)

    def pairs(self, setting: Setting, other: Setting, first: int) -> Figures:
        """Of a chunk: `psnr` (dB) and `ssim` float32 [n] of its images against the other's of the same seeds."""

        def measure() -> Figures:
            both = (torch.from_numpy(self.images(one, first))[:, None] for one in (setting, other))
            return {name: values.numpy() for name, values in reconstruction_metrics(*both).items()}

        path = self._folder / "measured" / setting.name / f"{first}-{other.name}.npz"
        return cached(path, self._key(first, setting, other), measure)

    def real(self, images: Array) -> tuple[Array, str]:
        """Features of real slices [n, H, W] in [0, 1], and a digest that tells these slices from others."""
        digest = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
        path = self._folder / "measured" / "real.npz"
        made = cached(path, f"{digest} {self.origin}", lambda: {"features": self._extracted(images, "real")})
        return made["features"], digest

    def _extracted(self, images: Array, name: str) -> Array:
        features: Array = extract(self._extractor, images.clip(0, 1), self._device, name).numpy()
        return features


def cached(path: Path, key: str, make: Callable[[], Figures]) -> Figures:
    """The arrays at `path` if they have this `key`; else made now, and kept there."""
    if path.is_file():
        with np.load(path) as stored:
            if str(stored["key"]) == key:
                return {name: stored[name] for name in stored.files if name != "key"}
    made = make()
    write_npz(path, key=key, **made)
    return made


@dataclass(frozen=True)
class Measured:
    """Figures by setting: `features` of the presets and the reference; the others are `pairs` with the reference."""

    features: dict[Setting, Figures]
    presets: dict[Setting, Figures]
    sweep: dict[Setting, Figures]
    whole: dict[Setting, Figures]


def measure_all(measurer: Measurer, folder: Path, design: Design) -> Measured:
    """Of the chunks that are there. The presets have the same seeds, and so have the settings of the sweep."""
    reference, counts = design.reference, design.counts()

    def there(*settings: Setting) -> set[int]:
        return set.intersection(
            *(chunks(folder, setting, counts[replace(setting, decoder="full")]) for setting in settings)
        )

    sampled, beside = there(*design.presets), there(reference)
    groups: dict[str, dict[Setting, set[int]]] = {
        "features": {**dict.fromkeys(design.presets, sampled), reference: sampled & beside},
        "presets": dict.fromkeys(design.presets, sampled & beside),
        "sweep": dict.fromkeys(design.sweep, there(*design.sweep, reference)),
        "whole": {design.whole: there(design.whole, reference)},
    }
    work = sorted(
        (first, group, setting.name, setting)
        for group, settings in groups.items()
        for setting, firsts in settings.items()
        for first in firsts
    )
    parts: dict[str, dict[Setting, list[Figures]]] = {group: defaultdict(list) for group in groups}
    for first, group, name, setting in (bar := tqdm(work, unit="chunk", disable=None)):
        bar.set_description(f"{name}, image {first}")
        figures = (
            measurer.features(setting, first) if group == "features" else measurer.pairs(setting, reference, first)
        )
        parts[group][setting].append(figures)
    joined = {
        group: {setting: _joined(parts[group][setting]) for setting in settings if setting in parts[group]}
        for group, settings in groups.items()
    }
    return Measured(**joined)


def _joined(parts: list[Figures]) -> Figures:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
