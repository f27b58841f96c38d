"""Evaluation: metrics by closed forms, planted copies found, new slices left in peace, folders read right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.common import run_python
from training.checkpoint import save_snapshot
from training.config import Data
from training.data import open_volumes, volume_transforms
from training.evaluation import __main__ as evaluate
from training.evaluation import slices
from training.evaluation.measure import distribution_metrics, pair_similarity
from training.evaluation.memorisation import Folder, Memorisation, find_copies, plant_copies
from training.evaluation.slices import read_slices
from training.phantom_template import icbm152
from training.phantom_volume import make_volume

NEW_VOLUMES, NEW_DEPTHS = 3, np.s_[3:148]  # 435 slices


def exact_normal(count: int, mean: list[float], variance: list[float]) -> torch.Tensor:
    """Vectors float64 [count, d] whose sample mean and (unbiased, diagonal) sample covariance are the given ones."""
    drawn = torch.randn(count, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    drawn -= drawn.mean(0)
    drawn = drawn @ torch.linalg.inv(torch.linalg.cholesky(drawn.T.cov())).T
    return drawn * torch.tensor(variance, dtype=torch.float64).sqrt() + torch.tensor(mean, dtype=torch.float64)


# --- distributions


def test_metrics_have_their_closed_forms() -> None:
    """Two Gaussians with diagonal covariances: FID = |m|^2 + sum (s - t)^2; the unbiased linear MMD corrects |m|^2 by
    the variances of the means; KID by scikit-learn's polynomial kernel, over the one subset there is."""
    from sklearn.metrics.pairwise import polynomial_kernel

    mean, first, second, count = [1.0, -2.0, 0.5], [1.0, 4.0, 0.25], [4.0, 1.0, 0.25], 200
    real, synthetic = exact_normal(count, [0.0] * 3, first), exact_normal(count, mean, second)[torch.randperm(count)]
    measured = distribution_metrics(real, synthetic, seed=0)
    distance = sum(m * m for m in mean)
    assert measured["FID"] == pytest.approx(distance + 1 + 1 + 0, rel=1e-8)
    assert measured["MMD"] == pytest.approx(distance - (sum(first) + sum(second)) / count, rel=1e-8)
    parts = {
        (a, b): polynomial_kernel(x, y, degree=3, coef0=1)
        for a, x in enumerate((real, synthetic))
        for b, y in enumerate((real, synthetic))
    }
    within = sum((parts[i, i].sum() - parts[i, i].trace()) / (count * (count - 1)) for i in range(2))
    assert measured["KID"] == pytest.approx(within - 2 * parts[0, 1].mean(), rel=1e-6)


def test_equal_folders_are_equal_and_far_ones_are_far() -> None:
    features = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same, far = (distribution_metrics(features, features + shift, seed=0) for shift in (0.0, 1000.0))
    assert same["FID"] == pytest.approx(0, abs=1e-6)
    assert same["KID"] <= 0  # unbiased: each vector's pair with itself counts only between the folders
    assert [same[name] for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert far["FID"] == pytest.approx(5e6, rel=1e-6)
    assert [far[name] for name in ("precision", "recall", "density", "coverage")] == [0, 0, 0, 0]


def test_folders_of_different_sizes_compare_and_a_seed_repeats() -> None:
    generator = torch.Generator().manual_seed(0)
    real, synthetic = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in (50, 30))
    assert distribution_metrics(real, synthetic, seed=1) == distribution_metrics(real, synthetic, seed=1)
    assert distribution_metrics(real, synthetic, seed=1)["KID"] != distribution_metrics(real, synthetic, seed=2)["KID"]


def test_pairs_are_never_a_slice_with_itself() -> None:
    """Of two different slices each pair is the same pair; of two equal ones each is at 1."""
    images = np.random.default_rng(0).random((2, 240, 240), np.float32)
    assert np.ptp(pair_similarity(images, 8, 0, "")) < 1e-5
    assert pair_similarity(images, 8, 0, "").max() < 0.9
    assert pair_similarity(images[[0, 0]], 8, 0, "") == pytest.approx(1, abs=1e-5)


# --- memorisation


def flair(volume: np.ndarray, depths: slice) -> np.ndarray:
    """Slices float32 [n, 240, 240] in [0, 1] of a volume [240, 240, 155, 4], scaled as `volume_transforms` does."""
    image = volume[..., 0].astype(np.float32)
    return (image / image.max())[:, :, depths].transpose(2, 0, 1)


@pytest.fixture(scope="module")
def folder(phantom, tmp_path_factory) -> Path:
    """A folder of all slices of the two phantom volumes, written by the command."""
    out = tmp_path_factory.mktemp("slices") / "training"
    assert slices.main(["--data", str(phantom), "--section", "training", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def heads() -> list[np.ndarray]:
    """Volumes that the training folder does not know."""
    template = icbm152()
    seeds = range(1000, 1000 + 2 + NEW_VOLUMES)
    return [make_volume(template, np.random.default_rng(seed))[0] for seed in seeds]


@pytest.fixture(scope="module")
def searched(folder, heads) -> Memorisation:
    """First 200 planted copies, then more than 400 slices of volumes that are neither known nor held out."""
    training = read_slices(folder).images
    held_out = np.concatenate([flair(head, np.s_[27:127]) for head in heads[:2]])
    new = np.concatenate([flair(head, NEW_DEPTHS) for head in heads[2:]])
    copies = plant_copies(training, np.random.default_rng(5))
    return find_copies(np.concatenate([copies, new]), training, held_out)


@pytest.mark.slow
def test_every_planted_copy_is_found(searched) -> None:
    assert searched.copies[:200].all()
    assert (searched.training.index[:200] == np.arange(200)).all()
    assert (searched.controls_found, searched.controls) == (100, 100)


@pytest.mark.slow
def test_new_slices_raise_no_alarm(searched) -> None:
    assert len(searched.copies) - 200 > 400
    assert not searched.copies[200:].any()
    assert searched.held_out_alarms == 0


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)])
def test_flip_shift_and_gain_leave_the_similarity(folder, axes) -> None:
    """A copy correlates with its source at 1, not merely above a threshold; one moved too far does not."""
    training = read_slices(folder).images[40:60]
    near, far = (0.5 * np.roll(np.flip(training[7:8], axes), shift, (1, 2)) for shift in ((8, -8), (14, 0)))
    for moved, least, most in ((near, 0.9999, 1.0001), (far, 0.0, 0.9)):
        shown = np.flip(moved, [axis + 1 for axis in axes]) if axes else moved
        result = Folder(np.ascontiguousarray(shown), "moved").nearest(Folder(training, "training"))
        assert least < result.similarity[0] < most
    assert result.index.shape == (1,)


# --- folders of slices


@pytest.mark.slow
def test_the_command_writes_what_the_networks_see(phantom, folder) -> None:
    """float16 of values in [0, 1] is right to 2^-12."""
    from monai.transforms import Compose

    config = Data()
    volumes = open_volumes(phantom, "training", Compose(volume_transforms(config)), config, cache=False)
    order = np.argsort([volume["image"] for volume in volumes.data])
    expected = np.concatenate([np.asarray(volumes[int(i)]["image"])[0].transpose(2, 0, 1) for i in order])
    result = read_slices(folder)
    assert result.images.dtype == np.float32
    assert len(result.names) == 200
    np.testing.assert_allclose(result.images, expected, atol=2**-12)


@pytest.mark.slow
def test_a_count_draws_by_the_seed_and_never_overwrites(phantom, folder, tmp_path, capsys) -> None:
    command = ["--data", str(phantom), "--section", "training", "--count", "7", "--seed", "3", "--out"]
    for out in ("a", "b"):
        assert slices.main([*command, str(tmp_path / out)]) == 0
    first, second = (read_slices(tmp_path / out) for out in ("a", "b"))
    assert (first.images == second.images).all()
    assert first.names == second.names
    assert len(first.names) == 7
    known = {image.tobytes() for image in read_slices(folder).images}
    assert {image.tobytes() for image in first.images} < known
    assert slices.main([*command, str(tmp_path / "a")]) == 1
    assert "is not an empty folder: give a new --out" in capsys.readouterr().err


# --- the command


@pytest.mark.parametrize("verb", ["evaluation", "evaluation.slices", "evaluation.labels", "phantom"])
def test_help_is_readable_and_loads_no_large_library(verb: str) -> None:
    module = "training.evaluation.__main__" if verb == "evaluation" else f"training.{verb}"
    code = f"""import sys; from {module} import main
try: main(["--help"])
finally: print({{"numpy", "torch", "monai", "matplotlib"}} & set(sys.modules))"""
    result = run_python("-c", code)
    assert result.stdout.startswith(f"usage: python -m training.{verb}")
    assert result.stdout.endswith("set()\n")
    assert "--out" in result.stdout
    if verb == "evaluation":
        text = " ".join(result.stdout.replace("│", " ").split())
        assert "the encoder of training/encoder, are relative only" in text
        assert "(default: training/encoder)" in text
        assert "(default: out/evaluation)" in text


@pytest.mark.slow
def test_the_command_reports_planted_copies(folder, heads, tmp_path, capsys) -> None:
    """Three copies among 27 new slices, by the default features: in the table, in the JSON with their sources, and on
    the page."""
    training = read_slices(folder)
    copies = plant_copies(training.images[[30, 90, 150]], np.random.default_rng(0))
    for name, images in {
        "real": flair(heads[0], np.s_[27:127:2]),
        "synthetic": np.concatenate([copies, flair(heads[2], np.s_[40:94:2])]),
    }.items():
        (tmp_path / name).mkdir()
        np.savez_compressed(tmp_path / name / "slices.npz", images=images)
    command = [f"--{name}={tmp_path / name}" for name in ("real", "synthetic", "out")]
    command += [f"--training={folder}", "--pairs=8"]
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    assert "3 of 30 synthetic slices are copies" in printed
    assert "training/encoder (sha256 d5c623bb9cae), encoder of this project: relative only" in printed
    assert "rough threshold" in printed
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    rows = result["memorisation"]["slices"]
    assert [row["training"] for row in rows if row["copy"]] == [training.names[i] for i in (30, 90, 150)]
    assert result["metrics"]["MS-SSIM of pairs"].keys() == {"synthetic", "reference"}
    assert all(np.isfinite(value) for row in result["metrics"].values() for value in row.values())
    assert Image.open(tmp_path / "out" / "evaluation.png").size == (1100, 1400)
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_errors_come_first_and_are_one_line(small_snapshot, tmp_path, capsys) -> None:
    save_snapshot(small_snapshot, tmp_path / "snapshot")
    np.savez(tmp_path / "few.npz", images=np.zeros((3, 240, 240), np.float32))
    command = [f"--{name}={tmp_path}" for name in ("real", "synthetic", "out")]
    assert evaluate.main([*command, f"--features={tmp_path / 'snapshot'}"]) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1] == f"error: --real {tmp_path} holds 3 slices: at least 20 are needed"
    )
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.npz").touch()
    bad = [f"--real={tmp_path / 'one'}", f"--synthetic={tmp_path / 'other'}", f"--out={tmp_path}"]
    assert evaluate.main([*bad, f"--features={tmp_path / 'snapshot'}"]) == 1
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert first.startswith(f"error: {tmp_path / 'one' / 'a.npz'} is empty, 0 bytes")
    assert second.startswith(f"{tmp_path / 'other' / 'a.npz'} is empty, 0 bytes")
    assert evaluate.main([*command, f"--features={tmp_path / 'nothing'}"]) == 1
    assert "give a snapshot folder, or a file of ResNet-50 weights" in capsys.readouterr().err
