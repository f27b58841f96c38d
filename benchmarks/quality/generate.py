"""Final latents of the same seeds by every sampler and number of steps. Goes on where it was stopped."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
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
    """Latents of `images` seeds by each setting: `folder`/<setting>/<first seed>.npz.

    Chunk by chunk through all settings, so that an early end leaves as many images of each. A process for each core,
    with one thread: two of those make more images than one with two threads.
    """
    pool = ProcessPoolExecutor(
        os.cpu_count(), mp_context=get_context("spawn"), initializer=_start, initargs=(repository, folder)
    )
    work = [(setting, first) for first in range(0, images, CHUNK) for setting in settings]
    with pool, tqdm(total=sum(setting.steps for setting, _ in work) * CHUNK, unit="step", unit_scale=True) as bar:
        done = {pool.submit(_chunk, *item): item for item in work}
        for future in as_completed(done):
            future.result()
            bar.set_description(f"{done[future][0].name}, image {done[future][1]}")
            bar.update(done[future][0].steps * CHUNK)


def _start(repository: Path, folder: Path) -> None:
    global _engine, _folder
    _engine, _folder = Engine(repository, threads=1), folder


def _chunk(setting: Setting, first: int) -> None:
    from training.files import whole_file

    path = _folder / setting.name / f"{first}.npz"
    if path.is_file():
        return
    rows = [setting.row(FIRST_SEED + seed) for seed in range(first, first + CHUNK)]
    latents, _ = _engine.generate(rows, decode=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, latents=latents, digest=_engine.settings.digest)


def load(folder: Path, setting: Setting, images: int) -> Array:
    """Latents [images, 1, 64, 64]."""
    chunks = [np.load(folder / setting.name / f"{first}.npz") for first in range(0, images, CHUNK)]
    latents: Array = np.concatenate([chunk["latents"] for chunk in chunks])
    return latents
