"""Stage 2: train the diffusion UNet on the latents of a frozen autoencoder and write the whole snapshot.

    python -m training.train_diffusion --config demo --autoencoder RUN1/snapshot --data DIR --out RUN2

Run the same command again to continue after an interruption. The autoencoder's own settings come from its snapshot.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from training.config import Config, exit_status, parse_arguments


@dataclass(frozen=True)
class Arguments:
    """Command line of stage 2."""

    config: str
    """Defaults of all settings: demo, brats, or the path of a .toml file."""
    settings: Annotated[Config, tyro.conf.arg(name="")]
    autoencoder: Path = tyro.MISSING
    """Snapshot folder of stage 1."""
    data: Path = tyro.MISSING
    """Folder that holds Task01_BrainTumour."""
    out: Path = tyro.MISSING
    """Run folder: resume state, latents, events, pictures; the snapshot goes to OUT/snapshot."""


def train(config: Config, autoencoder_snapshot: Path, data: Path, out: Path) -> Path:
    """Train to the configured number of epochs, from the start or from where `out` stands; returns the snapshot folder.

    Raises:
        DataError, CheckpointError: unusable data or snapshot, or a run folder of another configuration.
        FloatingPointError: the loss is not finite.
    """
    import torch
    from monai.networks.schedulers import DDPMScheduler
    from tqdm import tqdm

    from training.checkpoint import AUTOENCODER, Snapshot, load_snapshot, save_snapshot, sha256
    from training.data import derived_seed, describe_data
    from training.latents import cached_latents, draw_latents, measure_scale_factor
    from training.losses import diffusion_step
    from training.networks import average_of, build_autoencoder, build_unet
    from training.run import Run, set_learning_rate
    from training.sample import decode, sample_latents

    # The frozen autoencoder and the data as it sees them.
    stage1 = load_snapshot(autoencoder_snapshot)
    config = replace(
        config,
        autoencoder=stage1.config.autoencoder,
        discriminator=stage1.config.discriminator,
        autoencoder_training=stage1.config.autoencoder_training,
    )
    settings = config.diffusion_training
    batch = (settings.volumes_per_batch, settings.slices_per_volume)
    data_record = describe_data(data)
    run = Run(out, "diffusion", config, data_record)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autoencoder = build_autoencoder(config.autoencoder).to(device).eval().requires_grad_(False)
    autoencoder.load_state_dict(stage1.autoencoder)
    key = f"{sha256(autoencoder_snapshot / AUTOENCODER)} {data_record['sha256']}"
    latents = cached_latents(autoencoder, data, config.data, device, out / "latents.safetensors", key)
    scale_factor = measure_scale_factor(latents, *batch, config.seed, settings.scale_factor_batches)
    print(f"scale factor: {scale_factor:.4f}")

    # Network, optimiser and the run they continue.
    torch.manual_seed(config.seed)
    unet = build_unet(config.unet).to(device, memory_format=torch.channels_last)
    average = average_of(unet, settings.ema_decay)
    optimizer = torch.optim.Adam(unet.parameters(), lr=settings.learning_rate)
    parts = {"unet": unet, "average": average, "optimizer": optimizer}
    run.restore(**parts)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    schedule = config.noise_schedule
    alpha_bars = DDPMScheduler(
        num_train_timesteps=schedule.num_train_timesteps,
        schedule="scaled_linear_beta",
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
    ).alphas_cumprod.to(device)
    steps_per_epoch = max(1, len(latents["mu"]) // settings.volumes_per_batch)
    total = settings.epochs * steps_per_epoch

    # Main loop.
    bar = tqdm(range(run.iteration, total), initial=run.iteration, total=total, desc="diffusion", unit="it")
    for iteration in bar:
        z = scale_factor * draw_latents(latents, *batch, config.seed, iteration).to(device)
        torch.manual_seed(derived_seed(config.seed, iteration, 4))
        set_learning_rate(optimizer, settings, iteration // steps_per_epoch)
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = diffusion_step(unet, z, alpha_bars).mean()
        loss.backward()
        optimizer.step()
        average.update_parameters(unet)

        # Report and save.
        run.log(iteration, {"diffusion_loss": loss.item()})
        bar.set_postfix({"loss": f"{run.smooth['diffusion_loss']:.4g}"}, refresh=False)
        if (iteration + 1) % settings.checkpoint_every == 0 or iteration + 1 == total:
            noise = torch.randn(6, 1, 64, 64, generator=torch.Generator().manual_seed(config.seed)).to(device)
            sampled = sample_latents(average.module, schedule, noise, steps=20)
            run.picture(iteration + 1, "samples", [decode(autoencoder, sampled, scale_factor)])
            history = {**stage1.history, "diffusion": run.record(iteration + 1)}
            weights = average.module.state_dict()
            snapshot = Snapshot(config, stage1.autoencoder, weights, scale_factor, history)
            save_snapshot(snapshot, run.snapshot_folder)
            run.save(iteration + 1, **parts)
    return run.snapshot_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = parse_arguments(Arguments, argv, "python -m training.train_diffusion", str(__doc__))
    run = partial(train, arguments.settings, arguments.autoencoder, arguments.data, arguments.out)
    return exit_status(lambda: print(f"snapshot: {run()}"))


if __name__ == "__main__":
    sys.exit(main())
