"""Stage 1: train the VAE-GAN on axial slices and write an autoencoder snapshot.

    python -m training.train_autoencoder --config demo --data DIR --out RUN

Run the same command again to continue after an interruption; Ctrl-C and SIGTERM save the state first. For several
GPUs use `torchrun --nproc-per-node N -m` in place of `python -m`. OUT/snapshot holds the last weights. With validation,
OUT/best holds those with the best PSNR.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training.cli import exit_status, run_command
from training.config import Config
from training.stage_options import parse_stage_arguments


@dataclass(frozen=True)
class Arguments:
    """Command line of stage 1."""

    config: str
    """Source of all defaults: demo, brats, or the path of a .toml file."""
    settings: Annotated[Config, tyro.conf.arg(name="")]
    data: Path = tyro.MISSING
    """Folder that holds Task01_BrainTumour."""
    out: Path = tyro.MISSING
    """Run folder: resume state, events, pictures, snapshots."""
    initial: Path | None = None
    """Snapshot folder whose weights training begins with, to continue on other data; default: random weights."""
    dry_run: bool = False
    """Print the settings, sizes, memory, steps and files, and stop."""


def train(config: Config, data: Path, out: Path, initial: Path | None = None) -> Path:
    """Train to the configured number of epochs, from the start or from the state in `out`; returns the snapshot folder.

    Raises:
        DataError, CheckpointError: unusable data, weights, or a run folder of another configuration.
        KeyboardInterrupt: a signal asked to stop; everything is saved.
        NotWritten: the disk is full, or a similar error; the last saved state is kept.
        FloatingPointError: a loss or gradient is not finite.
    """
    import torch
    from tqdm import tqdm

    from training.checkpoint import Snapshot, initial_weights
    from training.data import autoencoder_transforms, check_voxels, open_volumes, slice_batches
    from training.decathlon import describe_data, read_index
    from training.files import sha256
    from training.interrupt import Interrupt
    from training.networks import build_autoencoder, build_discriminator
    from training.perceptual import build_perceptual_loss
    from training.pictures import ERROR_GAIN
    from training.processes import joined
    from training.run import Run
    from training.update import Trained, learning_rate, update_autoencoder
    from training.validation import validate_autoencoder, validation_slices

    # Networks and the run that they continue.
    settings, processes = config.autoencoder_training, joined()
    parts, all_parts = processes.parts(settings.accumulate), processes.all_parts(settings.accumulate)
    weights, perceptual_sha256 = config.perceptual.weights, None
    perceptual = build_perceptual_loss(weights, warn=processes.first)
    if perceptual is not None:
        perceptual.to(processes.device)
        # The licence of these weights may limit the use of the result, so the snapshot records which weights they are.
        perceptual_sha256 = sha256(Path(weights))
    data_record = describe_data(read_index(data))
    first_weights, first_record = initial_weights(initial, "autoencoder", config.autoencoder)
    run = Run(out, "autoencoder", config, data_record, all_parts, processes, perceptual_sha256, first_record)
    torch.manual_seed(config.seed)
    network = build_autoencoder(config.autoencoder)
    if first_weights is not None:
        network.load_state_dict(first_weights)
    autoencoder = Trained(network, settings, processes)
    discriminator = Trained(build_discriminator(config.discriminator), settings, processes)
    run.restore(autoencoder=autoencoder, discriminator=discriminator)

    # Data.
    if processes.first and run.iteration == 0 and config.data.cache_rate < 1:
        check_voxels(data, "training", config.data)
    transforms = autoencoder_transforms(config.data, settings.slices_per_volume)
    volumes = open_volumes(data, "training", transforms, config.data)
    held_out = validation_slices(data, config, settings) if settings.validate_every and processes.first else None
    batches = slice_batches(volumes, settings.volumes_per_batch, config.seed, run.iteration, parts, all_parts)
    steps_per_epoch = max(1, len(volumes) // (settings.volumes_per_batch * all_parts))
    total = run.iteration if run.without_progress(settings.patience) else settings.epochs * steps_per_epoch

    def snapshot() -> Snapshot:
        return Snapshot(config, autoencoder.averaged.state_dict(), history={"autoencoder": run.record(done)})

    # Main loop.
    bar = tqdm(range(run.iteration, total), "autoencoder", total, initial=run.iteration, disable=not processes.first)
    with run.saving(), Interrupt(processes) as interrupt:
        for iteration in bar:
            batch = {part: images.to(processes.device) for part, images in next(batches).items()}
            rate = learning_rate(settings, iteration, iteration // steps_per_epoch)
            autoencoder.begin(rate)
            discriminator.begin(rate)
            try:
                losses, norms, reconstruction = update_autoencoder(
                    autoencoder, discriminator, perceptual, batch, iteration, config
                )
            except FloatingPointError as error:
                raise run.not_finite(iteration, batch, error) from error
            done = iteration + 1
            run.log(done, losses, {"learning_rate": rate, **norms})
            bar.set_postfix({name: f"{value:.4g}" for name, value in run.smooth.items()}, refresh=False)

            # Validate.
            if settings.validate_every and done % (settings.validate_every * steps_per_epoch) == 0:
                values = validate_autoencoder(autoencoder.averaged, held_out) if held_out is not None else {}
                if run.validated(done, values, score=-values.get("psnr", 0)):
                    run.save_snapshot(snapshot(), best=True)
            interrupted = interrupt.asked()
            over = interrupted or done == total or run.without_progress(settings.patience)

            # Save.
            if done % settings.checkpoint_every == 0 or over:
                images, reconstruction = batch[max(batch)][:6], reconstruction[:6]
                errors = ERROR_GAIN * (images - reconstruction).abs()
                run.picture(done, "reconstruction", [images, reconstruction, errors])
                run.save_snapshot(snapshot())
                run.save(done, autoencoder=autoencoder, discriminator=discriminator)
            if interrupted and done < total:
                raise KeyboardInterrupt
            if over:
                break
    return run.snapshot_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = parse_stage_arguments(Arguments, argv, "python -m training.train_autoencoder", __doc__)
    return exit_status(lambda: _run(arguments))


def _run(arguments: Arguments) -> None:
    if arguments.dry_run:
        from training.dry_run import describe

        describe(arguments.settings, "autoencoder", arguments.data, arguments.out)
        return
    from training.processes import joined

    folder = train(arguments.settings, arguments.data, arguments.out, arguments.initial)
    if joined().first:
        print(f"snapshot: {folder}")


if __name__ == "__main__":
    run_command(main)
