"""Find the timesteps that lose the least in few steps, and write them into a snapshot: Align Your Steps.

    python -m training.align_steps --snapshot RUN/snapshot --data DIR

Measures how the estimates of the UNet change along noised latents of training data, and finds the best grid for 4 to 20
steps (Sabour et al. 2024; `training.step_alignment`). `python -m export repository` takes the grids along, and the
server uses them where a request says `timestep_grid` aligned. Weights that are trained further need it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from training.cli import exit_status, run_command

if TYPE_CHECKING:
    from torch import Tensor

    from training.checkpoint import Snapshot
    from training.step_alignment import Float64

STEPS = range(4, 21)
"""Numbers of steps that get a grid. The server interpolates for others."""
SLICES = 4
"""Of a volume, or more where there are few volumes."""
INTERRUPTED = "interrupted; the snapshot is as it was"


@dataclass(frozen=True)
class Arguments:
    """Command line."""

    snapshot: Path
    """Snapshot folder of training.train_diffusion; it gets the timesteps."""
    data: Path
    """Folder that holds Task01_BrainTumour."""
    paths: int = 64
    """Noised slices, four of a volume: more make the average smoother."""
    candidates: int = 64
    """Timesteps to choose from, 8 or more. The UNet computes this many times `--paths` rows."""
    batch: int = 8
    """Rows of the UNet at a time."""
    seed: int = 0
    """Of slices and noise: the same seed gives the same timesteps."""
    picture: Path | None = None
    """PNG of the new grids beside the others."""


def align(snapshot: Snapshot, latents: Tensor, arguments: Arguments) -> tuple[tuple[int, ...], ...]:
    """The best grids for STEPS, from scaled latents [N, 1, 64, 64] of training data. Shows a progress bar.

    Uses a GPU if there is one.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from training.checkpoint import without_labels
    from training.losses import alpha_bars_of
    from training.networks import build_unet
    from training.step_alignment import best_paths, candidate_timesteps, estimate_distances, noise_levels, step_costs

    snapshot = without_labels(snapshot)
    assert snapshot.unet is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unet = build_unet(snapshot.config.unet).to(device).eval()
    unet.load_state_dict(snapshot.unet)
    alpha_bars = alpha_bars_of(snapshot.config.noise_schedule).double().numpy()
    timesteps = candidate_timesteps(alpha_bars, arguments.candidates)
    generator = torch.Generator().manual_seed(arguments.seed)
    distances: Float64 = np.zeros((len(timesteps), len(timesteps)))
    with tqdm(total=len(latents) * len(timesteps), desc="aligning", unit="row") as bar:
        for part in latents.split(arguments.batch):
            distances += estimate_distances(
                unet, part.to(device), timesteps.tolist(), alpha_bars, generator, bar.update
            )
    costs = step_costs(distances / len(latents), noise_levels(alpha_bars)[timesteps])
    return tuple(tuple(timesteps[path].tolist()) for path in best_paths(costs, STEPS).values())


def training_latents(snapshot: Snapshot, data: Path, count: int, seed: int) -> Tensor:
    """Scaled latents [count, 1, 64, 64] of slices of the training section, drawn as in training.

    Raises:
        DataError: a volume cannot be used; it is named.
    """
    import torch

    from training.data import diffusion_transforms, fixed_slices, open_volumes
    from training.networks import build_autoencoder

    assert snapshot.scale_factor is not None
    reading = snapshot.config.data
    volumes = open_volumes(data, "training", diffusion_transforms(reading), reading, cache=False)
    per_volume = max(SLICES, math.ceil(count / len(volumes)))
    slices = fixed_slices(volumes, math.ceil(count / per_volume), per_volume)[:count]
    autoencoder = build_autoencoder(snapshot.config.autoencoder).eval()
    autoencoder.load_state_dict(snapshot.autoencoder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parts = [autoencoder.encode(part) for part in slices.split(SLICES)]
    drawn = [mu + sigma * torch.randn(mu.shape, generator=generator) for mu, sigma in parts]
    return snapshot.scale_factor * torch.cat(drawn)


def run(arguments: Arguments) -> None:
    """Find the grids, write the snapshot, and print what was found.

    Raises:
        CheckpointError, DataError, ValueError, NotWritten: an unusable snapshot, data, argument or disk. The snapshot
            is as it was.
    """
    from training.checkpoint import UNET, CheckpointError, load_snapshot, save_snapshot
    from training.files import sha256

    snapshot, weights = load_snapshot(arguments.snapshot), arguments.snapshot / UNET
    if snapshot.unet is None or snapshot.scale_factor is None:
        raise ValueError("the snapshot holds an autoencoder only: give that of training.train_diffusion")
    trained = snapshot.config.noise_schedule.num_train_timesteps
    if not 8 <= arguments.candidates <= trained or min(arguments.paths, arguments.batch) < 1:
        raise ValueError(f"--candidates must lie in 8..{trained}, and --paths and --batch must be 1 or more")
    aligned = sha256(weights)
    latents = training_latents(snapshot, arguments.data, arguments.paths, arguments.seed)
    grids = align(snapshot, latents, arguments)
    # Read anew: another command may have added something meanwhile.
    current = load_snapshot(arguments.snapshot)
    if sha256(weights) != aligned:
        raise CheckpointError(f"{weights} was replaced meanwhile: align the steps of the new weights")
    save_snapshot(replace(current, aligned_timesteps=grids), arguments.snapshot)
    for grid in grids:
        print(f"{len(grid):3} steps: {' '.join(map(str, grid))}")
    if arguments.picture is not None:
        from training.grid_picture import draw_grids
        from training.plot import save

        save(draw_grids(snapshot.config.noise_schedule, grids), arguments.picture)
    print(f"aligned timesteps: {arguments.snapshot}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = tyro.cli(Arguments, prog="python -m training.align_steps", description=__doc__, args=argv)
    return exit_status(lambda: run(arguments), INTERRUPTED)


if __name__ == "__main__":
    run_command(main)
