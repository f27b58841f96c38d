"""The reference sampling loop in PyTorch with MONAI's scheduler. Served images are compared with its images.

    python -m training.sample --snapshot RUN/snapshot -n 8 --seed 0 --out OUT

A seed gives the same image as on the server, up to float32 rounding: DDIM with eta 0, from the server's start noise.
Images are SYNTHETIC: for research only, not for diagnosis.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from training.cli import exit_status, run_command
from training.config import NoiseSchedule

if TYPE_CHECKING:
    import numpy as np
    from monai.networks.nets import AutoencoderKL
    from monai.networks.schedulers import DDIMScheduler
    from numpy.typing import NDArray
    from torch import Tensor

    from training.checkpoint import Snapshot

    Denoiser = Callable[[Tensor, Tensor], Tensor]
    """(latents [B, 1, 64, 64], timesteps [B]) -> predicted noise [B, 1, 64, 64]."""

LATENT_SHAPE = (1, 64, 64)


@dataclass(frozen=True)
class Arguments:
    """Command line."""

    snapshot: Path
    """Snapshot folder of training.train_diffusion."""
    out: Path
    """Folder that gets a PNG for each image, images.npz, contact_sheet.png and provenance.json; made if needed."""
    seeds: tuple[int, ...] = ()
    """List of seeds, instead of -n and --seed."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 1
    """Number of images, with the seeds SEED, SEED+1, ..."""
    seed: int = 0
    """The first seed."""
    steps: int = 50
    """Denoising steps, 1 to the 1000 of training; numbers that do not divide it skip the noisiest timesteps."""
    batch: int = 4
    """Images per batch: more need more memory and give the same images, except for rounding."""


def start_noise(seed: int) -> NDArray[np.float32]:
    """Noise float32 [1, 64, 64] ~ N(0, 1) of a seed, -2^63 to 2^63-1; bit for bit as on the server.

    Philox4x64 (Salmon et al. 2011) keyed by the seed's 64 bits (two's complement), its counter at 0.
    """
    import numpy as np

    key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(LATENT_SHAPE, dtype=np.float32)


def ddim_scheduler(schedule: NoiseSchedule, steps: int) -> DDIMScheduler:
    """MONAI's DDIM as the bundle configures it, on the grid of MONAI < 1.6: 980, 960, ..., 0 for 50 steps.

    MONAI 1.6 spreads the timesteps over 0..999, but its `step` still uses t - 1000 // steps as the previous one.
    """
    import torch
    from monai.networks.schedulers import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=schedule.num_train_timesteps,
        schedule="scaled_linear_beta",
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    stride = schedule.num_train_timesteps // steps
    scheduler.timesteps = torch.arange(steps - 1, -1, -1) * stride
    return scheduler


def ddim_trajectory(
    unet: Denoiser, schedule: NoiseSchedule, noise: Tensor, steps: int = 50, eta: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """DDIM (Song et al. 2021, eq. 12) from noise [B, 1, 64, 64]: the latents after each step, and its estimate of x0.

    First order. Deterministic for eta 0; for eta > 0 the noise is from torch's global generator, unlike the server's.
    """
    import torch

    scheduler = ddim_scheduler(schedule, steps)
    latents = noise
    for timestep in scheduler.timesteps:
        timesteps = timestep.expand(len(latents)).to(latents.device)
        with torch.no_grad():  # not around the yield, where the caller's code runs
            latents, estimate = scheduler.step(unet(latents, timesteps).float(), int(timestep), latents, eta=eta)
        yield latents, estimate


def sample_latents(unet: Denoiser, schedule: NoiseSchedule, noise: Tensor, steps: int = 50, eta: float = 0.0) -> Tensor:
    """The last latents of `ddim_trajectory`: noise [B, 1, 64, 64] to scaled latents of the same shape."""
    return deque(ddim_trajectory(unet, schedule, noise, steps, eta), maxlen=1).pop()[0]


def decode(autoencoder: AutoencoderKL, latents: Tensor, scale_factor: float, size: int = 240) -> Tensor:
    """Scaled latents [B, 1, 64, 64] to slices [B, 1, size, size]: rescaled, decoded, centre-cropped."""
    import torch

    with torch.no_grad():
        images = autoencoder.decode(latents / scale_factor)
    return centre_crop(images, size)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """Images [..., H, H] to [..., size, size]."""
    margin = (images.shape[-1] - size) // 2
    return images[..., margin : margin + size, margin : margin + size]


def generate(
    snapshot: Snapshot, seeds: Sequence[int], steps: int, batch: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images float32 [n, size, size], not clipped, and scaled latents float32 [n, 1, 64, 64] of `seeds`.

    Shows a progress bar. Uses a GPU if there is one, in full float32.

    Raises:
        ValueError: the snapshot has no UNet.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from training.checkpoint import without_labels
    from training.networks import build_autoencoder, build_unet

    snapshot = without_labels(snapshot)
    if snapshot.unet is None or snapshot.scale_factor is None:
        raise ValueError("the snapshot holds an autoencoder only: give that of training.train_diffusion")
    torch.backends.cudnn.allow_tf32 = False  # on by default in convolutions, with errors of 1e-3
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unet = build_unet(snapshot.config.unet).to(device).eval()
    unet.load_state_dict(snapshot.unet)
    autoencoder = build_autoencoder(snapshot.config.autoencoder).to(device).eval()
    autoencoder.load_state_dict(snapshot.autoencoder)
    images, latents = [], []
    with tqdm(total=len(seeds) * steps, desc="sampling", unit="step") as bar:
        for first in range(0, len(seeds), batch):
            noise = torch.from_numpy(np.stack([start_noise(seed) for seed in seeds[first : first + batch]]))
            for z, _ in ddim_trajectory(unet, snapshot.config.noise_schedule, noise.to(device), steps):
                bar.update(len(z))
            latents.append(z.cpu().numpy())
            decoded = decode(autoencoder, z, snapshot.scale_factor, snapshot.config.data.size)
            images.append(decoded[:, 0].cpu().numpy())
    return np.concatenate(images), np.concatenate(latents)


def chosen_seeds(arguments: Arguments) -> list[int]:
    """The seeds that the command line asks for.

    Raises:
        ValueError: no seed, a repeated seed, a seed of more than 64 bits, or --seeds together with -n or --seed.
    """
    if arguments.seeds and (arguments.n, arguments.seed) != (1, 0):
        raise ValueError("give either --seeds or -n and --seed")
    seeds = list(arguments.seeds) or list(range(arguments.seed, arguments.seed + arguments.n))
    if not seeds:
        raise ValueError(f"-n is {arguments.n}; it must be 1 or more")
    for seed in seeds:
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"seed {seed} does not fit 64 bits")
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is given twice: its images would be the same")
    return seeds


def run(arguments: Arguments) -> None:
    """Generate, write, and print the folder.

    Raises:
        CheckpointError, ValueError, OSError: an unusable snapshot, argument or output folder.
    """
    from training.checkpoint import load_snapshot
    from training.sample_files import claim_folder, recipe, write_samples

    seeds, snapshot = chosen_seeds(arguments), load_snapshot(arguments.snapshot)
    trained = snapshot.config.noise_schedule.num_train_timesteps
    if not 1 <= arguments.steps <= trained or arguments.batch < 1:
        raise ValueError(f"--steps must lie in 1..{trained}, and --batch must be 1 or more")
    claim_folder(arguments.out)
    images, latents = generate(snapshot, seeds, arguments.steps, arguments.batch)
    write_samples(arguments.out, seeds, images, latents, recipe(arguments.snapshot, arguments.steps))
    print(f"{len(seeds)} images: {arguments.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = tyro.cli(Arguments, prog="python -m training.sample", description=__doc__, args=argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    run_command(main)
