"""Final latents of the same seeds by every sampler and number of steps. Continues where it was stopped."""

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.harness.engine import Array, Engine
from benchmarks.quality.settings import Plan, Setting
from mri_ldm.request import RowParameters

CHUNK = 8
_engine: Engine  # of a process of the pool
_folder: Path
FIRST_SEED = 10_000


def generate(repository: Path, images: int, folder: Path, plan: Plan) -> None:
    """Latents of `images` seeds, rounded up to whole chunks, by each setting: `folder`/<setting>/<first seed>.npz.

    Chunk by chunk through all settings, so that an early end leaves as many images of all. One process for each core,
    with one thread: two such processes make more images than one with two threads.
    """
    work = [
        (setting, first)
        for first in range(0, images, CHUNK)
        for setting in plan.all
        if not latents_file(folder, setting, first).is_file()
    ]
    pool = ProcessPoolExecutor(
        os.cpu_count(), mp_context=get_context("spawn"), initializer=_start, initargs=(repository, folder)
    )
    total = sum(setting.steps for setting, _ in work) * CHUNK
    with pool, tqdm(total=total, unit="step", unit_scale=True, disable=None) as bar:
        done = {pool.submit(_chunk, *item): item for item in work}
        for future in as_completed(done):
            future.result()
            bar.set_description(f"{done[future][0].name}, image {done[future][1]}")
            bar.update(done[future][0].steps * CHUNK)


def _start(repository: Path, folder: Path) -> None:
    global _engine, _folder
    _engine, _folder = Engine(repository, threads=1), folder


def _chunk(setting: Setting, first: int) -> None:
    from training.files import write_npz

    rows = [
        RowParameters(FIRST_SEED + seed, setting.steps, setting.sampler, 0.0) for seed in range(first, first + CHUNK)
    ]
    latents, _ = _engine.generate(rows, decode=False)
    write_npz(latents_file(_folder, setting, first), latents=latents, digest=_engine.settings.digest)


def latents_file(folder: Path, setting: Setting, first: int) -> Path:
    """Of the chunk whose first image has this number, and this seed above FIRST_SEED."""
    return folder / setting.name / f"{first}.npz"


def chunks(folder: Path, setting: Setting, images: int) -> set[int]:
    """The first images of the chunks that are there, of the first `images` images."""
    return {first for first in range(0, images, CHUNK) if latents_file(folder, setting, first).is_file()}


def load(folder: Path, setting: Setting, first: int, digest: str) -> Array:
    """Latents float32 [CHUNK, 1, 64, 64] of a chunk.

    Raises:
        ValueError: weights other than those of `digest` made it.
    """
    with np.load(latents_file(folder, setting, first)) as chunk:
        if str(chunk["digest"]) != digest:
            raise ValueError(
                f"{latents_file(folder, setting, first)} was made by the weights {chunk['digest']}, not by {digest}: "
                "give another --latents"
            )
        latents: Array = chunk["latents"]
    return latents
