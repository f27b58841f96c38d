"""Train a tiny decoder that makes the full decoder's images with far fewer operations, and add it to a snapshot.

    python -m training.distil_decoder --snapshot RUN/snapshot --data DIR

Needs a snapshot with a scale factor: of training.train_diffusion, or of `python -m export from-monai`. Run the same
command again to continue after an interruption. At the end held-out latents are decoded by both decoders. With a mean
SSIM of 0.98 or more the snapshot gets the tiny decoder. Below that the snapshot stays as it was and the status is 1.
For several GPUs use `torchrun --nproc-per-node N -m` in place of `python -m`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from training.cli import exit_status, run_command
from training.config import Config
from training.stage_options import parse_stage_arguments
from training.train_diffusion import FIXED as FIXED_BY_STAGE_1
from training.train_diffusion import check_overrides, with_autoencoder_of

if TYPE_CHECKING:
    import torch
    from monai.networks.nets import AutoencoderKL
    from torch import Tensor

    from training.checkpoint import Snapshot, StateDict

SHOWN = 6  # columns of the picture
BATCHES = 8  # decoded by the full decoder at once


@dataclass(frozen=True)
class Arguments:
    """Command line."""

    config: str
    """Source of all defaults: demo, brats, or the path of a .toml file."""
    settings: Annotated[Config, tyro.conf.arg(name="")]
    snapshot: Path = tyro.MISSING
    """Snapshot folder of both networks, which gets the tiny decoder."""
    data: Path = tyro.MISSING
    """Folder that holds Task01_BrainTumour."""
    out: Path | None = None
    """Run folder: resume state, latents, events, pictures, and snapshots with the tiny decoder; default:
    tiny_decoder beside the snapshot."""
    latents: Path | None = None
    """File of the encoded slices, made if needed; default: that of the run of the UNet if it is beside the snapshot,
    else OUT/latents.safetensors."""
    gate: float = 0.98
    """Mean SSIM to the full decoder below which the snapshot does not get the tiny decoder."""
    dry_run: bool = False
    """Print the settings, sizes, memory, steps and files, and stop."""


FIXED = (*FIXED_BY_STAGE_1, "unet", "noise_schedule", "diffusion_training")


class GateError(ValueError):
    """The tiny decoder is not yet like the full one."""


def train(config: Config, snapshot_folder: Path, data: Path, out: Path, latents_file: Path) -> dict[str, float]:
    """Train to the configured number of epochs, from the start or from the state in `out`; OUT/snapshot has the result.

    config: with the settings of the snapshot, as from `with_settings_of`. latents_file: made where there is none.
    Returns mean `l1`, `psnr` in dB and `ssim` of the tiny decoder against the full one on held-out latents.

    Raises:
        DataError, CheckpointError: unusable data or snapshot, or a run folder of another configuration.
        KeyboardInterrupt: a signal asked to stop; everything is saved.
        NotWritten: the disk is full, or a similar error; the last saved state is kept.
        FloatingPointError: the loss or gradient is not finite.
    """
    import torch
    from tqdm import tqdm

    from training.checkpoint import AUTOENCODER, CheckpointError, load_snapshot
    from training.data import derived_seed
    from training.decathlon import describe_data, read_index
    from training.files import sha256
    from training.interrupt import Interrupt
    from training.latents import cached_latents, draw_latents, latents_key
    from training.networks import build_autoencoder
    from training.processes import joined
    from training.run import Run
    from training.tiny_decoder import Lesson, build_tiny_decoder, compare, decoded, with_noise
    from training.update import Trained, learning_rate, update_tiny_decoder
    from training.validation import encode_mean, validation_slices

    # The frozen full decoder, the latents of the data, and held-out latents with their images.
    snapshot = load_snapshot(snapshot_folder)
    if snapshot.scale_factor is None:
        raise CheckpointError(f"{snapshot_folder} has no scale factor: give the snapshot of training.train_diffusion")
    scale_factor = snapshot.scale_factor
    settings, processes = config.tiny_decoder_training, joined()
    parts, all_parts = processes.parts(settings.accumulate), processes.all_parts(settings.accumulate)
    index = read_index(data)
    teacher = {"autoencoder": sha256(snapshot_folder / AUTOENCODER), "scale_factor": scale_factor}
    run = Run(out, "tiny_decoder", config, describe_data(index), all_parts, processes, initial=teacher)
    autoencoder = build_autoencoder(config.autoencoder).to(processes.device).eval().requires_grad_(False)
    autoencoder.load_state_dict(snapshot.autoencoder)
    held_out = scale_factor * encode_mean(autoencoder, validation_slices(data, config, settings))
    targets = decoded(autoencoder, held_out, scale_factor)
    key = latents_key(snapshot_folder, index, config.data)
    latents = cached_latents(autoencoder, data, config.data, processes, latents_file, key)
    share = (BATCHES * settings.volumes_per_batch, settings.slices_per_volume, config.seed)
    rows = settings.volumes_per_batch * settings.slices_per_volume
    lessons: dict[int, Lesson] = {}

    # The network and the run that it continues.
    torch.manual_seed(config.seed)
    tiny = Trained(build_tiny_decoder(config.tiny_decoder), settings, processes)
    run.restore(tiny=tiny)
    if processes.first:
        print_operations(autoencoder, tiny.network)
    done = run.iteration
    steps_per_epoch = max(1, len(latents["mu"]) // (settings.volumes_per_batch * all_parts))
    total = done if run.without_progress(settings.patience) else settings.epochs * steps_per_epoch

    def lesson(number: int, part: int) -> Lesson:
        drawn = scale_factor * draw_latents(latents, *share, number, part, all_parts)
        generator = torch.Generator().manual_seed(derived_seed(config.seed, number, 5, part))
        noisy = with_noise(drawn, settings.latent_noise, generator).to(processes.device)
        return Lesson(noisy, decoded(autoencoder, noisy, scale_factor))

    def result() -> Snapshot:
        return with_tiny_decoder(snapshot, config, run.record(done), tiny.averaged.state_dict())

    # Main loop.
    bar = tqdm(range(done, total), "tiny decoder", total, initial=done, disable=not processes.first)
    with run.saving(), Interrupt(processes) as interrupt:
        for iteration in bar:
            number, update = divmod(iteration, BATCHES * settings.reuse)
            if not lessons or update == 0:
                lessons = {part: lesson(number, part) for part in parts}
            batch, images = {}, {}
            for part, taught in lessons.items():
                batch[part], images[part] = taught.batch(update, rows, derived_seed(config.seed, number, 6, part))
            rate = learning_rate(settings, iteration, iteration // steps_per_epoch)
            tiny.begin(rate)
            try:
                losses, norms = update_tiny_decoder(tiny, batch, images, settings)
            except FloatingPointError as error:
                raise run.not_finite(iteration, batch, error) from error
            done = iteration + 1
            run.log(done, losses, {"learning_rate": rate, **norms})
            bar.set_postfix({name: f"{value:.4g}" for name, value in run.smooth.items()}, refresh=False)

            # Validate.
            if settings.validate_every and done % (settings.validate_every * steps_per_epoch) == 0:
                values = compare(tiny.averaged, held_out, targets) if processes.first else {}
                if run.validated(done, values, score=1 - values.get("ssim", 0)):
                    run.save_snapshot(result(), best=True)
            interrupted = interrupt.asked()
            over = interrupted or done == total or run.without_progress(settings.patience)

            # Save.
            if done % settings.checkpoint_every == 0 or over:
                if processes.first and not interrupted:
                    run.picture(done, "decoders", picture(tiny.averaged, held_out, targets))
                run.save_snapshot(result())
                run.save(done, tiny=tiny)
            if interrupted and done < total:
                raise KeyboardInterrupt
            if over:
                break
    return compare(tiny.averaged, held_out, targets)


def with_settings_of(snapshot: Config, config: Config) -> Config:
    """`config` with all settings that the stages before have fixed. Raises ConfigError as `with_autoencoder_of`."""
    return with_autoencoder_of(snapshot, config, FIXED)


def print_operations(autoencoder: AutoencoderKL, tiny: torch.nn.Module) -> None:
    """Print what both decoders compute for an image."""
    from training.tiny_decoder import operations

    full, small = operations(autoencoder.decode, autoencoder), operations(tiny, tiny)
    print(f"operations for an image: {small / 1e9:.2f} GFLOP, {full / small:.1f} times fewer than the full decoder's")


def picture(tiny: torch.nn.Module, latents: Tensor, targets: Tensor) -> list[Tensor]:
    """Rows for `Run.picture`: images of the full decoder, of the tiny one, and ERROR_GAIN times their difference."""
    import torch

    from training.data import evenly_spaced
    from training.pictures import ERROR_GAIN

    shown = evenly_spaced(len(latents), min(SHOWN, len(latents)))
    full = targets[shown]
    with torch.no_grad():
        images = tiny(latents[shown].to(full.device)).float()
    return [full, images, ERROR_GAIN * (images - full).abs()]


def with_tiny_decoder(snapshot: Snapshot, config: Config, record: dict[str, Any], weights: StateDict) -> Snapshot:
    """`snapshot` with a tiny decoder, the settings of its training from `config`, and the record of the training."""
    settings = replace(
        snapshot.config, tiny_decoder=config.tiny_decoder, tiny_decoder_training=config.tiny_decoder_training
    )
    history = {**snapshot.history, "tiny_decoder": record}
    return replace(snapshot, config=settings, history=history, tiny_decoder=weights)


def add_tiny_decoder(snapshot_folder: Path, trained: Path) -> None:
    """Add the tiny decoder of the snapshot `trained` to the snapshot at `snapshot_folder`, whole or not at all.

    Raises:
        CheckpointError: a snapshot cannot be used, or they have different autoencoders.
        NotWritten: the disk is full, or a similar error; the snapshot is as it was.
    """
    from training.checkpoint import AUTOENCODER, CheckpointError, load_snapshot, save_snapshot
    from training.files import sha256

    if sha256(snapshot_folder / AUTOENCODER) != sha256(trained / AUTOENCODER):
        raise CheckpointError(f"{snapshot_folder} has another autoencoder than {trained}: give a new --out")
    # Read anew: another command may have added something since the training began.
    snapshot, source = load_snapshot(snapshot_folder), load_snapshot(trained)
    if snapshot.scale_factor != source.scale_factor:
        raise CheckpointError(f"{snapshot_folder} has another scale factor than {trained}: give a new --out")
    assert source.tiny_decoder is not None
    record = source.history["tiny_decoder"]
    save_snapshot(with_tiny_decoder(snapshot, source.config, record, source.tiny_decoder), snapshot_folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = parse_stage_arguments(Arguments, argv, "python -m training.distil_decoder", __doc__)
    return exit_status(lambda: _run(arguments))


def _run(arguments: Arguments) -> None:
    """Raises GateError and what `train` and `add_tiny_decoder` raise."""
    check_overrides(arguments.config, arguments.settings, arguments.snapshot, FIXED)
    from training.checkpoint import load_snapshot

    config = with_settings_of(load_snapshot(arguments.snapshot).config, arguments.settings)
    out = arguments.out or arguments.snapshot.resolve().parent / "tiny_decoder"
    if arguments.dry_run:
        from training.dry_run import describe

        describe(config, "tiny_decoder", arguments.data, out)
        return
    from training.latents import LATENTS
    from training.processes import joined

    beside = arguments.snapshot.resolve().parent / LATENTS
    latents = arguments.latents or (beside if beside.is_file() else out / LATENTS)
    measured = train(config, arguments.snapshot, arguments.data, out, latents)
    if not joined().first:
        return
    print(f"held-out latents, tiny against full decoder: SSIM {measured['ssim']:.4f}, PSNR {measured['psnr']:.2f} dB")
    if not measured["ssim"] >= arguments.gate:
        raise GateError(
            f"the mean SSIM {measured['ssim']:.4f} is below the gate, {arguments.gate}: {arguments.snapshot} stays as "
            "it was; give a new --out with more --tiny-decoder-training.epochs and later milestones, or more channels"
        )
    add_tiny_decoder(arguments.snapshot, out / "snapshot")
    print(f"snapshot with the tiny decoder: {arguments.snapshot}")


if __name__ == "__main__":
    run_command(main)
