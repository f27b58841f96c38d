"""Stage 2: train the diffusion UNet on the latents of a frozen autoencoder and write the whole snapshot.

    python -m training.train_diffusion --config demo --autoencoder RUN1/snapshot --data DIR --out RUN2

Run the same command again to continue after an interruption; Ctrl-C and SIGTERM save the state first. The settings
of the autoencoder come from its snapshot. For several GPUs use `torchrun --nproc-per-node N -m` in place of
`python -m`. OUT/snapshot holds the last weights. With validation, OUT/best holds those with the lowest error on
held-out volumes. With --config demo-labels or brats-labels the UNet learns to follow the label maps of the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from training.cli import exit_status, run_command
from training.config import Config, ConfigError, load_config
from training.stage_options import parse_stage_arguments


@dataclass(frozen=True)
class Arguments:
    """Command line of stage 2."""

    config: str
    """Source of all defaults: demo, demo-labels, brats, brats-labels, or the path of a .toml file."""
    settings: Annotated[Config, tyro.conf.arg(name="")]
    autoencoder: Path = tyro.MISSING
    """Snapshot folder of stage 1."""
    data: Path = tyro.MISSING
    """Folder that holds Task01_BrainTumour."""
    out: Path = tyro.MISSING
    """Run folder: resume state, latents, events, pictures, snapshots."""
    initial: Path | None = None
    """Snapshot folder whose UNet training begins with, to continue on other data or with labels; default: random."""
    dry_run: bool = False
    """Print the settings, sizes, memory, steps and files, and stop."""


def train(config: Config, autoencoder_snapshot: Path, data: Path, out: Path, initial: Path | None = None) -> Path:
    """Train to the configured number of epochs, from the start or from the state in `out`; returns the snapshot folder.

    Raises:
        DataError, CheckpointError: unusable data or snapshot, or a run folder of another configuration.
        KeyboardInterrupt: a signal asked to stop; everything is saved.
        NotWritten: the disk is full, or a similar error; the last saved state is kept.
        FloatingPointError: the loss or gradient is not finite.
    """
    import torch
    from tqdm import tqdm

    from training.checkpoint import Snapshot, initial_weights, load_snapshot
    from training.conditioning import LABELS, condition_of, given_labels, given_none, label_counts
    from training.decathlon import describe_data, read_index
    from training.interrupt import Interrupt
    from training.labels import LABELS_FILE, cached_labels, draw_condition, lesions_in
    from training.latents import LATENTS, cached_latents, draw_latents, latents_key, measure_scale_factor
    from training.losses import alpha_bars_of
    from training.networks import build_autoencoder, build_unet
    from training.processes import joined
    from training.run import Run
    from training.sample import decode
    from training.update import Trained, learning_rate, update_unet
    from training.validation import (
        denoising_strips,
        encode_mean,
        maps_to_show,
        validate_diffusion,
        validation_labels,
        validation_slices,
    )

    # The frozen autoencoder and the latents of the data.
    stage1 = load_snapshot(autoencoder_snapshot)
    config = with_autoencoder_of(stage1.config, config)
    settings, processes = config.diffusion_training, joined()
    parts, all_parts = processes.parts(settings.accumulate), processes.all_parts(settings.accumulate)
    index = read_index(data)
    first_weights, first_record = initial_weights(initial, "diffusion", config.unet)
    run = Run(out, "diffusion", config, describe_data(index), all_parts, processes, initial=first_record)
    autoencoder = build_autoencoder(config.autoencoder).to(processes.device).eval().requires_grad_(False)
    autoencoder.load_state_dict(stage1.autoencoder)
    key = latents_key(autoencoder_snapshot, index, config.data)
    latents = cached_latents(autoencoder, data, config.data, processes, out / LATENTS, key)
    share = (settings.volumes_per_batch, settings.slices_per_volume, config.seed)
    scale_factor = processes.agree(measure_scale_factor(latents, *share, settings.scale_factor_batches))
    if processes.first:
        print(f"scale factor: {scale_factor:.4f}")
    held_out = held_out_maps = labels = lesions = None
    if takes_labels := config.unet.conditioning == "labels":
        labels = cached_labels(data, config.data, processes, out / LABELS_FILE, index)
        lesions = lesions_in(labels)
    if settings.validate_every and processes.first:
        held_out = scale_factor * encode_mean(autoencoder, validation_slices(data, config, settings))
        held_out_maps = validation_labels(data, config, settings) if takes_labels else None

    # The network and the run that it continues.
    torch.manual_seed(config.seed)
    network = build_unet(config.unet)
    if first_weights is not None:
        network.load_state_dict(first_weights)
    unet = Trained(network, settings, processes)
    run.restore(unet=unet)
    alpha_bars = alpha_bars_of(config.noise_schedule).to(processes.device)
    steps_per_epoch = max(1, len(latents["mu"]) // (settings.volumes_per_batch * all_parts))
    total = run.iteration if run.without_progress(settings.patience) else settings.epochs * steps_per_epoch

    def snapshot() -> Snapshot:
        history = {**stage1.history, "diffusion": run.record(done)}
        return Snapshot(config, stage1.autoencoder, unet.averaged.state_dict(), scale_factor, history)

    def validated() -> dict[str, float]:
        values = validate_diffusion(given_none(unet.averaged, config.unet), held_out, alpha_bars, config.seed)
        if held_out_maps is not None:
            given = condition_of(label_counts(held_out_maps))
            followed = validate_diffusion(unet.averaged, held_out, alpha_bars, config.seed, given)
            values |= {f"{name}_with_labels": value for name, value in followed.items()}
        return values

    def draw_pictures() -> None:
        noise = torch.randn(6, 1, 64, 64, generator=torch.Generator().manual_seed(config.seed)).to(processes.device)
        without = given_none(unet.averaged, config.unet)
        strips = denoising_strips(without, config.noise_schedule, noise)
        images = [decode(autoencoder, strip, scale_factor) for strip in strips]
        run.picture(done, "samples", [torch.stack([strip[-1] for strip in images])])
        run.picture(done, "denoising", images[:3])
        if held_out_maps is not None:
            maps = maps_to_show(held_out_maps, len(noise))
            condition = condition_of(label_counts(maps))
            start = noise[: len(maps), :, : condition.shape[-2], : condition.shape[-1]]
            follows = given_labels(unet.averaged, condition)
            latents = denoising_strips(follows, config.noise_schedule, start)[:, -1]
            images = decode(autoencoder, latents, scale_factor, maps.shape[-1])
            run.picture(done, "labels", [maps[:, None] / len(LABELS), images])

    # Main loop.
    bar = tqdm(range(run.iteration, total), "diffusion", total, initial=run.iteration, disable=not processes.first)
    with run.saving(), Interrupt(processes) as interrupt:
        for iteration in bar:
            drawn = {part: draw_latents(latents, *share, iteration, part, all_parts, lesions) for part in parts}
            batch = {part: scale_factor * z.to(processes.device) for part, z in drawn.items()}
            conditions = {}
            if labels is not None and lesions is not None:
                given = {part: draw_condition(labels, lesions, *share, iteration, part, all_parts) for part in parts}
                conditions = {part: condition.to(processes.device) for part, condition in given.items()}
            rate = learning_rate(settings, iteration, iteration // steps_per_epoch)
            unet.begin(rate)
            try:
                losses, norms = update_unet(unet, batch, alpha_bars, iteration, config, conditions)
            except FloatingPointError as error:
                raise run.not_finite(iteration, batch, error) from error
            done = iteration + 1
            run.log(done, losses, {"learning_rate": rate, **norms})
            bar.set_postfix({name: f"{value:.4g}" for name, value in run.smooth.items()}, refresh=False)

            # Validate.
            if settings.validate_every and done % (settings.validate_every * steps_per_epoch) == 0:
                values = validated() if processes.first else {}
                score = values.get("loss", 0) + values.get("loss_with_labels", 0)
                if run.validated(done, values, score=score):
                    run.save_snapshot(snapshot(), best=True)
            interrupted = interrupt.asked()
            over = interrupted or done == total or run.without_progress(settings.patience)

            # Save.
            if done % settings.checkpoint_every == 0 or over:
                if processes.first and not interrupted:
                    draw_pictures()
                run.save_snapshot(snapshot())
                run.save(done, unet=unet)
            if interrupted and done < total:
                raise KeyboardInterrupt
            if over:
                break
    return run.snapshot_folder


FIXED = ("autoencoder", "discriminator", "perceptual", "autoencoder_training")


def with_autoencoder_of(stage1: Config, config: Config, fixed: Sequence[str] = FIXED) -> Config:
    """`config` with the sections `fixed` of `stage1`, by default all settings that stage 1 has fixed.

    Raises:
        ConfigError: the autoencoder was trained on another channel, by index or by name, or on another size.
    """
    # With `any` the user has chosen an index, and MONAI's autoencoders have no names.
    compared = ("channel", "size") if config.data.modality == "any" else ("channel", "modality", "size")
    before, now = (" ".join(f"data.{name}={getattr(c.data, name)}" for name in compared) for c in (stage1, config))
    if before != now:
        raise ConfigError(f"the autoencoder was trained with {before}, and this run has {now}")
    return replace(config, **{name: getattr(stage1, name) for name in fixed})


def check_overrides(config: str, settings: Config, snapshot: Path, fixed: Sequence[str] = FIXED) -> None:
    """Refuse changes of settings in the sections `fixed`, which the snapshot fixes: they would have no effect.

    config: the source of the defaults; settings: what the command line made of them.

    Raises:
        ConfigError: names the group of settings.
    """
    defaults = load_config(config)
    for name in fixed:
        if getattr(settings, name) != getattr(defaults, name):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option}.* cannot be given here: the snapshot {snapshot} settles it")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = parse_stage_arguments(Arguments, argv, "python -m training.train_diffusion", __doc__)
    return exit_status(lambda: _run(arguments))


def _run(arguments: Arguments) -> None:
    check_overrides(arguments.config, arguments.settings, arguments.autoencoder)
    if arguments.dry_run:
        from training.checkpoint import load_snapshot
        from training.dry_run import describe

        config = with_autoencoder_of(load_snapshot(arguments.autoencoder).config, arguments.settings)
        describe(config, "diffusion", arguments.data, arguments.out)
        return
    from training.processes import joined

    folder = train(arguments.settings, arguments.autoencoder, arguments.data, arguments.out, arguments.initial)
    if joined().first:
        print(f"snapshot: {folder}")


if __name__ == "__main__":
    run_command(main)
