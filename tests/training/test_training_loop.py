"""The training loop: what each setting does to gradients, weights and the length of a run; bad data and bad numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.common import both_stages
from training import train_autoencoder, train_diffusion
from training.checkpoint import CheckpointError, load_snapshot, load_state
from training.config import DiffusionTraining, Perceptual, Stage
from training.data import derived_seed
from training.decathlon import DataError
from training.losses import diffusion_step, discriminator_step, generator_step
from training.networks import build_autoencoder, build_discriminator, build_unet, randomize_zero_tensors
from training.processes import joined
from training.update import Trained, learning_rate, update_autoencoder, update_unet
from training.validation import denoising_strips, validate_autoencoder, validate_diffusion


def scalars(run: Path, tag: str) -> dict[int, float]:
    """Values by iteration."""
    return {event.step: event.value for event in EventAccumulator(str(run / "events")).Reload().Scalars(tag)}


def tags(run: Path) -> set[str]:
    return set(EventAccumulator(str(run / "events")).Reload().Tags()["scalars"])


# --- one update


def test_the_learning_rate_warms_up_and_falls_at_its_milestones() -> None:
    settings = DiffusionTraining(learning_rate=3e-4, milestones=(2, 4), gamma=0.1)
    assert [learning_rate(settings, 0, epoch) for epoch in range(5)] == pytest.approx([3e-4, 3e-4, 3e-5, 3e-5, 3e-6])
    warm = replace(settings, warmup=4)
    assert [learning_rate(warm, i, 0) / 3e-4 for i in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny) -> None:
    """Both stages against plain autograd on the mean of the parts' losses; float32, so to 1e-5 of the largest."""
    config = both_stages(tiny, accumulate=2, learning_rate=0.0)
    images = {part: torch.rand(3, 1, 32, 32) for part in range(2)}
    autoencoder, discriminator = build_autoencoder(config.autoencoder), build_discriminator(config.discriminator)
    trained = [Trained(network, config.autoencoder_training, joined()) for network in (autoencoder, discriminator)]
    for network in trained:
        network.begin(0.0)
    losses, norms, _ = update_autoencoder(*trained, None, images, 7, config)
    gradients = [[p.grad.clone() for p in network.network.parameters()] for network in trained]
    expected = [0.0, 0.0]
    for part in images:
        torch.manual_seed(derived_seed(config.seed, 7, 2, part))
        terms, reconstruction = generator_step(autoencoder, discriminator, None, images[part], config)
        expected[0] = expected[0] + terms["loss"] / 2
        expected[1] = expected[1] + discriminator_step(discriminator, images[part], reconstruction, config) / 2
    for network, loss, accumulated in zip((autoencoder, discriminator), expected, gradients, strict=True):
        reference = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        scale = max(gradient.abs().max() for gradient in reference)
        for gradient, plain in zip(accumulated, reference, strict=True):
            assert (gradient - plain).abs().max() < 1e-5 * scale
    assert losses["loss"] == pytest.approx(expected[0].item(), rel=1e-5)
    flat = torch.cat([gradient.flatten() for gradient in gradients[0]])
    assert norms["autoencoder_gradient"] == pytest.approx(flat.norm().item(), rel=1e-5)

    unet, alpha_bars = build_unet(config.unet), torch.linspace(0.99, 0.01, 1000)
    randomize_zero_tensors(unet, seed=1)
    config = replace(config, diffusion_training=replace(config.diffusion_training, max_loss_weight=20))
    trained_unet = Trained(unet, config.diffusion_training, joined())
    trained_unet.begin(0.0)
    latents = {part: torch.randn(2, 1, 16, 16) for part in range(2)}
    update_unet(trained_unet, latents, alpha_bars, 3, config)
    loss = 0.0
    for part, z in latents.items():
        torch.manual_seed(derived_seed(config.seed, 3, 4, part))
        loss = loss + diffusion_step(unet, z, alpha_bars, max_weight=20).mean() / 2
    reference = torch.autograd.grad(loss, list(unet.parameters()))
    scale = max(gradient.abs().max() for gradient in reference)
    assert all((p.grad - g).abs().max() < 1e-5 * scale for p, g in zip(unet.parameters(), reference, strict=True))


def weight_with_gradient(gradient: tuple[float, float], **settings) -> tuple[Trained, torch.nn.Parameter]:
    """A two-weight network after `backward` of a loss with that gradient."""
    network = torch.nn.Linear(2, 1, bias=False)
    trained = Trained(network, Stage(**settings), joined())
    trained.begin(0.1)
    trained.backward(network.weight @ torch.tensor(gradient))
    return trained, network.weight


def test_a_long_gradient_is_shortened() -> None:
    trained, weight = weight_with_gradient((3.0, 4.0), max_grad_norm=1.0)
    assert trained.step() == pytest.approx(5)
    assert weight.grad.flatten().tolist() == pytest.approx([0.6, 0.8], rel=1e-5)
    trained, weight = weight_with_gradient((3.0, 4.0))
    trained.step()
    assert weight.grad.flatten().tolist() == [3.0, 4.0]


def test_a_gradient_that_is_not_finite_never_reaches_the_weights() -> None:
    """In fp32 it stops the run; in fp16 it is how the scale of the losses is found, and training goes on."""
    trained, weight = weight_with_gradient((float("inf"), 1.0))
    before = weight.detach().clone()
    with pytest.raises(FloatingPointError, match="norm is"):
        trained.step()
    assert torch.equal(weight, before)

    trained, weight = weight_with_gradient((1e35, 1.0), precision="fp16")
    before, scale = weight.detach().clone(), trained.state_dict()["scaler"]["scale"]
    trained.step()
    assert torch.equal(weight, before)
    assert trained.state_dict()["scaler"]["scale"] == scale / 2
    trained.begin(0.1)
    trained.backward(weight @ torch.tensor([1.0, 1.0]))
    trained.step()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_to_nearly_the_same_losses(tiny, precision) -> None:
    """bf16 has 8 bits of mantissa and fp16 11; the sums of the losses are fp32, hence 5 %."""
    by_precision = {}
    for kind in ("fp32", precision):
        config = both_stages(tiny, precision=kind)
        torch.manual_seed(0)
        networks = build_autoencoder(config.autoencoder), build_discriminator(config.discriminator)
        trained = [Trained(network, config.autoencoder_training, joined()) for network in networks]
        images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
        for iteration in range(3):
            for network in trained:
                network.begin(1e-3)
            losses, _, reconstruction = update_autoencoder(*trained, None, {0: images}, iteration, config)
        assert reconstruction.dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in networks[0].parameters())
        by_precision[kind] = losses
    assert by_precision[precision]["l1"] == pytest.approx(by_precision["fp32"]["l1"], rel=0.05)
    assert by_precision[precision]["discriminator"] == pytest.approx(by_precision["fp32"]["discriminator"], rel=0.05)
    assert by_precision[precision]["l1"] != by_precision["fp32"]["l1"]


# --- a run


def test_a_diverging_run_stops_and_keeps_the_batch(tiny, small_data, tmp_path) -> None:
    config = both_stages(tiny, learning_rate=1e15, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match=r"is (nan|inf).* at iteration \d.*give a new --out"):
        train_autoencoder.train(config, small_data, tmp_path)
    batch = load_file(tmp_path / "not_finite_rank0.safetensors")
    assert batch["part0"].shape == (3, 1, 32, 32)
    assert batch["part0"].isfinite().all()


@pytest.mark.slow
def test_validation_chooses_the_best_and_ends_a_run_that_no_longer_learns(tiny, small_data, tmp_path) -> None:
    config = both_stages(tiny, validate_every=1, patience=2, validation_volumes=1, epochs=9, learning_rate=1e-30)
    snapshot = train_autoencoder.train(config, small_data, tmp_path / "1")
    # Nothing is learnt at a rate of 1e-30: the first validation is the best, and two more end the run.
    assert load_snapshot(snapshot).history["autoencoder"]["iterations"] == 3
    train_autoencoder.train(config, small_data, tmp_path / "1")  # the same command finds nothing left to do
    assert load_snapshot(snapshot).history["autoencoder"]["iterations"] == 3
    assert load_snapshot(tmp_path / "1" / "best").history["autoencoder"]["iterations"] == 1
    assert {"validation/psnr", "validation/ssim", "validation/l1", "learning_rate", "discriminator"} <= tags(
        tmp_path / "1"
    )
    assert list(scalars(tmp_path / "1", "validation/psnr")) == [1, 2, 3]

    learning = both_stages(config, learning_rate=1e-3, epochs=2)
    train_diffusion.train(learning, snapshot, small_data, tmp_path / "2")
    best = load_snapshot(tmp_path / "2" / "best")
    assert best.unet is not None
    values = scalars(tmp_path / "2", "validation/loss")
    assert best.history["diffusion"]["iterations"] == min(values, key=values.get)
    bands = [f"validation/loss_t{start:03d}_{start + 249:03d}" for start in range(0, 1000, 250)]
    assert {tag for tag in tags(tmp_path / "2") if tag.startswith("validation/")} == {"validation/loss", *bands}
    for step, value in values.items():
        assert value == pytest.approx(np.mean([scalars(tmp_path / "2", band)[step] for band in bands]), rel=1e-5)
    assert {path.name[:7] for path in (tmp_path / "2" / "pictures").iterdir()} == {"samples", "denoisi"}


@pytest.mark.slow
def test_validation_needs_volumes_to_hold_out(tiny, phantom, tmp_path) -> None:
    with pytest.raises(DataError, match="too few volumes"):
        train_autoencoder.train(both_stages(tiny, validate_every=1), phantom, tmp_path)


def test_validation_measures_what_it_says(tiny) -> None:
    """A perfect network has no error in any quarter, one that answers 0 has the noise's variance; twice the same."""
    latents, alpha_bars = torch.randn(20, 1, 16, 16), torch.linspace(0.999, 0.01, 1000)
    seen = []

    def zero(noisy, timesteps):
        seen.append(timesteps)
        return torch.zeros_like(noisy)

    losses = validate_diffusion(zero, latents, alpha_bars, seed=3)
    assert losses == validate_diffusion(zero, latents, alpha_bars, seed=3)
    assert all(value == pytest.approx(1, abs=0.05) for value in losses.values())
    timesteps = torch.cat(seen[: len(seen) // 2]).view(4, 20)
    assert [(row.min().item() // 250, row.max().item() // 250) for row in timesteps] == [(i, i) for i in range(4)]
    autoencoder = build_autoencoder(tiny.autoencoder)
    images = torch.rand(3, 1, 64, 64)
    with torch.no_grad():
        error = (autoencoder.decode(autoencoder.encode(images)[0]) - images).abs().mean().item()
    assert validate_autoencoder(autoencoder, images)["l1"] == pytest.approx(error, rel=1e-5)
    strips = denoising_strips(
        build_unet(tiny.unet), tiny.noise_schedule, torch.randn(2, 1, 64, 64), steps=10, columns=4
    )
    assert strips.shape == (2, 4, 1, 64, 64)


def test_snapshot_has_the_average_and_the_resume_state_has_both(tiny, small_data, tmp_path) -> None:
    config = both_stages(tiny, ema_decay=0.9, epochs=3)
    snapshot = load_snapshot(train_autoencoder.train(config, small_data, tmp_path))
    state = load_state(tmp_path / "state.pt")["autoencoder"]
    name = next(iter(snapshot.autoencoder))
    assert torch.equal(snapshot.autoencoder[name], state["average"][f"module.{name}"])
    assert not torch.equal(snapshot.autoencoder[name], state["network"][name])


def test_the_adversarial_term_can_start_late(tiny, small_data, tmp_path) -> None:
    late = replace(tiny, autoencoder_training=replace(tiny.autoencoder_training, adversarial_start=3))
    train_autoencoder.train(late, small_data, tmp_path)
    assert list(scalars(tmp_path, "adversarial")) == list(scalars(tmp_path, "discriminator")) == [4, 5]
    assert list(scalars(tmp_path, "l1")) == list(range(1, 6))


def test_perceptual_weights_are_used_or_missed_loudly(tiny, small_data, tmp_path, capsys) -> None:
    from monai.networks.nets import resnet50

    torch.manual_seed(0)
    network = resnet50(
        spatial_dims=2, n_input_channels=3, num_classes=1000, conv1_t_stride=2, bias_downsample=False, feed_forward=True
    )
    torch.save(network.state_dict(), tmp_path / "resnet50.pth")
    config = both_stages(replace(tiny, perceptual=Perceptual(str(tmp_path / "resnet50.pth"), weight=0.5)), epochs=1)
    train_autoencoder.train(config, small_data, tmp_path / "with")
    assert "perceptual.weights = none" not in capsys.readouterr().err
    values = {tag: scalars(tmp_path / "with", tag)[1] for tag in ("l1", "kl", "perceptual", "adversarial", "loss")}
    total = values["l1"] + 1e-6 * values["kl"] + 0.5 * values["perceptual"] + 0.5 * values["adversarial"]
    assert values["loss"] == pytest.approx(total, rel=1e-5)
    train_autoencoder.train(both_stages(tiny, epochs=1), small_data, tmp_path / "without")
    assert "perceptual.weights = none" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="missing"):
        train_autoencoder.train(replace(tiny, perceptual=Perceptual("missing.pth")), small_data, tmp_path / "no")
