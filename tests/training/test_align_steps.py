"""Aligned timesteps: the search against brute force, a problem with known estimates, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from export.repository import _model_record
from mri_ldm.samplers import NoiseSchedule, sampler_columns
from mri_ldm.timestep_grids import grid_timesteps, read_aligned
from support.common import SMALL
from training import align_steps, checkpoint
from training.checkpoint import load_snapshot, save_snapshot
from training.files import NotWritten
from training.step_alignment import best_paths, candidate_timesteps, estimate_distances, noise_levels, step_costs

ALPHA_BARS = NoiseSchedule(1000, 0.0015, 0.0195).alpha_bars()
VARIANCE = 0.25
"""Of data ~ N(0, VARIANCE), for which the best estimate is D(x, t) = VARIANCE / (VARIANCE + t^2) x."""


def known_distance(s: float, t: float) -> float:
    """E |D(x_s, s) - D(x_t, t)|^2 on a path x_s = x_t + W(s^2 - t^2)."""
    high, low = max(s, t), min(s, t)
    at_high, at_low = (VARIANCE / (VARIANCE + level**2) for level in (high, low))
    return (at_high - at_low) ** 2 * (VARIANCE + low**2) + at_high**2 * (high**2 - low**2)


def known_costs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates and the costs of their steps."""
    timesteps = candidate_timesteps(ALPHA_BARS, count)
    levels = noise_levels(ALPHA_BARS)[timesteps]
    return timesteps, step_costs(np.array([[known_distance(s, t) for t in levels] for s in levels]), levels)


def test_candidates_run_over_the_whole_schedule() -> None:
    timesteps = candidate_timesteps(ALPHA_BARS, 64)
    assert (timesteps[0], timesteps[-1]) == (999, 0)
    assert (np.diff(timesteps) < 0).all()
    assert 50 < len(timesteps) <= 64
    # Where timesteps are dense enough, they are even in log sigma.
    apart = -np.diff(np.log(noise_levels(ALPHA_BARS)[timesteps]))
    assert apart[:40] == pytest.approx(np.full(40, apart[:40].mean()), rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_no_grid_of_the_candidates_is_cheaper(seed: int) -> None:
    """Brute force over all grids of up to nine candidates, at any costs."""
    costs = np.triu(np.random.default_rng(seed).exponential(size=(9, 9)), 1)
    costs[np.tril_indices(9)] = np.inf
    found = best_paths(costs, range(1, 12))
    assert sorted(found) == list(range(1, 9))

    def cost(path: list[int]) -> float:
        return sum(costs[i, j] for i, j in zip(path, [*path[1:], 8], strict=True))

    for count, path in found.items():
        every = [[0, *between] for between in combinations(range(1, 8), count - 1)]
        assert len(path) == count
        assert cost(path) == pytest.approx(min(map(cost, every)))


def test_the_cost_of_a_step_is_the_integral() -> None:
    """Against a fine sum over the noise level itself, for data whose estimates are known."""
    timesteps, costs = known_costs(300)
    levels = noise_levels(ALPHA_BARS)[timesteps]
    assert np.isinf(costs[np.tril_indices(len(costs))]).all()
    for i, j in ((0, 40), (20, 21), (30, 120), (0, len(levels) - 1)):
        t = np.exp(np.linspace(np.log(levels[j]), np.log(levels[i]), 2001))
        values = np.array([known_distance(levels[i], level) / level**3 for level in t])
        assert costs[i, j] == pytest.approx(((values[1:] + values[:-1]) / 2 * np.diff(t)).sum(), rel=0.03)


def test_distances_are_those_of_the_known_problem() -> None:
    """The exact network for Gaussian data, which sees latents and timesteps as the UNet does."""

    def unet(latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        alpha_bar = torch.from_numpy(ALPHA_BARS)[timesteps].view(-1, 1, 1, 1)
        return ((1 - alpha_bar).sqrt() * latents / (VARIANCE * alpha_bar + 1 - alpha_bar)).float()

    timesteps = candidate_timesteps(ALPHA_BARS, 12)
    generator = torch.Generator().manual_seed(0)
    latents = VARIANCE**0.5 * torch.randn((4, 1, 64, 64), generator=generator)
    seen: list[int] = []
    summed = estimate_distances(unet, latents, timesteps.tolist(), ALPHA_BARS, generator, seen.append)
    assert seen == [4] * len(timesteps)
    levels = noise_levels(ALPHA_BARS)[timesteps]
    expected = np.array([[known_distance(s, t) for t in levels] for s in levels])
    np.testing.assert_allclose(summed / latents.numel(), expected, rtol=0.1, atol=1e-4)


def ancestral_error(timesteps: np.ndarray) -> float:
    """How far ancestral sampling ends from the deviation of the data; exact, since all of it is linear."""
    alpha_bar = ALPHA_BARS[timesteps]
    a, b, _, d, _ = sampler_columns("ddpm", alpha_bar)
    variance = 1.0
    for i, level in enumerate(alpha_bar):
        slope = a[i] + b[i] * np.sqrt(1 - level) / (VARIANCE * level + 1 - level)
        variance = slope**2 * variance + d[i] ** 2
    return abs(variance**0.5 - VARIANCE**0.5)


@pytest.mark.parametrize("steps", [5, 8, 10, 16])
def test_the_known_problem_is_sampled_better(steps: int) -> None:
    """The bound is about stochastic sampling, so this is what it must improve: here over every other grid."""
    timesteps, costs = known_costs(64)
    aligned = timesteps[best_paths(costs, [steps])[steps]]
    for grid in ("leading", "log_snr", "karras"):
        assert ancestral_error(aligned) < 0.85 * ancestral_error(grid_timesteps(grid, steps, ALPHA_BARS))


# --- the command


@pytest.fixture
def snapshot_folder(small_snapshot, tmp_path):
    """A snapshot that reads `small_data`."""
    config = replace(small_snapshot.config, data=SMALL)
    save_snapshot(replace(small_snapshot, config=config), tmp_path / "snapshot")
    return tmp_path / "snapshot"


def command(folder, data, *more: str) -> int:
    few = ("--paths", "3", "--candidates", "30", "--batch", "2")
    return align_steps.main(["--snapshot", str(folder), "--data", str(data), *few, *more])


def test_the_command_adds_grids_and_changes_nothing_else(snapshot_folder, small_data, tmp_path, capsys) -> None:
    before = load_snapshot(snapshot_folder)
    assert before.aligned_timesteps == ()
    assert "aligned_timesteps" not in json.loads((snapshot_folder / "snapshot.json").read_text())
    assert command(snapshot_folder, small_data, "--picture", str(tmp_path / "grids.png")) == 0
    after = load_snapshot(snapshot_folder)
    assert {len(grid) for grid in after.aligned_timesteps} <= set(range(4, 21))
    assert len(after.aligned_timesteps) > 10
    assert all(grid[0] == 999 for grid in after.aligned_timesteps)
    assert (after.config, after.history, after.scale_factor) == (before.config, before.history, before.scale_factor)
    for one, other in ((after.autoencoder, before.autoencoder), (after.unet, before.unet)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "grids.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert f"  4 steps: {' '.join(map(str, after.aligned_timesteps[0]))}\n" in said
    # The same seed finds the same grids, whatever the snapshot held before.
    assert command(snapshot_folder, small_data) == 0
    assert load_snapshot(snapshot_folder).aligned_timesteps == after.aligned_timesteps


def test_export_hands_the_grids_to_the_server(small_snapshot, tmp_path) -> None:
    for network in ("unet", "vae_decoder"):
        (tmp_path / network / "1").mkdir(parents=True)
        (tmp_path / network / "1" / "model.onnx").touch()
    assert "aligned_timesteps" not in _model_record(small_snapshot, tmp_path, "small", 1)
    grids = ((999, 400, 20), (999, 500, 100, 5))
    record = json.loads(
        json.dumps(_model_record(replace(small_snapshot, aligned_timesteps=grids), tmp_path, "small", 1))
    )
    assert read_aligned(record["aligned_timesteps"], 1000) == grids


def test_an_interrupted_write_leaves_the_snapshot_as_it_was(snapshot_folder, small_data, monkeypatch, capsys) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise NotWritten("no space left on device")

    before = {path.name: path.read_bytes() for path in snapshot_folder.iterdir()}
    monkeypatch.setattr(checkpoint, "write_text", full)  # the last file of a snapshot
    assert command(snapshot_folder, small_data) == 1
    assert "no space left on device" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in snapshot_folder.iterdir()} == before
    assert load_snapshot(snapshot_folder).aligned_timesteps == ()


def test_what_was_added_meanwhile_stays(snapshot_folder, small_data, tiny_snapshot, monkeypatch, capsys) -> None:
    before, grids = load_snapshot(snapshot_folder), ((999, 400, 100, 9),)
    config = replace(before.config, tiny_decoder=tiny_snapshot.config.tiny_decoder)
    written = replace(before, config=config, tiny_decoder=tiny_snapshot.tiny_decoder)

    def meanwhile(*_: object) -> tuple[tuple[int, ...], ...]:
        save_snapshot(written, snapshot_folder)
        return grids

    monkeypatch.setattr(align_steps, "align", meanwhile)
    assert command(snapshot_folder, small_data) == 0
    after = load_snapshot(snapshot_folder)
    assert after.aligned_timesteps == grids
    assert after.tiny_decoder is not None
    # Other weights are not those that were aligned.
    written = replace(written, unet={name: tensor + 1 for name, tensor in before.unet.items()})
    assert command(snapshot_folder, small_data) == 1
    assert "unet.safetensors was replaced meanwhile: align the steps of the new weights" in capsys.readouterr().err
    assert load_snapshot(snapshot_folder).aligned_timesteps == ()


def test_what_cannot_be_aligned_is_told(snapshot_folder, small_data, small_snapshot, tmp_path, capsys) -> None:
    assert command(snapshot_folder, small_data, "--candidates", "7") == 1
    assert "--candidates must lie in 8..1000, and --paths and --batch must be 1 or more" in capsys.readouterr().err
    stage1 = replace(small_snapshot, unet=None, scale_factor=None)
    save_snapshot(stage1, tmp_path / "stage1")
    assert command(tmp_path / "stage1", small_data) == 1
    assert "the snapshot holds an autoencoder only: give that of training.train_diffusion" in capsys.readouterr().err
    assert command(tmp_path / "none", small_data) == 1
    assert "snapshot.json does not exist" in capsys.readouterr().err
