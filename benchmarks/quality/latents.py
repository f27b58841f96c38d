"""Final latents of the same seeds by every sampler, grid and number of steps. Continues where it was stopped."""

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.harness.engine import Array, Engine
from benchmarks.quality.settings import Design, Setting
from mri_ldm.request import RowParameters
from training.files import write_npz

CHUNK = 8
FIRST_SEED = 10_000
_engine: Engine  # of a process of the pool


def generate(repository: Path, folder: Path, design: Design) -> None:
    """Latents of the design's seeds, rounded up to whole chunks: `folder`/<trajectory>/<first image>.npz.

    Chunk by chunk through all settings, so that an early end leaves as many images of all. One process for each core,
    with one thread: two such processes make more images than one with two threads.
    """
    counts = design.counts()
    wanted = [
        (setting, first)
        for first in range(0, max(counts.values()), CHUNK)
        for setting, images in counts.items()
        if first < images
    ]
    work = [item for item in wanted if not latents_file(folder, *item).is_file()]
    total = sum(setting.steps for setting, _ in work) * CHUNK
    spawned = get_context("spawn")
    with (
        ProcessPoolExecutor(os.cpu_count(), spawned, initializer=_start, initargs=(repository,)) as pool,
        tqdm(total=total, unit="step", unit_scale=True, disable=None) as bar,
    ):
        done = {pool.submit(_chunk, folder, *item): item for item in work}
        for future in as_completed(done):
            future.result()
            setting, first = done[future]
            bar.set_description(f"{setting.trajectory}, image {first}")
            bar.update(setting.steps * CHUNK)


def _start(repository: Path) -> None:
    global _engine
    _engine = Engine(repository, threads=1)


def _chunk(folder: Path, setting: Setting, first: int) -> None:
    seeds = range(FIRST_SEED + first, FIRST_SEED + first + CHUNK)
    grid = setting.timestep_grid
    rows = [RowParameters(seed, setting.steps, setting.sampler, 0.0, timestep_grid=grid) for seed in seeds]
    latents, _ = _engine.generate(rows, decode=False)
    write_npz(latents_file(folder, setting, first), latents=latents, digest=_engine.settings.digest)


def latents_file(folder: Path, setting: Setting, first: int) -> Path:
    """Of the chunk whose first image has this number, and this seed above FIRST_SEED."""
    return folder / setting.trajectory / f"{first}.npz"


def chunks(folder: Path, setting: Setting, images: int) -> set[int]:
    """The first images of the chunks that are there, of the setting's first `images` images."""
    return {first for first in range(0, images, CHUNK) if latents_file(folder, setting, first).is_file()}


def load(folder: Path, setting: Setting, first: int, digest: str) -> Array:
    """Latents float32 [CHUNK, 1, 64, 64] of a chunk.

    Raises:
        ValueError: weights other than those of `digest` made it.
    """
    path = latents_file(folder, setting, first)
    with np.load(path) as chunk:
        if str(chunk["digest"]) != digest:
            made = f"{path} was made by the weights {chunk['digest']}, not by {digest}"
            raise ValueError(f"{made}: give another --latents")
        latents: Array = chunk["latents"]
    return latents
