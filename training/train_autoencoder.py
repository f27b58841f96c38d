"""Stage 1: train the VAE-GAN on axial slices and write an autoencoder snapshot.

    python -m training.train_autoencoder --config demo --data DIR --out RUN

Run the same command again to continue after an interruption.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training.config import Config, exit_status, parse_arguments


@dataclass(frozen=True)
class Arguments:
    """Command line of stage 1."""

    config: str
    """Defaults of all settings: demo, brats, or the path of a .toml file."""
    settings: Annotated[Config, tyro.conf.arg(name="")]
    data: Path = tyro.MISSING
    """Folder that holds Task01_BrainTumour."""
    out: Path = tyro.MISSING
    """Run folder: resume state, events, pictures; the snapshot goes to OUT/snapshot."""


def train(config: Config, data: Path, out: Path) -> Path:
    """Train to the configured number of epochs, from the start or from where `out` stands; returns the snapshot folder.

    Raises:
        DataError, CheckpointError: unusable data, or a run folder of another configuration.
        FloatingPointError: a loss is not finite.
    """
    import torch
    from tqdm import tqdm

    from training.checkpoint import Snapshot, save_snapshot
    from training.data import autoencoder_transforms, derived_seed, describe_data, open_volumes, slice_batches
    from training.losses import discriminator_step, generator_step
    from training.networks import build_autoencoder, build_discriminator
    from training.run import Run, set_learning_rate

    # Networks, optimisers and the run they continue.
    settings = config.autoencoder_training
    run = Run(out, "autoencoder", config, describe_data(data))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    layout = torch.channels_last  # up to twice as fast in convolutions, on CPU and GPU
    autoencoder = build_autoencoder(config.autoencoder).to(device, memory_format=layout)
    discriminator = build_discriminator(config.discriminator).to(device, memory_format=layout)
    optimizer_g = torch.optim.Adam(autoencoder.parameters(), lr=settings.learning_rate)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=settings.learning_rate)
    parts = {"autoencoder": autoencoder, "discriminator": discriminator, "g": optimizer_g, "d": optimizer_d}
    run.restore(**parts)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")

    # Data.
    volumes = open_volumes(
        data, "training", autoencoder_transforms(config.data, settings.slices_per_volume), config.data
    )
    batches = slice_batches(volumes, settings.volumes_per_batch, config.seed, run.iteration)
    steps_per_epoch = max(1, len(volumes) // settings.volumes_per_batch)
    total = settings.epochs * steps_per_epoch

    # Main loop.
    bar = tqdm(range(run.iteration, total), initial=run.iteration, total=total, desc="autoencoder", unit="it")
    for iteration in bar:
        images = next(batches).to(device, memory_format=layout)
        torch.manual_seed(derived_seed(config.seed, iteration, 2))
        for optimizer in (optimizer_g, optimizer_d):
            set_learning_rate(optimizer, settings, iteration // steps_per_epoch)

        # Generator.
        discriminator.requires_grad_(False)
        optimizer_g.zero_grad(set_to_none=True)
        with autocast:
            losses, reconstruction = generator_step(autoencoder, discriminator, images, settings)
        losses["loss"].backward()
        optimizer_g.step()

        # Discriminator.
        if settings.adversarial_weight > 0:
            discriminator.requires_grad_(True)
            optimizer_d.zero_grad(set_to_none=True)
            with autocast:
                losses["discriminator"] = discriminator_step(discriminator, images, reconstruction, settings)
            losses["discriminator"].backward()
            optimizer_d.step()

        # Report and save.
        run.log(iteration, {name: loss.item() for name, loss in losses.items()})
        bar.set_postfix({name: f"{value:.4g}" for name, value in run.smooth.items()}, refresh=False)
        if (iteration + 1) % settings.checkpoint_every == 0 or iteration + 1 == total:
            run.picture(iteration + 1, "reconstruction", [images[:6], reconstruction[:6].detach()])
            history = {"autoencoder": run.record(iteration + 1)}
            save_snapshot(Snapshot(config, autoencoder.state_dict(), history=history), run.snapshot_folder)
            run.save(iteration + 1, **parts)
    return run.snapshot_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = parse_arguments(Arguments, argv, "python -m training.train_autoencoder", str(__doc__))
    return exit_status(lambda: print(f"snapshot: {train(arguments.settings, arguments.data, arguments.out)}"))


if __name__ == "__main__":
    sys.exit(main())
