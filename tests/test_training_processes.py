"""Several processes and sudden death: torchrun computes what one process does, and a killed run leaves no torn file."""

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from common import ROOT, run_python, write_toml
from training.checkpoint import load_snapshot, load_state


def gradients(run: Path) -> dict[str, list[torch.Tensor]]:
    """Those of a run's only iteration: after one step Adam's first moment is a tenth of them."""
    state = load_state(run / "state.pt")
    assert state["iteration"] == 1
    moments = {}
    for name in ("autoencoder", "discriminator", "unet"):
        if name in state:
            moments[name] = [moment["exp_avg"] for moment in state[name]["optimizer"]["state"].values()]
    return moments


def test_two_processes_compute_what_one_does_with_twice_the_accumulation(tiny, phantom, tmp_path) -> None:
    """Volumes, slices, flips and noise are those of the part, not of the process; one scale factor for all.

    float32 sums in another order: gradients agree to 1e-4 of the largest of their network. All with one thread, because
    the gradient of L1 is a sign, and another number of threads turns that of pixels which are nearly exact.
    """
    common = {"epochs": 1, "volumes_per_batch": 1}
    single = replace(
        tiny,
        autoencoder_training=replace(tiny.autoencoder_training, accumulate=2, **common),
        diffusion_training=replace(tiny.diffusion_training, accumulate=2, **common),
    )
    shared = [replace(getattr(single, name), accumulate=1) for name in ("autoencoder_training", "diffusion_training")]
    two = replace(single, autoencoder_training=shared[0], diffusion_training=shared[1])
    for name, config in (("one", single), ("two", two)):
        file = write_toml(config, tmp_path / f"{name}.toml")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if name == "two" else []
        for stage, extra in (
            ("autoencoder", []),
            ("diffusion", ["--autoencoder", str(tmp_path / "one1" / "snapshot")]),
        ):
            run = tmp_path / f"{name}{1 if stage == 'autoencoder' else 2}"
            arguments = ["--config", file, "--data", str(phantom), "--out", str(run), *extra]
            result = run_python(*launcher, "-m", f"training.train_{stage}", *arguments, timeout=600, threads=1)
            assert result.returncode == 0, result.stderr
            assert result.stdout.count("scale factor") == (stage == "diffusion")
    for stage in (1, 2):
        one, other = (gradients(tmp_path / f"{name}{stage}") for name in ("one", "two"))
        assert one.keys() == other.keys()
        for network, mine in one.items():
            scale = max(gradient.abs().max() for gradient in mine)
            assert scale > 0
            worst = max((a - b).abs().max() for a, b in zip(mine, other[network], strict=True))
            assert worst < 1e-4 * scale, (network, worst / scale)
    factors = {load_snapshot(tmp_path / f"{name}2" / "snapshot").scale_factor for name in ("one", "two")}
    assert len(factors) == 1
    # The run may go on in either way, but not with another number of parts.
    arguments = ["--config", str(tmp_path / "one.toml"), "--data", str(phantom), "--out", str(tmp_path / "two1")]
    result = run_python("-m", "training.train_autoencoder", *arguments, "--autoencoder-training.accumulate", "3")
    assert "parts 2 -> 3; parts are processes x accumulate" in result.stderr


def test_a_killed_run_leaves_no_torn_file_and_continues_to_the_same_bytes(tiny, phantom, tmp_path) -> None:
    """SIGKILL at random moments, most of them while something is being written: a state is saved at every iteration."""
    stage = replace(tiny.autoencoder_training, epochs=24, checkpoint_every=1, ema_decay=0.9)
    file = write_toml(replace(tiny, autoencoder_training=stage), tmp_path / "tiny.toml")

    def command(run: Path) -> list[str]:
        return ["-m", "training.train_autoencoder", "--config", file, "--data", str(phantom), "--out", str(run)]

    moments = random.Random(7)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_python(*command(whole), timeout=600).returncode == 0
    reached = []
    for _ in range(3):
        with subprocess.Popen([sys.executable, *command(killed)], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            wait_for_progress(process, killed / "state.pt")
            time.sleep(moments.uniform(0, 1))
            process.send_signal(signal.SIGKILL)
        reached.append(load_state(killed / "state.pt")["iteration"])
        for folder in (killed / "snapshot", killed / "snapshot.old"):
            if folder.is_dir():
                load_snapshot(folder)  # raises if a hash is wrong
    assert reached == sorted(reached)
    assert run_python(*command(killed), timeout=600).returncode == 0
    for name in ("autoencoder.safetensors", "snapshot.json"):
        assert (killed / "snapshot" / name).read_bytes() == (whole / "snapshot" / name).read_bytes()


def wait_for_progress(process: subprocess.Popen[bytes], path: Path) -> None:
    """Until the file is written anew."""
    before = path.stat().st_mtime_ns if path.is_file() else None
    deadline = time.monotonic() + 300
    while not path.is_file() or path.stat().st_mtime_ns == before:
        assert process.poll() is None, "the run has ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.02)
