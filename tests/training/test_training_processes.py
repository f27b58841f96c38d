"""Several processes and sudden death: torchrun computes what one process does, and a killed run leaves no torn file."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.common import ROOT, both_stages, run_python, write_toml
from training import train_autoencoder, train_diffusion
from training.checkpoint import load_snapshot, load_state, save_snapshot

pytestmark = pytest.mark.slow

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def gradients(run: Path) -> dict[str, list[torch.Tensor]]:
    """Adam's first moments: weighted sums of the gradients of all iterations, of which the last weighs a tenth."""
    state, moments = load_state(run / "state.pt"), {}
    for name in ("autoencoder", "discriminator", "unet"):
        if name in state:
            moments[name] = [moment["exp_avg"] for moment in state[name]["optimizer"]["state"].values()]
    return moments


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Of PyTorch, in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_processes_compute_what_one_does_with_twice_the_accumulation(
    tiny, small_data, tmp_path, one_thread, capsys
) -> None:
    """Two times two parts and one time four. Volumes, slices, flips and noise are those of the part, not of the
    process; one scale factor for all; the first process validates, and both stop when it finds no progress: else one
    would wait for ever.

    float32 sums in another order: gradients agree to 1e-4 of the largest of their network. All with one thread, because
    the gradient of L1 is a sign, and another number of threads turns that of pixels which are nearly exact.
    """
    # Five volumes are for training, so an epoch is an update; at this rate nothing is learnt, and three suffice.
    common = {"epochs": 9, "volumes_per_batch": 1, "learning_rate": 1e-30, "validate_every": 1, "patience": 2}
    single = both_stages(tiny, accumulate=4, **common)
    two = both_stages(single, accumulate=2)
    files = {name: write_toml(config, tmp_path / f"{name}.toml") for name, config in (("one", single), ("two", two))}

    def arguments(name: str, number: int) -> list[str]:
        first = [] if number == 1 else ["--autoencoder", str(tmp_path / "one1" / "snapshot")]
        return ["--config", files[name], "--data", str(small_data), "--out", str(tmp_path / f"{name}{number}"), *first]

    for number, stage in ((1, train_autoencoder), (2, train_diffusion)):
        assert stage.main(arguments("one", number)) == 0
        assert capsys.readouterr().out.count("scale factor") == number - 1
        launched = [*TWO_PROCESSES, "-m", stage.__name__, *arguments("two", number)]
        result = run_python(*launched, timeout=600, threads=1)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("scale factor") == number - 1
    for stage in (1, 2):
        one, other = (gradients(tmp_path / f"{name}{stage}") for name in ("one", "two"))
        assert one.keys() == other.keys()
        for network, first in one.items():
            scale = max(gradient.abs().max() for gradient in first)
            assert scale > 0
            worst = max((a - b).abs().max() for a, b in zip(first, other[network], strict=True))
            assert worst < 1e-4 * scale, (network, worst / scale)
    factors = {load_snapshot(tmp_path / f"{name}2" / "snapshot").scale_factor for name in ("one", "two")}
    assert len(factors) == 1
    for stage in (1, 2):
        scores = [load_state(tmp_path / f"{name}{stage}" / "state.pt")["best"]["score"] for name in ("one", "two")]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    for run in ("one1", "two1"):
        state = load_state(tmp_path / run / "state.pt")
        assert (state["iteration"], state["best"]["since"]) == (3, 2)
        assert load_snapshot(tmp_path / run / "best").history["autoencoder"]["iterations"] == 1
    # The run may go on in either way, but not with another number of parts.
    assert train_autoencoder.main([*arguments("two", 1), "--autoencoder-training.accumulate", "10"]) == 1
    assert "parts 4 -> 10; parts are processes x accumulate" in capsys.readouterr().err


def test_a_killed_run_leaves_no_torn_file_and_continues_to_the_same_bytes(
    tiny, small_data, tmp_path, one_thread
) -> None:
    """SIGKILL at random moments, most of them while something is being written: a state is saved at every iteration."""
    stage = replace(tiny.autoencoder_training, epochs=60, checkpoint_every=1, ema_decay=0.9)
    file = write_toml(replace(tiny, autoencoder_training=stage), tmp_path / "tiny.toml")

    def options(run: Path) -> list[str]:
        return ["--config", file, "--data", str(small_data), "--out", str(run)]

    moments = random.Random(7)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train_autoencoder.main(options(whole)) == 0
    reached, command = [], [sys.executable, "-m", "training.train_autoencoder", *options(killed)]
    for _ in range(3):
        with subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stderr=subprocess.DEVNULL) as process:
            wait_for_progress(process, killed / "state.pt")
            time.sleep(moments.uniform(0, 1))
            process.send_signal(signal.SIGKILL)
        reached.append(load_state(killed / "state.pt")["iteration"])
        load_snapshot(killed / "snapshot")  # raises if there is none, also as .new, or if a hash is wrong
    assert reached == sorted(reached)
    assert train_autoencoder.main(options(killed)) == 0
    for name in ("autoencoder.safetensors", "snapshot.json"):
        assert (killed / "snapshot" / name).read_bytes() == (whole / "snapshot" / name).read_bytes()


def test_a_second_stage_killed_around_its_latents_continues_to_the_same_bytes(
    tiny, small_snapshot, small_data, tmp_path, one_thread, capsys
) -> None:
    """SIGKILL while volumes are encoded, which leaves no latents, and once all of them are: they are used again."""
    training = replace(tiny.diffusion_training, epochs=1, checkpoint_every=100)
    config = replace(tiny, diffusion_training=training)
    file = write_toml(config, tmp_path / "tiny.toml")
    stage1 = tmp_path / "stage1"
    save_snapshot(replace(small_snapshot, config=config, unet=None, scale_factor=None), stage1)

    def options(run: Path) -> list[str]:
        given = {"--config": file, "--autoencoder": str(stage1), "--data": str(small_data), "--out": str(run)}
        return list(itertools.chain(*given.items()))

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    latents = killed / "latents.safetensors"
    command = ["-m", "training.train_diffusion", *options(killed)]
    kill_at_line("encoding volumes", command)
    # A signal that comes too late, on a crowded machine, finds latents; these are whole then, as the end shows.
    kill_at_line("scale factor", command)
    before = latents.read_bytes()
    for run in (whole, killed):
        assert train_diffusion.main(options(run)) == 0
        assert ("encoding volumes" in capsys.readouterr().err) == (run == whole)
    assert before == latents.read_bytes() == (whole / "latents.safetensors").read_bytes()
    for name in ("unet.safetensors", "snapshot.json"):
        assert (killed / "snapshot" / name).read_bytes() == (whole / "snapshot" / name).read_bytes()


def kill_at_line(text: str, command: list[str]) -> None:
    """SIGKILL to a command as soon as it prints `text`, be it only the start of a progress bar."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([sys.executable, "-u", *command], cwd=ROOT, env=ONE_THREAD, **pipes) as process:
        seen = b""
        while text.encode() not in seen:
            part = process.stdout.read1()
            assert part, f"the run has ended by itself: {seen.decode()}"
            seen += part
        process.send_signal(signal.SIGKILL)


def wait_for_progress(process: subprocess.Popen[bytes], path: Path) -> None:
    """Until the file is written anew."""
    before = path.stat().st_mtime_ns if path.is_file() else None
    deadline = time.monotonic() + 300
    while not path.is_file() or path.stat().st_mtime_ns == before:
        assert process.poll() is None, "the run has ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.02)
