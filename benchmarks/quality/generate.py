"""Final latents of the same seeds by every sampler and number of steps. Goes on where it was stopped."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mri_ldm.request import RowParameters
from tqdm import tqdm

from benchmarks.in_process import Array, Engine

CHUNK = 8
FIRST_SEED = 10_000


@dataclass(frozen=True)
class Setting:
    """A way to make images."""

    sampler: str
    steps: int

    @property
    def name(self) -> str:
        """Of its folder, and in the table."""
        return f"{self.sampler}-{self.steps}"

    def row(self, seed: int) -> RowParameters:
        """The parameters of one image."""
        return RowParameters(seed, self.steps, self.sampler, 0.0)


REFERENCE = Setting("ddim", 1000)
"""The end of the same trajectory: what a deterministic sampler with fewer steps is paired with."""
ANCESTRAL = Setting("ddpm", 1000)
"""The original sampler: other images of the same seeds, to compare distributions with."""
SETTINGS = (
    *(Setting("ddim", steps) for steps in (10, 20, 50, 100, 250)),
    *(Setting("dpmpp_2m", steps) for steps in (10, 15, 20, 25)),
    REFERENCE,
    ANCESTRAL,
)


def generate(repository: Path, images: int, folder: Path, settings: Sequence[Setting] = SETTINGS) -> None:
    """Latents of `images` seeds by each setting: `folder`/<setting>/<first seed>.npz, with the seconds they took.

    Chunk by chunk through all settings, so that an early end leaves as many images of each.
    """
    engine = Engine(repository)
    work = [(first, setting) for first in range(0, images, CHUNK) for setting in settings]
    with tqdm(total=sum(setting.steps for _, setting in work) * CHUNK, unit="step", unit_scale=True) as bar:
        for first, setting in work:
            bar.set_description(f"{setting.name}, image {first}")
            _chunk(engine, setting, first, folder / setting.name / f"{first}.npz")
            bar.update(setting.steps * CHUNK)


def _chunk(engine: Engine, setting: Setting, first: int, path: Path) -> None:
    from training.files import whole_file

    if path.is_file():
        return
    began = time.perf_counter()
    rows = [setting.row(FIRST_SEED + seed) for seed in range(first, first + CHUNK)]
    latents, _ = engine.generate(rows, decode=False)
    seconds = time.perf_counter() - began
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, latents=latents, seconds=seconds, digest=engine.settings.digest)


def load(folder: Path, setting: Setting, images: int) -> tuple[Array, float]:
    """Latents [images, 1, 64, 64], and the median seconds of an image without decoding."""
    chunks = [np.load(folder / setting.name / f"{first}.npz") for first in range(0, images, CHUNK)]
    return np.concatenate([chunk["latents"] for chunk in chunks]), float(
        np.median([chunk["seconds"] for chunk in chunks]) / CHUNK
    )
