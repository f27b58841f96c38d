"""Signals, and what a run refuses to take up from another: nothing of a run is lost, nothing is mixed."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from support.common import both_stages
from training import train_autoencoder, train_diffusion
from training.checkpoint import CheckpointError, load_snapshot, load_state, save_snapshot
from training.config import Config, ConfigError


def lasting(config: Config, epochs: int) -> Config:
    """`config` with that many iterations in both stages, and no state saved on the way."""
    return both_stages(config, epochs=epochs, checkpoint_every=10**6)


def interrupt_when_running(number: signal.Signals) -> None:
    """Send this process a signal once the loop listens for it, some iterations later."""
    before = signal.getsignal(number)

    def wait_and_send() -> None:
        deadline = time.monotonic() + 300
        while signal.getsignal(number) is before:
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait_and_send, daemon=True).start()


@pytest.mark.slow
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bytes(tiny, small_snapshot, small_data, tmp_path) -> None:
    save_snapshot(replace(small_snapshot, config=tiny, unet=None), tmp_path / "stage1")
    for number, stage in ((signal.SIGTERM, "autoencoder"), (signal.SIGINT, "diffusion")):

        def train(out: Path, epochs: int, stage: str = stage) -> Path:
            if stage == "autoencoder":
                return train_autoencoder.train(lasting(tiny, epochs), small_data, out)
            return train_diffusion.train(lasting(tiny, epochs), tmp_path / "stage1", small_data, out)

        cut, whole = tmp_path / f"{stage} cut", tmp_path / f"{stage} whole"
        before = signal.getsignal(number)
        interrupt_when_running(number)
        with pytest.raises(KeyboardInterrupt):
            train(cut, 10**6)
        assert signal.getsignal(number) is before
        reached = load_state(cut / "state.pt")["iteration"]
        assert load_snapshot(cut / "snapshot").history[stage]["iterations"] == reached > 0
        for run in (cut, whole):
            train(run, reached + 1)
        name = "autoencoder" if stage == "autoencoder" else "unet"
        files = [(run / "snapshot" / f"{name}.safetensors").read_bytes() for run in (cut, whole)]
        assert files[0] == files[1]


@pytest.mark.slow
def test_stage_2_sees_slices_as_stage_1_did(tiny, small_snapshot, small_data, tmp_path) -> None:
    """Another channel through the same autoencoder would train without a word, on latents that mean nothing."""
    save_snapshot(replace(small_snapshot, config=tiny, unet=None), tmp_path / "stage1")
    other = replace(tiny, data=replace(tiny.data, channel=1))
    with pytest.raises(ConfigError, match=r"trained with data.channel=0 .* this run has data.channel=1 data"):
        train_diffusion.train(other, tmp_path / "stage1", small_data, tmp_path / "run")
    # Also where only the latents are there, from a run that ended before its first state.
    run = tmp_path / "run"
    train_diffusion.train(lasting(tiny, 1), tmp_path / "stage1", small_data, run)
    (run / "state.pt").unlink()
    save_snapshot(replace(small_snapshot, config=other, unet=None), tmp_path / "stage1 other")
    with pytest.raises(CheckpointError, match="from other data"):
        train_diffusion.train(lasting(other, 1), tmp_path / "stage1 other", small_data, run)


def test_what_the_snapshot_settles_cannot_be_overridden(small_snapshot, tmp_path, capsys) -> None:
    save_snapshot(small_snapshot, tmp_path / "stage1")
    options = ["--config", "demo", "--autoencoder", str(tmp_path / "stage1"), "--data", "x", "--out", "y"]
    assert train_diffusion.main([*options, "--autoencoder-training.kl-weight", "1"]) == 1
    error = capsys.readouterr().err
    assert f"--autoencoder-training.* cannot be given here: the snapshot {tmp_path / 'stage1'} settles it" in error
