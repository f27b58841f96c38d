"""The tiny decoder: what it costs, that it learns the full decoder's images, and how it comes into a snapshot."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.common import write_toml
from training import distil_decoder
from training.checkpoint import AUTOENCODER, TINY_DECODER, UNET, CheckpointError, load_snapshot, save_snapshot
from training.config import TinyDecoder, TinyDecoderTraining, load_config
from training.files import sha256
from training.latents import LATENTS
from training.metrics import reconstruction_metrics
from training.networks import build_autoencoder
from training.run import Run
from training.tiny_decoder import Lesson, build_tiny_decoder, distillation_losses, operations, with_noise


@pytest.mark.parametrize("name", ["demo", "brats"])
def test_the_tiny_decoder_needs_a_fifteenth_of_the_operations(name: str) -> None:
    config = load_config(name)
    with torch.device("meta"):
        autoencoder, tiny = build_autoencoder(config.autoencoder), build_tiny_decoder(config.tiny_decoder)
    small = operations(tiny, tiny)
    assert operations(autoencoder.decode, autoencoder) >= 15 * small
    # The convolutions by hand: 2 x 9 x inputs x outputs for each of the 64 x 64 places.
    c, blocks = config.tiny_decoder.channels, config.tiny_decoder.blocks
    assert small == 18 * 64 * 64 * (c + 2 * blocks * c * c + 16 * c)


def test_each_place_of_the_latent_makes_sixteen_pixels() -> None:
    """Far from a change of the latent nothing changes, and near it something does, at the right place."""
    torch.manual_seed(0)
    tiny = build_tiny_decoder(TinyDecoder(channels=8, blocks=1))
    latents = torch.zeros(2, 1, 16, 16)
    latents[1, 0, 12, 3] = 1.0
    with torch.no_grad():
        plain, changed = tiny(latents)
    assert plain.shape == (1, 64, 64)
    rows, columns = torch.nonzero((plain - changed)[0], as_tuple=True)
    assert (rows.min().item() // 4, rows.max().item() // 4) == (12 - 4, 15)  # four convolutions look four places far
    assert (columns.min().item() // 4, columns.max().item() // 4) == (0, 3 + 4)


def test_noise_has_its_own_strength_in_each_row() -> None:
    latents = torch.zeros(200, 1, 16, 16)
    noisy = with_noise(latents, 0.5, torch.Generator().manual_seed(1))
    spread = noisy.flatten(1).std(1)
    assert 0 <= spread.min() < 0.05 < 0.45 < spread.max() < 0.6
    assert torch.equal(with_noise(latents, 0.0, torch.Generator()), latents)


def test_the_loss_has_the_similarity_of_a_quarter_of_the_rows() -> None:
    """MONAI's metric is the oracle. In bf16 the similarity is still computed in float32."""
    torch.manual_seed(0)
    tiny, latents, targets = (
        build_tiny_decoder(TinyDecoder(channels=8)),
        torch.randn(5, 1, 16, 16),
        torch.rand(5, 1, 64, 64),
    )
    settings = TinyDecoderTraining(squared_weight=3.0, ssim_weight=0.5)
    with torch.no_grad():
        losses = distillation_losses(tiny, latents, targets, settings)
        similarity = reconstruction_metrics(tiny(latents), targets)["ssim"][:2].mean()
        torch.testing.assert_close(losses["ssim"], 1 - similarity)
        torch.testing.assert_close(losses["loss"], losses["l1"] + 3 * losses["squared"] + 0.5 * losses["ssim"])
        with torch.autocast("cpu", torch.bfloat16):
            rounded = tiny(latents).float()
            losses = distillation_losses(tiny, latents, targets, settings)
        torch.testing.assert_close(losses["ssim"], 1 - reconstruction_metrics(rounded, targets)["ssim"][:2].mean())
        assert "ssim" not in distillation_losses(tiny, latents, targets, replace(settings, ssim_weight=0.0))


@pytest.fixture
def config(tiny):
    """Of a run that takes five iterations."""
    settings = TinyDecoderTraining(
        epochs=5, volumes_per_batch=3, slices_per_volume=2, checkpoint_every=2, ema_decay=0.9, learning_rate=3e-3
    )
    return replace(tiny, tiny_decoder=TinyDecoder(channels=8, blocks=1), tiny_decoder_training=settings)


@pytest.fixture
def folder(config, small_snapshot, tmp_path) -> Path:
    """A snapshot without a tiny decoder."""
    before = replace(config, tiny_decoder=TinyDecoder(), tiny_decoder_training=TinyDecoderTraining())
    save_snapshot(replace(small_snapshot, config=before), tmp_path / "snapshot")
    return tmp_path / "snapshot"


def test_a_lesson_shows_each_latent_once_before_it_repeats() -> None:
    latents = torch.arange(12.0).view(12, 1, 1, 1)
    lesson = Lesson(latents, 10 * latents)
    orders = []
    for time_through in range(3):
        batches = [lesson.batch(4 * time_through + place, 3, seed=5) for place in range(4)]
        assert all(torch.equal(10 * rows, images) for rows, images in batches)
        orders.append(torch.cat([rows for rows, _ in batches]).flatten().tolist())
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert torch.equal(lesson.batch(2, 3, seed=5)[0], lesson.batch(2, 3, seed=5)[0])


def train(config, folder: Path, data: Path, out: Path) -> dict[str, float]:
    return distil_decoder.train(config, folder, data, out, out / "latents.safetensors")


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bytes(config, folder, small_data, tmp_path, monkeypatch) -> None:
    whole = train(config, folder, small_data, tmp_path / "whole")
    log = Run.log

    def stop(self, now, losses, others):
        if now == 3:  # past the last saved state, so that work is lost and done again
            raise KeyboardInterrupt
        log(self, now, losses, others)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, folder, small_data, tmp_path / "cut")
    assert train(config, folder, small_data, tmp_path / "cut") == whole
    files = [tmp_path / run / "snapshot" / TINY_DECODER for run in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (tmp_path / "whole" / "pictures" / "decoders_0000005.png").is_file()
    assert load_snapshot(tmp_path / "whole" / "snapshot").history["tiny_decoder"]["iterations"] == 5


def command(config, folder: Path, data: Path, out: Path, *options: str) -> int:
    toml = write_toml(config, out.with_suffix(".toml"))
    paths = ["--snapshot", str(folder), "--data", str(data), "--out", str(out)]
    return distil_decoder.main(["--config", toml, *paths, *options])


@pytest.mark.slow
def test_below_the_gate_the_snapshot_stays_as_it_was(config, folder, small_data, tmp_path, capsys) -> None:
    """Five iterations do not make a decoder. The run is kept, and with a gate that it passes the snapshot has it."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert command(config, folder, small_data, tmp_path / "run") == 1
    captured = capsys.readouterr()
    assert "times fewer than the full decoder's" in captured.out
    assert "held-out latents, tiny against full decoder: SSIM " in captured.out
    assert "is below the gate, 0.98" in captured.err.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    assert command(config, folder, small_data, tmp_path / "run", "--gate", "-1") == 0
    snapshot, record = load_snapshot(folder), json.loads((folder / "snapshot.json").read_text())
    assert snapshot.config.tiny_decoder == config.tiny_decoder
    assert set(record["sha256"]) == {AUTOENCODER, UNET, TINY_DECODER}
    assert (folder / AUTOENCODER).read_bytes() == before[AUTOENCODER]
    assert (folder / UNET).read_bytes() == before[UNET]
    assert sha256(folder / TINY_DECODER) == sha256(tmp_path / "run" / "snapshot" / TINY_DECODER)


@pytest.mark.slow
def test_without_out_the_run_is_beside_the_snapshot_and_takes_its_latents(config, folder, small_data, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    assert command(config, folder, small_data, tmp_path / "other/run") == 1  # it encodes
    (tmp_path / "other/run" / LATENTS).rename(tmp_path / LATENTS)
    toml = write_toml(config, tmp_path / "settings.toml")
    paths = ["--snapshot", str(folder), "--data", str(small_data)]
    assert distil_decoder.main(["--config", toml, *paths, "--gate", "-1"]) == 0
    run = tmp_path / "tiny_decoder"
    assert (run / "state.pt").is_file()
    assert not (run / LATENTS).exists()
    assert sha256(run / "snapshot" / TINY_DECODER) == sha256(tmp_path / "other/run/snapshot" / TINY_DECODER)


@pytest.mark.slow
def test_it_learns_the_images_of_the_full_decoder(config, folder, small_data, tmp_path) -> None:
    """And a run that is over goes on with more epochs. Random weights make images of noise, which are hard to imitate:
    seen is an L1 of 0.38 that falls to 0.32, and an SSIM that rises from 0.00 to 0.14."""
    changes = {"checkpoint_every": 150, "slices_per_volume": 4, "learning_rate": 1e-2}
    first, longer = (
        replace(config, tiny_decoder_training=replace(config.tiny_decoder_training, epochs=epochs, **changes))
        for epochs in (1, 150)
    )
    before = train(first, folder, small_data, tmp_path / "run")
    after = train(longer, folder, small_data, tmp_path / "run")
    assert after["l1"] < 0.9 * before["l1"], (before, after)
    assert after["ssim"] > before["ssim"] + 0.08, (before, after)


def test_a_snapshot_without_a_scale_factor_is_refused(config, small_snapshot, small_data, tmp_path, capsys) -> None:
    stage1 = replace(small_snapshot, config=config, unet=None, scale_factor=None)
    save_snapshot(stage1, tmp_path / "snapshot")
    assert command(config, tmp_path / "snapshot", small_data, tmp_path / "run") == 1
    assert "has no scale factor: give the snapshot of training.train_diffusion" in capsys.readouterr().err


def test_settings_of_the_snapshot_cannot_be_changed(config, folder, small_data, tmp_path, capsys) -> None:
    assert command(config, folder, small_data, tmp_path / "run", "--noise-schedule.beta-end", "0.1") == 1
    assert f"--noise-schedule.* cannot be given here: the snapshot {folder} settles it" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_has_one_teacher(config, folder, small_data, tmp_path) -> None:
    """Of one scale factor: the latents of another one would be decoded to other images."""
    train(config, folder, small_data, tmp_path / "run")
    other = replace(load_snapshot(folder), scale_factor=0.5)
    save_snapshot(other, folder)
    with pytest.raises(CheckpointError, match=r"belongs to another run .*scale_factor .*: give a new --out"):
        train(config, folder, small_data, tmp_path / "run")
    with pytest.raises(CheckpointError, match="has another scale factor"):
        distil_decoder.add_tiny_decoder(folder, tmp_path / "run" / "snapshot")
    assert load_snapshot(folder).tiny_decoder is None
