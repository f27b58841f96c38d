"""Runs that begin with given weights."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from support.common import both_stages
from training import train_autoencoder, train_diffusion
from training.checkpoint import AUTOENCODER, UNET, CheckpointError, load_snapshot

pytestmark = pytest.mark.slow


def distance(one, other) -> float:
    """Largest difference between the tensors of two files."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.fixture
def trained(tiny, small_data, tmp_path_factory):
    """The snapshot of both stages after two updates each."""
    folder = tmp_path_factory.mktemp("trained")
    config = both_stages(tiny, epochs=2)
    autoencoder = train_autoencoder.train(config, small_data, folder / "autoencoder")
    return train_diffusion.train(config, autoencoder, small_data, folder / "diffusion")


def test_both_stages_begin_with_the_given_weights(tiny, trained, small_data, tmp_path) -> None:
    """With a tiny learning rate the weights stay where they began; without --initial they are others."""
    config = both_stages(replace(tiny, seed=7), epochs=1, learning_rate=1e-7)
    stage1 = train_autoencoder.train(config, small_data, tmp_path / "1", trained)
    stage2 = train_diffusion.train(config, stage1, small_data, tmp_path / "2", trained)
    assert 0 < distance(stage1 / AUTOENCODER, trained / AUTOENCODER) < 1e-5
    assert 0 < distance(stage2 / UNET, trained / UNET) < 1e-5
    fresh = train_autoencoder.train(config, small_data, tmp_path / "fresh")
    assert distance(fresh / AUTOENCODER, trained / AUTOENCODER) > 1e-2


def test_the_snapshot_tells_what_it_began_with(tiny, trained, small_data, tmp_path) -> None:
    stage1 = train_autoencoder.train(both_stages(tiny, epochs=1), small_data, tmp_path / "1", trained)
    before, after = load_snapshot(trained), load_snapshot(stage1)
    recorded = json.loads((trained / "snapshot.json").read_text())["sha256"][AUTOENCODER]
    initial = after.history["autoencoder"]["initial"]
    assert initial == {"sha256": recorded, "history": before.history["autoencoder"]}
    assert before.history["autoencoder"]["initial"] is None


def test_a_resumed_run_keeps_its_own_weights(tiny, trained, small_data, tmp_path) -> None:
    """The given weights count at iteration 0 only; a run with others is another run."""
    config = both_stages(tiny, checkpoint_every=1)
    whole = train_autoencoder.train(both_stages(config, epochs=2), small_data, tmp_path / "whole", trained)
    for epochs in (1, 2):
        parts = train_autoencoder.train(both_stages(config, epochs=epochs), small_data, tmp_path / "parts", trained)
    assert (parts / AUTOENCODER).read_bytes() == (whole / AUTOENCODER).read_bytes()
    with pytest.raises(CheckpointError, match=r"belongs to another run .*initial"):
        train_autoencoder.train(both_stages(config, epochs=3), small_data, tmp_path / "parts")


def test_weights_of_another_network_are_refused(tiny, trained, small_data, tmp_path) -> None:
    other = replace(tiny, autoencoder=replace(tiny.autoencoder, num_res_blocks=2))
    with pytest.raises(CheckpointError, match=r"^--initial .* holds another network \(num_res_blocks 1, not 2\)"):
        train_autoencoder.train(other, small_data, tmp_path / "1", trained)
    stage1 = trained.parents[1] / "autoencoder/snapshot"
    with pytest.raises(CheckpointError, match=r"^--initial .* holds no unet.safetensors"):
        train_diffusion.train(tiny, stage1, small_data, tmp_path / "2", stage1)
