"""Training: the bundle's losses, data that reach it right, stages that really learn, and resume without a trace."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from support.common import run_python
from training import train_autoencoder, train_diffusion
from training.checkpoint import CheckpointError, load_snapshot
from training.config import (
    Config,
    ConfigError,
    config_from_dict,
    load_config,
)
from training.data import (
    autoencoder_transforms,
    diffusion_transforms,
    draw_volumes,
    open_volumes,
    slice_batches,
)
from training.decathlon import DataError
from training.latents import draw_latents, measure_scale_factor
from training.losses import diffusion_step, discriminator_step, generator_step, kl_divergence, loss_weights
from training.networks import average_of, build_autoencoder, build_discriminator
from training.run import Run

# --- configuration


def test_a_bad_configuration_names_its_field(tmp_path) -> None:
    with pytest.raises(
        ConfigError, match="no configuration 'nope': give one of brats, brats-labels, demo, demo-labels"
    ):
        load_config("nope")
    with pytest.raises(ConfigError, match="learning_rat"):
        config_from_dict({"diffusion_training": {"learning_rat": 1}}, "x.toml")
    path = tmp_path / "broken.toml"
    path.write_text("seed = ")
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        load_config(str(path))


@pytest.mark.parametrize("stage", ["train_autoencoder", "train_diffusion"])
def test_help_shows_every_field_without_torch(stage: str) -> None:
    code = f"""import sys; from training import {stage} as stage
try: stage.main(["--help"])
finally: print({{"numpy", "torch"}} & set(sys.modules))"""
    result = run_python("-c", code)
    assert result.stdout.startswith(f"usage: python -m training.{stage}")
    assert result.stdout.endswith("set()\n")
    for flag in ("--data ", "--out ", "--config ", "--diffusion-training.learning-rate", "--unet.channels"):
        assert flag in result.stdout, flag


def test_a_missing_data_folder_is_one_sentence(tmp_path, capsys) -> None:
    assert train_autoencoder.main(["--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    assert "python -m training.phantom" in capsys.readouterr().err.splitlines()[-1]


# --- data


@pytest.mark.slow
def test_slices_are_the_centre_of_the_volume_scaled_by_its_own_range(phantom) -> None:
    """The bundle's chain by hand, with nibabel and NumPy: FLAIR, slices 27..126, min-max over all of them, pad 8."""
    import nibabel as nib

    config = Config().data
    volumes = open_volumes(phantom, "training", diffusion_transforms(config), config, cache=False)
    flair = nib.load(volumes.data[0]["image"]).get_fdata(dtype=np.float32)[..., 0][:, :, 27:127]
    expected = np.pad((flair - flair.min()) / (flair.max() - flair.min()), ((8, 8), (8, 8), (0, 0)))
    ours = np.asarray(volumes[0]["image"])
    assert ours.shape == (1, 256, 256, 100)
    np.testing.assert_allclose(ours[0], expected, atol=1e-6)


@pytest.mark.slow
def test_batches_are_a_function_of_the_iteration(phantom) -> None:
    data = replace(Config().data, depth=6, workers=1)
    volumes = open_volumes(phantom, "training", autoencoder_transforms(data, 3), data)
    alone = {"parts": range(1), "all_parts": 1}
    stream = slice_batches(volumes, 2, seed=5, start=0, **alone)
    first = [next(stream)[0] for _ in range(4)]
    resumed = slice_batches(volumes, 2, seed=5, start=2, **alone)
    assert first[0].shape == (6, 1, 240, 240)
    assert torch.equal(next(resumed)[0], first[2])
    assert torch.equal(next(resumed)[0], first[3])
    assert not torch.equal(first[0], first[1])


def test_an_epoch_holds_each_volume_once() -> None:
    epochs = [np.concatenate([draw_volumes(12, 3, 0, 4 * epoch + i) for i in range(4)]) for epoch in range(2)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert list(epochs[0]) != list(epochs[1])


def test_no_data_is_said_with_its_path(tmp_path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json does not exist"):
        open_volumes(tmp_path, "training", diffusion_transforms(Config().data), Config().data)


# --- losses


def test_kl_is_torchs() -> None:
    mu, sigma = torch.randn(3, 1, 8, 8), torch.rand(3, 1, 8, 8) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mu, sigma), normal(torch.zeros(()), torch.ones(())))
    torch.testing.assert_close(kl_divergence(mu, sigma), expected.flatten(1).sum(1).mean())


def test_autoencoder_losses_are_the_bundles(tiny) -> None:
    """Least squares to 1 and 0 behind the criterion's leaky ReLU, weights 1, 1e-6, 0.5."""
    autoencoder, discriminator = build_autoencoder(tiny.autoencoder), build_discriminator(tiny.discriminator)
    config, images = Config(), torch.rand(2, 1, 32, 32)
    losses, reconstruction = generator_step(autoencoder, discriminator, None, images, config)
    leaky = torch.nn.LeakyReLU(0.05)
    fake, real = (leaky(discriminator(x)[-1]) for x in (reconstruction, images))
    torch.testing.assert_close(losses["l1"], (reconstruction - images).abs().mean())
    torch.testing.assert_close(losses["adversarial"], (fake - 1).square().mean())
    torch.testing.assert_close(losses["loss"], losses["l1"] + 1e-6 * losses["kl"] + 0.5 * losses["adversarial"])
    expected = 0.5 * 0.5 * (fake.square().mean() + (real - 1).square().mean())
    torch.testing.assert_close(discriminator_step(discriminator, images, reconstruction, config), expected)


def test_diffusion_loss_is_zero_for_the_true_noise() -> None:
    """A network that knows the clean latent can compute the noise; any slip in x_t or in the target shows."""
    latents = torch.randn(64, 1, 8, 8)
    alpha_bars = torch.linspace(0.999, 0.01, 1000)

    def oracle(noisy, timesteps):
        alpha_bar = alpha_bars[timesteps].view(-1, 1, 1, 1)
        return (noisy - alpha_bar.sqrt() * latents) / (1 - alpha_bar).sqrt()

    assert diffusion_step(oracle, latents, alpha_bars).max() < 1e-6
    seen = []
    diffusion_step(lambda x, t: seen.append(t) or torch.zeros_like(x), latents, alpha_bars)
    assert len(seen[0].unique()) > 50  # one timestep a row


def test_an_error_in_the_noise_counts_as_the_error_in_the_image_that_it_makes() -> None:
    """Where x0 is known up to an error d, the noise is off by sqrt(a / (1 - a)) d: 1/a makes that d^2 / (1 - a)."""
    alpha_bars = torch.linspace(0.999, 0.01, 1000)
    assert torch.equal(loss_weights(alpha_bars, 1), torch.ones(1000))
    weights = loss_weights(alpha_bars, 1e6)
    torch.testing.assert_close(weights * alpha_bars, (weights * alpha_bars)[:1].expand(1000))
    limited = loss_weights(alpha_bars, 5)
    torch.testing.assert_close(limited.max() / limited.min(), torch.tensor(5 * 0.999))
    assert limited.mean().item() == pytest.approx(1)
    assert torch.isfinite(loss_weights(torch.tensor([0.5, 0.0]), 500)).all()

    latents = torch.zeros(64, 1, 8, 8)
    timesteps = []

    def off_by_one(noisy, drawn):
        timesteps.append(drawn)
        return noisy / (1 - alpha_bars[drawn]).sqrt().view(-1, 1, 1, 1) + 1  # x0 is 0, so this is the noise, plus 1

    errors = diffusion_step(off_by_one, latents, alpha_bars, max_weight=5)
    torch.testing.assert_close(errors, limited[timesteps[0]], rtol=1e-4, atol=1e-4)


def test_scale_factor_makes_unit_variance() -> None:
    latents = {"mu": 3 + 4 * torch.randn(4, 10, 64, 64), "sigma": torch.full((4, 10, 64, 64), 3.0)}
    assert measure_scale_factor(latents, 4, 5, seed=0, batches=8) == pytest.approx(1 / 5, rel=0.01)
    assert torch.equal(draw_latents(latents, 2, 3, 0, 7), draw_latents(latents, 2, 3, 0, 7))


# --- the stages


def interrupt(monkeypatch, iteration: int) -> None:
    """Ctrl-C at `iteration`, past the last saved state, so that work is lost and done again."""
    log = Run.log

    def stop(self, now, losses, others):
        if now == iteration:
            raise KeyboardInterrupt
        log(self, now, losses, others)

    monkeypatch.setattr(Run, "log", stop)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.slow
def test_both_stages_resume_to_the_same_bytes(tiny, small_data, tmp_path, monkeypatch) -> None:
    snapshot1 = train_autoencoder.train(tiny, small_data, tmp_path / "whole1")
    snapshot2 = train_diffusion.train(tiny, snapshot1, small_data, tmp_path / "whole2")
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train_autoencoder.train(tiny, small_data, tmp_path / "cut1")
        with pytest.raises(KeyboardInterrupt):
            train_diffusion.train(tiny, snapshot1, small_data, tmp_path / "cut2")
    resumed1 = train_autoencoder.train(tiny, small_data, tmp_path / "cut1")
    resumed2 = train_diffusion.train(tiny, snapshot1, small_data, tmp_path / "cut2")
    assert weights(resumed1) == weights(snapshot1)
    assert weights(resumed2) == weights(snapshot2)

    snapshot = load_snapshot(snapshot2)
    assert snapshot.scale_factor is not None
    record = snapshot.history["diffusion"]
    assert record["data"]["numTraining"] == 6
    assert record["smoothed_losses"] == load_snapshot(resumed2).history["diffusion"]["smoothed_losses"]
    assert snapshot.history["autoencoder"]["iterations"] == snapshot.history["diffusion"]["iterations"] == 5
    assert (tmp_path / "whole1" / "pictures" / "reconstruction_0000005.png").is_file()
    assert list((tmp_path / "whole2" / "events").glob("events*"))

    # A longer run continues; another recipe in the same folder is refused, as are another autoencoder's latents.
    longer = replace(tiny, autoencoder_training=replace(tiny.autoencoder_training, epochs=6))
    train_autoencoder.train(longer, small_data, tmp_path / "cut1")
    assert load_snapshot(resumed1).history["autoencoder"]["iterations"] == 6
    with pytest.raises(CheckpointError, match="another autoencoder"):
        train_diffusion.train(tiny, resumed1, small_data, tmp_path / "cut2")
    with pytest.raises(CheckpointError, match=r"another run \(config.seed 0 -> 9\): give a new --out"):
        train_autoencoder.train(replace(tiny, seed=9), small_data, tmp_path / "cut1")
    with pytest.raises(CheckpointError, match=r"another run .stage autoencoder -> diffusion"):
        train_diffusion.train(tiny, snapshot1, small_data, tmp_path / "cut1")


@pytest.mark.slow
def test_both_stages_learn(tiny, small_data, tmp_path) -> None:
    changes = {"epochs": 50, "slices_per_volume": 4, "checkpoint_every": 50, "learning_rate": 5e-3}
    # Without an adversary, which is an hour's matter: an even grey is a quarter from the blocks of `small_data`.
    stage1 = replace(tiny.autoencoder_training, adversarial_start=10**6, **changes)
    config = replace(tiny, autoencoder_training=stage1, diffusion_training=replace(tiny.diffusion_training, **changes))
    snapshot1 = train_autoencoder.train(config, small_data, tmp_path / "1")
    train_diffusion.train(config, snapshot1, small_data, tmp_path / "2")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run, tag in (("1", "l1"), ("2", "diffusion_loss")):
        events = EventAccumulator(str(tmp_path / run / "events")).Reload()
        values = [event.value for event in events.Scalars(tag)]
        assert np.mean(values[-5:]) < 0.5 * np.mean(values[:5]), (tag, values)


def test_the_average_forgets_where_the_network_started() -> None:
    """A fixed decay of 0.999 kept a third of the random start after a thousand steps: samples were pure noise."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 100.0)
    average = average_of(network, 0.999)
    for _ in range(300):
        average.update_parameters(network)
        torch.nn.init.constant_(network.weight, 1.0)
    assert average.module.weight.item() == pytest.approx(1.0, abs=1e-3)
    exact = average_of(network, 0.0)
    for value in (2.0, 3.0, 4.0):
        torch.nn.init.constant_(network.weight, value)
        exact.update_parameters(network)
    assert exact.module.weight.item() == 4.0
