"""Quality against steps: the whole benchmark in small, and its figures against independent computations."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm

from benchmarks.harness.engine import Engine
from benchmarks.harness.markdown import BEGIN, END, filled
from benchmarks.quality.__main__ import main
from benchmarks.quality.distances import change, compare, crossed, distance, jackknife
from benchmarks.quality.features import Measurer, measure_all
from benchmarks.quality.latents import CHUNK, FIRST_SEED, latents_file, load
from benchmarks.quality.settings import FULL, QUICK
from benchmarks.tables.quality import lines
from brats_ldm_client import PRESETS
from support.common import ROOT, run_python
from training.checkpoint import save_snapshot

pytestmark = pytest.mark.slow

FEW = QUICK.fewer[0]


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Of two normal distributions (Dowson and Landau 1982)."""
    covariances = [np.cov(part, rowvar=False) for part in (one, other)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    return float(((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


def kernel(one: np.ndarray, other: np.ndarray) -> float:
    """The unbiased estimate of Binkowski et al. (2018), equation 4, with their kernel."""

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        values = (a @ b.T / a.shape[1] + 1) ** 3
        return float(values.mean() if a is not b else values[~np.eye(len(a), dtype=bool)].mean())

    return mean(one, one) + mean(other, other) - 2 * mean(one, other)


# --- the whole


@pytest.fixture(scope="module")
def run(small_snapshot, small_repository, tmp_path_factory):
    """The command on tiny networks; the latents of 24 images are made on its first call."""
    folder = tmp_path_factory.mktemp("quality")
    save_snapshot(small_snapshot, folder / "snapshot")
    (folder / "real").mkdir()
    np.savez(folder / "real" / "slices.npz", images=np.random.default_rng(0).random((20, 240, 240), np.float32))
    fixed = {"repository": small_repository, "real": folder / "real", "features": folder / "snapshot"}

    def call(*arguments: str, **folders: Path) -> Path:
        folders = {"latents": folder / "latents", "out": folder / "out"} | fixed | folders
        options = [text for name, path in folders.items() for text in (f"--{name}", str(path))]
        assert main(["--quick", "--images", "24", "--rounds", "2", *options, *arguments]) == 0
        return folders["out"]

    call("--generate")
    call.folder, call.fixed = folder, fixed
    return call


@pytest.fixture
def record(run) -> dict:
    return json.loads((run.folder / "out" / "quality.json").read_text())


def test_every_setting_is_measured_timed_and_shown(run, record) -> None:
    names = [setting.name for setting in QUICK.all]
    assert [each["setting"] for each in record["distance"]["settings"]] == names
    assert {each["images"] for each in record["distance"]["settings"]} == {24}
    assert list(record["time"]["settings"]) == names
    assert [record["time"]["settings"][name]["n"] for name in names] == [2, 2, 2, 1, 1]
    assert record["time"]["settings"][QUICK.baseline.name]["faster_than_baseline"]["median"] == 1
    assert record["time"]["digest"] == record["distance"]["digest"]
    assert record["distance"]["machine"]["load"]
    assert record["distance"]["real"]["slices"] == 20
    out = run.folder / "out"
    assert all(f"| {setting.title} | " in (out / "quality.md").read_text() for setting in QUICK.all)
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in ("quality.png", "quality-slices.png"))


def test_pairs_are_of_the_same_seed_and_measured_right(run, record) -> None:
    """PSNR of the second chunk, from images that the engine makes of the seeds by both settings in one call."""
    from mri_ldm.request import RowParameters

    seeds = [FIRST_SEED + CHUNK + number for number in range(CHUNK)]
    rows = [RowParameters(seed, how.steps, how.sampler, 0.0) for how in (FEW, QUICK.reference) for seed in seeds]
    few, reference = np.split(Engine(run.fixed["repository"]).generate(rows)[1], 2)
    psnr = -10 * np.log10(((few - reference) ** 2).mean((1, 2, 3), dtype=np.float64))
    measurer = Measurer(run.folder / "latents", run.fixed["repository"], run.fixed["features"], QUICK)
    every = measure_all(measurer, run.folder / "latents", QUICK, 24)[FEW]
    np.testing.assert_allclose(every["psnr"][CHUNK : 2 * CHUNK], psnr, atol=1e-3)
    assert every["image"].tolist() == list(range(24))
    paired = record["distance"]["settings"][0]["paired"]
    assert paired["psnr_mean"] == pytest.approx(every["psnr"].mean())
    assert paired["psnr_min"] == pytest.approx(every["psnr"].min())
    assert record["distance"]["settings"][-1]["paired"] is None  # the ancestral sampler makes other images


def test_what_is_there_is_not_made_again_and_what_is_not_is_made(run, record, tmp_path) -> None:
    latents = run.folder / "latents"
    lost = latents_file(latents, FEW, CHUNK)
    kept = {path: path.stat().st_mtime_ns for path in latents.rglob("*.npz") if path != lost}
    before = np.load(lost)["latents"]
    lost.unlink()
    run("--generate", "--only", "distance", out=tmp_path)
    assert np.array_equal(np.load(lost)["latents"], before)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # the chunk's figures too: its latents are the same
    assert json.loads((tmp_path / "quality.json").read_text())["distance"]["settings"] == record["distance"]["settings"]


def test_whole_chunks_that_all_paired_settings_have_count(run, tmp_path) -> None:
    """The ancestral sampler has its own number; and latents that have changed are measured anew."""
    latents = tmp_path / "latents"
    shutil.copytree(run.folder / "latents", latents)
    latents_file(latents, QUICK.fewer[1], CHUNK).unlink()
    latents_file(latents, QUICK.ancestral, 2 * CHUNK).unlink()
    changed = latents_file(latents, FEW, 0)
    old = dict(np.load(changed))
    np.savez(changed, **old | {"latents": old["latents"] * 1.1})
    before, after = (
        measure_all(Measurer(folder, run.fixed["repository"], run.fixed["features"], QUICK), folder, QUICK, 24)
        for folder in (run.folder / "latents", latents)
    )
    assert {setting: len(after[setting]["image"]) for setting in after} == {
        **dict.fromkeys(QUICK.paired, 16),
        QUICK.ancestral: 8,
    }
    assert after[FEW]["image"].tolist() == [*range(8), *range(16, 24)]
    assert (before[FEW]["psnr"][:8] != after[FEW]["psnr"][:8]).all()
    assert np.array_equal(before[FEW]["psnr"][16:], after[FEW]["psnr"][8:])


def test_other_weights_and_too_few_latents_are_told(run, tmp_path, capsys) -> None:
    with pytest.raises(ValueError, match=r"made by the weights sha256:\w+, not by sha256:0: give another --latents"):
        load(run.folder / "latents", FEW, 0, "sha256:0")
    options = [f"--{name}={path}" for name, path in run.fixed.items()]
    status = main(["--quick", "--latents", str(tmp_path), "--out", str(tmp_path), "--only", "distance", *options])
    assert status == 1
    assert "latents of 0 images: at least 20 are needed; --generate makes" in capsys.readouterr().err


# --- its parts


def test_distances_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((40, 5)), rng.standard_normal((40, 5)) * 1.3 + 0.2
    found = distance(one, other)
    assert found["frechet"] == pytest.approx(frechet(one, other), rel=1e-6)
    assert found["kid"] == pytest.approx(kernel(one, other), rel=1e-6)
    halves = (one[:20], other[20:]), (one[20:], other[:20])
    assert crossed(one, other)["frechet"] == pytest.approx(np.mean([frechet(*half) for half in halves]), rel=1e-6)


def test_the_jackknife_gives_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(2).standard_normal(30)
    without = [float(np.delete(values, index).mean()) for index in range(30)]
    assert jackknife(without) == pytest.approx(values.std(ddof=1) / np.sqrt(30))


def test_a_shift_shows_beyond_its_error_and_a_copy_does_not() -> None:
    rng = np.random.default_rng(3)
    real, own = rng.standard_normal((200, 4)), rng.standard_normal((80, 4))
    shifted = change(real, own + 1, own)
    assert shifted["frechet_change"] > 5 * shifted["frechet_change_error"] > 0
    assert shifted["frechet_change"] == pytest.approx(frechet(real, own + 1) - frechet(real, own), rel=1e-6)
    assert change(real, own, own)["frechet_change"] == 0


def test_settings_with_too_few_images_are_left_out() -> None:
    rng = np.random.default_rng(4)

    def figures(count: int) -> dict[str, np.ndarray]:
        one = rng.random(count)
        return {"features": rng.random((count, 3)), "psnr": one, "ssim": one, "image": np.arange(count)}

    measured = {setting: figures(24) for setting in QUICK.paired} | {QUICK.ancestral: figures(16)}
    found = compare(measured, QUICK, None)
    assert [each["setting"] for each in found["settings"]] == [setting.name for setting in QUICK.paired]
    assert found["real"] is None


# --- what is recorded, and what is said of it


def test_the_table_goes_between_its_marks(record) -> None:
    text = f"before\n{BEGIN}quality -->\nold\n{END}\nafter\n"
    for _ in range(2):
        text = filled(text, "docs/quality.md", {"quality": lambda: lines(record)})
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert text.count("| DDIM 2 | ") == 2
    with pytest.raises(ValueError, match="needs a line"):
        filled(text.replace(END, ""), "docs/quality.md", {"quality": lambda: lines(record)})


def test_the_page_shows_the_recorded_run_of_these_weights_and_all_presets() -> None:
    recorded = json.loads((ROOT / "benchmarks" / "quality.json").read_text())
    page = (ROOT / "docs" / "quality.md").read_text()
    assert "\n".join(lines(recorded)) in page
    digest = json.loads((ROOT / "model_repository" / "mri_ldm" / "1" / "model.json").read_text())["digest"]
    assert {part["digest"] for part in recorded.values()} == {digest}
    assert all(f"`{name}`" in page for name in PRESETS)
    assert {tuple(asdict(preset).values()) for preset in PRESETS.values()} <= {(s.sampler, s.steps) for s in FULL.all}


def test_help_is_quick() -> None:
    done = run_python("-X", "importtime", "-m", "benchmarks.quality", "--help")
    assert "--generate" in done.stdout
    assert not {"torch", "onnxruntime", "numpy"} & {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
