"""Quality against steps: the whole benchmark in small, and its figures against independent computations."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm

from benchmarks.harness.engine import Engine
from benchmarks.harness.markdown import BEGIN, END, filled
from benchmarks.quality.__main__ import main
from benchmarks.quality.distances import change, compare, distance, jackknife
from benchmarks.quality.features import Measured, Measurer, measure_all
from benchmarks.quality.latents import CHUNK, FIRST_SEED, latents_file, load
from benchmarks.quality.settings import Setting, full, presets, quick
from benchmarks.serving import names
from benchmarks.serving.presets_chart import draw
from benchmarks.tables.quality import presets as presets_table
from benchmarks.tables.quality import sweep
from brats_ldm_client import PRESETS
from mri_ldm.request import RowParameters
from support.common import ROOT, run_python
from training.checkpoint import save_snapshot

pytestmark = pytest.mark.slow

DESIGN = quick().served(aligned=False, tiny=True)
TINY, FEW, BASELINE = DESIGN.presets
SWEPT = DESIGN.sweep[0]


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
    """The command on tiny networks; the latents are made on its first call."""
    folder = tmp_path_factory.mktemp("quality")
    save_snapshot(small_snapshot, folder / "snapshot")
    (folder / "real").mkdir()
    np.savez(folder / "real" / "slices.npz", images=np.random.default_rng(0).random((20, 240, 240), np.float32))
    fixed = {"repository": small_repository, "real": folder / "real", "features": folder / "snapshot"}

    def call(*arguments: str, **folders: Path) -> Path:
        folders = {"latents": folder / "latents", "out": folder / "out"} | fixed | folders
        options = [text for name, path in folders.items() for text in (f"--{name}", str(path))]
        assert main(["--quick", "--rounds", "2", *options, *arguments]) == 0
        return folders["out"]

    call("--generate")
    call.folder, call.fixed = folder, fixed
    return call


@pytest.fixture
def record(run) -> dict:
    return json.loads((run.folder / "out" / "quality.json").read_text())


def measure(run, folder: Path) -> Measured:
    return measure_all(Measurer(folder, run.fixed["repository"], run.fixed["features"]), folder, DESIGN)


def test_every_setting_is_measured_timed_and_shown(run, record) -> None:
    found = record["distance"]
    assert [each["setting"] for each in found["presets"]] == [one.name for one in (*DESIGN.presets, DESIGN.reference)]
    assert [each["images"] for each in found["presets"]] == [24] * 4
    assert [each["setting"] for each in found["sweep"]] == [setting.name for setting in DESIGN.sweep]
    assert {each["images"] for each in found["sweep"]} == {8}
    assert found["reference"]["beside"]["steps"] == DESIGN.whole.steps
    assert found["real"]["slices"] == 20
    assert found["machine"]["load"]
    timed = record["time"]["presets"]
    assert {name: timed[name]["n"] for name in timed} == {name: 2 for name in PRESETS if name != "reference"}
    assert timed["standard"]["faster_than_baseline"]["median"] == 1
    assert record["time"]["digest"] == found["digest"]
    out = run.folder / "out"
    assert all(f"| {setting.title} | " in (out / "quality.md").read_text() for setting in DESIGN.presets)
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in ("quality.png", "quality-slices.png"))


def test_pairs_are_of_the_same_seed_and_measured_right(run, record) -> None:
    """PSNR of the second chunk, from images that the engine makes of the seeds by all settings in one call."""
    settings = (FEW, TINY, DESIGN.reference)
    rows = [
        RowParameters(seed, how.steps, how.sampler, 0.0, timestep_grid=how.timestep_grid, decoder=how.decoder)
        for how in settings
        for seed in range(FIRST_SEED + CHUNK, FIRST_SEED + 2 * CHUNK)
    ]
    few, tiny, reference = np.split(Engine(run.fixed["repository"]).generate(rows)[1], 3)
    measured = measure(run, run.folder / "latents").presets
    for setting, images in ((FEW, few), (TINY, tiny)):
        psnr = -10 * np.log10(((images - reference) ** 2).mean((1, 2, 3), dtype=np.float64))
        np.testing.assert_allclose(measured[setting]["psnr"][CHUNK : 2 * CHUNK], psnr, atol=1e-3)
    paired = {each["setting"]: each["paired"] for each in record["distance"]["presets"]}
    assert paired[FEW.name]["psnr_mean"] == pytest.approx(measured[FEW]["psnr"].mean())
    assert paired[FEW.name]["psnr_min"] == pytest.approx(measured[FEW]["psnr"].min())
    assert paired[DESIGN.reference.name] is None


def test_what_is_there_is_not_made_again_and_what_is_not_is_made(run, record, tmp_path) -> None:
    latents = run.folder / "latents"
    lost = latents_file(latents, FEW, CHUNK)
    kept = {path: path.stat().st_mtime_ns for path in latents.rglob("*.npz") if path != lost}
    before = np.load(lost)["latents"]
    lost.unlink()
    run("--generate", "--only", "distance", out=tmp_path)
    assert np.array_equal(np.load(lost)["latents"], before)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # the chunk's figures too: its latents are the same
    again = json.loads((tmp_path / "quality.json").read_text())["distance"]
    assert [again["presets"], again["sweep"]] == [record["distance"]["presets"], record["distance"]["sweep"]]


def test_only_seeds_that_are_compared_alike_count(run, tmp_path) -> None:
    """A preset without a chunk takes it from all presets, the reference's own are fewer; changed latents count anew."""
    latents = tmp_path / "latents"
    shutil.copytree(run.folder / "latents", latents)
    latents_file(latents, FEW, CHUNK).unlink()
    latents_file(latents, DESIGN.reference, 2 * CHUNK).unlink()
    changed = latents_file(latents, SWEPT, 0)
    old = dict(np.load(changed))
    np.savez(changed, **old | {"latents": old["latents"] * 1.1})
    before, after = measure(run, run.folder / "latents"), measure(run, latents)
    seeds = {setting: after.features[setting]["image"].tolist() for setting in after.features}
    assert seeds == {
        **{setting: [*range(8), *range(16, 24)] for setting in DESIGN.presets},
        DESIGN.reference: list(range(8)),
    }
    assert len(after.presets[BASELINE]["psnr"]) == 8
    assert np.array_equal(after.presets[BASELINE]["psnr"], before.presets[BASELINE]["psnr"][:8])
    assert (after.sweep[SWEPT]["psnr"] != before.sweep[SWEPT]["psnr"]).all()


def test_other_weights_and_too_few_latents_are_told(run, tmp_path, capsys) -> None:
    with pytest.raises(ValueError, match=r"made by the weights sha256:\w+, not by sha256:0: give another --latents"):
        load(run.folder / "latents", FEW, 0, "sha256:0")
    options = [f"--{name}={path}" for name, path in run.fixed.items()]
    status = main(["--quick", "--latents", str(tmp_path), "--out", str(tmp_path), "--only", "distance", *options])
    assert status == 1
    assert "latents of 0 images by ddim-8-leading: at least 20 are needed; --generate makes" in capsys.readouterr().err


def test_what_a_repository_lacks_is_left_out() -> None:
    whole = full()
    less = whole.served(aligned=False, tiny=False)
    assert {setting.timestep_grid for setting in whole.sweep} - {setting.timestep_grid for setting in less.sweep} == {
        "aligned"
    }
    assert {setting.decoder for setting in less.presets} == {"full"}
    assert less.baseline in less.presets
    assert whole.served(aligned=True, tiny=True) == whole


def test_a_trajectory_is_made_once_for_both_decoders_and_all_tables() -> None:
    design = full()
    counts = design.counts()
    assert all(setting.decoder == "full" for setting in counts)
    assert counts[replace(presets()["draft"], decoder="full")] == design.images
    assert counts[design.baseline] == design.images
    assert counts[Setting("ddim", 4)] == design.sweep_images
    assert counts[design.reference] == design.reference_images


# --- its parts


def test_distances_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((40, 5)), rng.standard_normal((40, 5)) * 1.3 + 0.2
    found = distance(one, other)
    assert found["frechet"] == pytest.approx(frechet(one, other), rel=1e-6)
    assert found["kid"] == pytest.approx(kernel(one, other), rel=1e-6)


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


def test_the_best_of_as_many_steps_is_found_and_the_others_are_behind_it() -> None:
    rng = np.random.default_rng(4)
    settings = [Setting("ddim", 4), Setting("unipc", 4), Setting("dpmpp_2m", 4), Setting("ddim", 6)]
    psnr = rng.normal(30, 3, 16)
    noise = rng.normal(0, 0.1, 16)
    values = [psnr - 5 + noise, psnr, psnr - 0.01 + noise - noise.mean(), psnr + 9]
    figures = {one: {"psnr": value, "ssim": value / 100} for one, value in zip(settings, values, strict=True)}

    def features(count: int) -> dict[str, np.ndarray]:
        return {"features": rng.random((count, 3)), "image": np.arange(count)}

    sampled = {setting: features(24) for setting in (*DESIGN.presets, DESIGN.reference)}
    paired = dict.fromkeys(DESIGN.presets, figures[settings[0]])
    found = compare(Measured(sampled, paired, figures, {}), DESIGN, None)
    behind = {one["setting"]: (one["behind"], one["behind_error"]) for one in found["sweep"]}
    assert behind["unipc-4-leading"] == (0, 0)
    assert behind["ddim-4-leading"] == pytest.approx(((5 - noise).mean(), noise.std(ddof=1) / 4))
    assert behind["ddim-6-leading"] == (0, 0)  # alone with its steps
    assert found["real"] is None
    machine = {"date": "2026-01-01 00:00", "cores": 2, "processor": "a CPU", "load": [0.0]}
    lines = "\n".join(sweep(found | {"machine": machine}))
    assert f"| UniPC | `leading` | **{psnr.mean():.1f}** |  |" in lines
    assert f"| DPM-Solver++(2M) | `leading` | **{psnr.mean() - 0.01:.1f}** |  |" in lines  # within its error
    assert f"| DDIM | `leading` | {values[0].mean():.1f} | **{values[3].mean():.1f}** |" in lines


def test_a_preset_is_compared_with_the_images_of_its_seeds() -> None:
    """The reference has fewer images, and not the first ones: each is found by its seed."""
    rng = np.random.default_rng(5)
    own, real = rng.random((40, 3)), rng.random((50, 3))
    baseline = own + 0.1
    few = {"features": own[20:] + 0.2, "image": np.arange(20, 40)}
    sampled = {setting: {"features": own, "image": np.arange(40)} for setting in DESIGN.presets}
    sampled |= {BASELINE: {"features": baseline, "image": np.arange(40)}, DESIGN.reference: few}
    pairs = {"psnr": rng.random(20), "ssim": rng.random(20)}
    found = compare(Measured(sampled, dict.fromkeys(DESIGN.presets, pairs), {}, {}), DESIGN, real)["presets"]
    by_name = {one["setting"]: one for one in found}
    mine, last = by_name[FEW.name], by_name[DESIGN.reference.name]
    assert mine["paired"]["frechet"] == pytest.approx(frechet(own[20:] + 0.2, own[20:]), rel=1e-6)
    assert mine["to_real"]["frechet_change"] == pytest.approx(frechet(real, own) - frechet(real, baseline), rel=1e-6)
    expected = frechet(real, own[20:] + 0.2) - frechet(real, baseline[20:])
    assert last["to_real"]["frechet_change"] == pytest.approx(expected, rel=1e-6)
    assert (last["images"], last["paired"]) == (20, None)


# --- what is recorded, and what is said of it


def test_the_table_goes_between_its_marks(record) -> None:
    text = f"before\n{BEGIN}quality -->\nold\n{END}\nafter\n"
    for _ in range(2):
        text = filled(text, "docs/quality.md", {"quality": lambda: presets_table(record)})
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert text.count(f"| {FEW.title} | ") == 1
    with pytest.raises(ValueError, match="needs a line"):
        filled(text.replace(END, ""), "docs/quality.md", {"quality": lambda: presets_table(record)})


def test_the_page_shows_the_recorded_run_of_these_weights_and_all_presets() -> None:
    recorded = json.loads((ROOT / "benchmarks" / "quality.json").read_text())
    page = (ROOT / "docs" / "quality.md").read_text()
    assert "\n".join(presets_table(recorded)) in page
    assert "\n".join(sweep(recorded["distance"])) in page
    digest = json.loads((ROOT / "model_repository" / "mri_ldm" / "1" / "model.json").read_text())["digest"]
    assert {part["digest"] for part in recorded.values()} == {digest}
    measured = {one["setting"] for one in recorded["distance"]["presets"]}
    for name, setting in presets().items():
        assert f"| `{name}` |" in page
        assert name == "reference" or setting.name in measured, f"measure {name} again: it has changed"
    assert set(recorded["time"]["presets"]) == set(PRESETS)


def test_the_chart_shows_what_was_measured(record, tmp_path) -> None:
    """Also without OpenVINO, and without a preset that the server does not take."""

    def times(seconds: float) -> dict:
        return {
            "median": seconds,
            "min": seconds,
            "max": seconds * 1.1,
            "faster_than_baseline": {"median": 6 / seconds},
        }

    def contestants(*servers: str) -> dict:
        ours = {names.by_preset(server, name): times(2) for server in servers for name in ("standard", "fast")}
        return {"contestants": {names.BASELINE: times(6)} | ours}

    quality = record["distance"]
    draw(contestants(names.OURS), quality, tmp_path / "one.png")
    draw(contestants(names.OURS, names.IN_BF16), quality, tmp_path / "two.png")
    one, two = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert one[:4] == two[:4] == b"\x89PNG"
    assert one != two


def test_help_is_quick() -> None:
    done = run_python("-X", "importtime", "-m", "benchmarks.quality", "--help")
    assert "--generate" in done.stdout
    assert not {"torch", "onnxruntime", "numpy"} & {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
