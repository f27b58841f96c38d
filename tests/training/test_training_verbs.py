"""The verbs around training: curves of a run, reconstructions with their metrics, and the reference images."""

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from brats_ldm_client.pictures import to_display
from mri_ldm.noise import standard_normal
from support.common import run_python
from training import curves, plot, reconstruct, sample
from training.checkpoint import save_snapshot
from training.metrics import ms_ssim, reconstruction_metrics
from training.networks import build_autoencoder


@pytest.fixture(scope="module")
def snapshot_folder(small_snapshot, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verbs") / "snapshot"
    save_snapshot(small_snapshot, folder)
    return folder


@pytest.mark.parametrize("verb", ["plot", "reconstruct", "sample"])
def test_help_needs_no_large_library(verb: str) -> None:
    code = f"""import sys; from training import {verb} as verb
try: verb.main(["--help"])
finally: print({{"numpy", "torch", "monai", "matplotlib", "tensorboard"}} & set(sys.modules))"""
    result = run_python("-c", code)
    assert result.stdout.startswith(f"usage: python -m training.{verb}")
    assert result.stdout.endswith("set()\n")
    assert "--out" in result.stdout


def error_of(capsys, verb, *arguments: str) -> str:
    """The error line of a failing command; above it there is at most a progress bar."""
    assert verb.main(arguments) == 1
    text = capsys.readouterr().err
    assert "Traceback" not in text
    line = text.splitlines()[-1]
    assert line.startswith("error: ")
    return line


# --- plot


def write_events(run: Path, values: dict[str, dict[int, float]], start: int | None = None, suffix: str = "") -> None:
    """One session of a run by hand; `start` is where it says that it continues."""
    writer = EventFileWriter(str(run / "events"), filename_suffix=suffix)
    if start is not None:
        writer.add_event(Event(step=start, session_log=SessionLog(status=SessionLog.START)))
    moment = 1000.0 * (1 + len(list((run / "events").iterdir())))
    for tag, scalars in values.items():
        for step, value in scalars.items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(step=step, wall_time=moment + step, summary=summary))
    writer.close()


@pytest.mark.parametrize("start", [None, 5])
def test_a_resumed_run_has_each_step_once(tmp_path, start: int | None) -> None:
    """A zigzag in the curve: the steps between the last saved state and the cut are written twice."""
    write_events(tmp_path, {"l1": dict.fromkeys(range(9), 1.0)}, suffix=".1")
    write_events(tmp_path, {"l1": dict.fromkeys(range(5, 7), 2.0)}, start, suffix=".2")
    steps, values = curves.read_scalars(tmp_path)["l1"]
    # A session that says where it starts also takes back what came after.
    assert steps.tolist() == list(range(9 if start is None else 7))
    assert values.tolist() == [1.0] * 5 + [2.0] * 2 + [1.0] * (2 if start is None else 0)


def test_no_value_is_dropped_from_a_long_run(tmp_path) -> None:
    """TensorBoard's reader keeps a random 10,000 values of a tag unless told otherwise."""
    write_events(tmp_path, {"l1": dict.fromkeys(range(10_500), 1.0)})
    assert len(curves.read_scalars(tmp_path)["l1"][0]) == 10_500


def test_the_running_mean_is_centred() -> None:
    values = np.random.default_rng(0).normal(size=50)
    expected = [values[max(0, i - 3) : i + 4].mean() for i in range(50)]
    np.testing.assert_allclose(curves.running_mean(values, 7), expected, atol=1e-12)
    np.testing.assert_allclose(curves.running_mean(values, 1), values, atol=1e-12)


def test_panels_show_each_scalar_as_what_it_is() -> None:
    steps = np.arange(1000)
    falling, flat = 10.0 ** (-steps / 300), 1 + 0.1 * np.sin(steps)
    skipped = np.where(steps == 500, np.inf, flat)
    scalars = {"learning_rate": flat, "validation/psnr": flat, "grad_norm": skipped, "kl": flat, "l1": falling}
    first = {tag: (steps, values) for tag, values in scalars.items()}
    figure = curves.draw({"a": first, "b": {"l1": (steps, falling)}})
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == ["l1", "kl", "grad_norm", "validation/psnr", "learning_rate"]
    assert {tag: axes.get_yscale() for tag, axes in panels.items()} == dict.fromkeys(panels, "linear") | {"l1": "log"}
    assert [len(axes.lines) for axes in panels.values()] == [4, 2, 2, 1, 1]
    assert panels["validation/psnr"].lines[0].get_marker() == "o"
    faint, smooth = panels["kl"].lines
    assert faint.get_alpha() < 0.5 < smooth.get_linewidth()
    assert np.ptp(smooth.get_ydata()) < 0.5 * np.ptp(faint.get_ydata())
    assert np.isfinite(panels["grad_norm"].lines[1].get_ydata()).all()


def test_plot_writes_a_picture_for_each_run_or_one_of_all(tmp_path, capsys) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        write_events(run, {"diffusion_loss": {0: 1.0, 1: 0.5}, "learning_rate": {0: 1e-4}})
    assert plot.main([str(run) for run in runs]) == 0
    assert plot.main([*map(str, runs), "--out", str(tmp_path / "both" / "all.png")]) == 0
    pictures = [runs[0] / "curves.png", runs[1] / "curves.png", tmp_path / "both" / "all.png"]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in pictures]
    for path in pictures:
        with Image.open(path) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert sorted(tmp_path.rglob("*.*")) == sorted([*pictures, *tmp_path.glob("*/events/*")])


def test_plot_says_what_is_wrong_in_one_line(tmp_path, capsys) -> None:
    assert "holds no events" in error_of(capsys, plot, str(tmp_path))
    write_events(tmp_path, {})
    assert "no scalars yet" in error_of(capsys, plot, str(tmp_path))
    assert "at least one run" in error_of(capsys, plot)


# --- metrics


def blurred(image: np.ndarray) -> np.ndarray:
    """SSIM's Gaussian window, 11 pixels and sigma 1.5, where it fits. [H, W] to [H - 10, W - 10]."""
    window = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    views = np.lib.stride_tricks.sliding_window_view(image, (11, 11))
    return np.einsum("xyij,i,j->xy", views, window, window)


def ssim_parts(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Mean SSIM and mean contrast-structure term for a data range of 1 (Wang et al. 2004), in float64."""
    c1, c2 = 0.01**2, 0.03**2
    mu_x, mu_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mu_x**2, blurred(y * y) - mu_y**2
    structure = (2 * (blurred(x * y) - mu_x * mu_y) + c2) / (var_x + var_y + c2)
    return float(((2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1) * structure).mean()), float(structure.mean())


def ms_ssim_oracle(x: np.ndarray, y: np.ndarray) -> float:
    """Five scales, halved by means of 2 x 2 pixels (Wang et al. 2003)."""
    product = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        ssim, structure = ssim_parts(x, y)
        product *= (ssim if scale == 4 else structure) ** weight
        x, y = (image.reshape(len(image) // 2, 2, -1, 2).mean((1, 3)) for image in (x, y))
    return product


def test_metrics_are_their_formulas() -> None:
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.sin(np.arange(192) / 9), np.cos(np.arange(192) / 14)) / 4 + 0.5
    images = np.stack([smooth, smooth.T])
    noisy = images + rng.normal(size=images.shape) * np.array([0.02, 0.2]).reshape(2, 1, 1)
    tensors = [torch.from_numpy(array[:, None]).float() for array in (noisy, images)]
    measured = reconstruction_metrics(*tensors)
    assert {name: values.shape for name, values in measured.items()} == {"psnr": (2,), "ssim": (2,)}
    expected = -10 * np.log10(((noisy - images) ** 2).mean((1, 2)))
    np.testing.assert_allclose(measured["psnr"], expected, atol=1e-3)
    pairs = list(zip(noisy, images, strict=True))
    np.testing.assert_allclose(measured["ssim"], [ssim_parts(*pair)[0] for pair in pairs], atol=1e-4)
    np.testing.assert_allclose(ms_ssim(*tensors), [ms_ssim_oracle(*pair) for pair in pairs], atol=1e-4)
    assert measured["ssim"][0] > 0.8 > 0.3 > measured["ssim"][1]


def test_identical_images_have_the_best_values_and_they_are_finite() -> None:
    images = torch.rand(2, 1, 176, 176)
    measured = {**reconstruction_metrics(images, images), "ms_ssim": ms_ssim(images, images)}
    assert measured["psnr"].tolist() == [100.0, 100.0]
    torch.testing.assert_close([measured["ssim"], measured["ms_ssim"]], [torch.ones(2)] * 2)
    assert reconstruction_metrics(images, images + 0.1)["psnr"].tolist() == pytest.approx([20.0, 20.0], abs=1e-3)
    assert reconstruction_metrics(images * torch.nan, images)["psnr"].isnan().all()


# --- reconstruct


@pytest.mark.slow
def test_reconstruct_measures_what_training_sees(phantom, small_snapshot, snapshot_folder, tmp_path, capsys) -> None:
    """The whole way by hand: nibabel, the volume's own range, the posterior mean, the formula of PSNR."""
    arguments = ["--section", "training", "--volumes", "1", "--slices_per_volume", "2", "--out", str(tmp_path)]
    assert reconstruct.main(["--snapshot", str(snapshot_folder), "--data", str(phantom), *arguments]) == 0
    record = json.loads((tmp_path / "reconstruction.json").read_text())
    rows = record["slices"]
    assert [row["slice"] for row in rows] == [25, 75]

    path = phantom / "Task01_BrainTumour" / "imagesTr" / f"{rows[0]['volume']}.nii.gz"
    flair = nib.load(path).get_fdata(dtype=np.float32)[..., 0][:, :, 27:127]
    images = ((flair - flair.min()) / (flair.max() - flair.min()))[:, :, [25, 75]].transpose(2, 0, 1)
    autoencoder = build_autoencoder(small_snapshot.config.autoencoder).eval()
    autoencoder.load_state_dict(small_snapshot.autoencoder)
    with torch.no_grad():
        mean = autoencoder.encode(torch.from_numpy(images[:, None]))[0]
        output = autoencoder.decode(mean)[:, 0].numpy()
    psnr = -10 * np.log10(((output - images) ** 2).mean((1, 2)))
    assert [row["psnr"] for row in rows] == pytest.approx(psnr.tolist(), abs=1e-3)
    assert record["metrics"]["psnr"]["mean"] == pytest.approx(psnr.mean(), abs=1e-3)
    assert record["metrics"]["psnr"]["std"] == pytest.approx(psnr.std(), abs=1e-3)
    recorded = json.loads((snapshot_folder / "snapshot.json").read_text())["sha256"]
    assert record["autoencoder_sha256"] == recorded["autoencoder.safetensors"]

    sheet = np.asarray(Image.open(tmp_path / "reconstruction.png"))
    column = [images[0], output[0], 5 * np.abs(output[0] - images[0])]
    for top, expected in zip((4, 268, 532), column, strict=True):
        shown = sheet[top : top + 240, 4:244].astype(int)
        assert np.abs(shown - to_display(expected)).max() <= 1  # float32 in another order may round the other way
    assert "2 slices of 1 training volumes" in capsys.readouterr().out


@pytest.mark.slow
def test_reconstruct_says_what_is_wrong_in_one_line(phantom, snapshot_folder, tmp_path, capsys) -> None:
    given = ("--snapshot", str(snapshot_folder), "--data", str(phantom), "--out", str(tmp_path / "out"))
    error = partial(error_of, capsys, reconstruct, *given)
    assert "has no validation volumes" in error()
    assert "has 100 slices" in error("--section", "training", "--slices-per-volume", "101")
    assert "slices-per-volume 1 or more" in error("--slices-per-volume", "0")
    assert "dataset.json does not exist" in error("--data", str(tmp_path))
    assert "snapshot.json does not exist" in error("--snapshot", str(tmp_path))
    with pytest.raises(ValueError, match="psnr is not finite: the weights"):
        reconstruct.summary([reconstruct.Slice("BRATS_001", 0, float("nan"), 0.5, 0.5)])


# --- sample


@pytest.mark.parametrize("seed", [0, 1, 42, -1, 2**63 - 1, -(2**63)])
def test_start_noise_is_the_servers_bit_by_bit(seed: int) -> None:
    ours = sample.start_noise(seed)
    assert ours.dtype == np.float32
    assert np.array_equal(ours, standard_normal(seed, 0))


@pytest.mark.slow
def test_sampled_images_are_the_served_ones(client, snapshot_folder, tmp_path) -> None:
    """The same numbers, from two frameworks and two programs; the batch of two splits three seeds."""
    out, seeds = tmp_path / "out", [5, 0, -3]
    arguments = ["--snapshot", str(snapshot_folder), "--out", str(out), "--steps", "12", "--batch", "2"]
    assert sample.main([*arguments, "--seeds", *map(str, seeds)]) == 0
    served = client.generate(seeds=seeds, steps=12, return_latents=True)
    archive = np.load(out / "images.npz")
    assert archive["seeds"].tolist() == seeds
    assert (archive["images"].dtype, archive["images"].shape) == (np.float32, (3, 240, 240))
    # fp32 in two runtimes, on latents of unit order and images up to 4; about 1e-5 is what is found.
    np.testing.assert_allclose(archive["latents"].reshape(served.latents.shape), served.latents, rtol=0, atol=1e-4)
    np.testing.assert_allclose(archive["images"], served.images, rtol=0, atol=1e-4)

    document = json.loads((out / "provenance.json").read_text())
    assert document["synthetic"] is True
    recorded = json.loads((snapshot_folder / "snapshot.json").read_text())["sha256"]
    for entry, seed, image in zip(document["images"], seeds, archive["images"], strict=True):
        assert (entry["seed"], entry["sampler"], entry["steps"], entry["eta"]) == (seed, "ddim", 12, 0.0)
        assert entry["weights_sha256"] == recorded
        assert entry["sha256"] == hashlib.sha256((out / entry["file"]).read_bytes()).hexdigest()
        with Image.open(out / entry["file"]) as png:
            assert "SYNTHETIC" in png.text["Description"]
            assert np.array_equal(np.asarray(png), to_display(image))  # the client's orientation and window
    named = {entry["file"] for entry in document["images"]}
    assert {path.name for path in out.iterdir()} == named | {"contact_sheet.png", "images.npz", "provenance.json"}


def test_a_seeds_image_does_not_depend_on_its_batch(small_snapshot) -> None:
    images, latents = sample.generate(small_snapshot, [1, 2, 3], steps=2, batch=3)
    alone, alone_latents = sample.generate(small_snapshot, [3], steps=2, batch=1)
    # torch chooses its kernels by batch size, so not bit by bit.
    np.testing.assert_allclose(latents[2], alone_latents[0], atol=1e-5)
    np.testing.assert_allclose(images[2], alone[0], atol=1e-4)
    assert np.abs(images[2] - images[0]).max() > 0.01


def test_sample_says_what_is_wrong_in_one_line(small_snapshot, snapshot_folder, tmp_path, capsys) -> None:
    stage1, used = tmp_path / "stage1", tmp_path / "used"
    save_snapshot(replace(small_snapshot, unet=None, scale_factor=None), stage1)
    used.mkdir()
    (used / "provenance.json").write_text("{}")
    error = partial(error_of, capsys, sample, "--snapshot", str(snapshot_folder), "--out", str(tmp_path / "out"))
    assert "training.train_diffusion" in error("--snapshot", str(stage1))
    assert "another --out" in error("--out", str(used))
    assert "--steps must lie in 1..1000" in error("--steps", "0")
    assert "given twice" in error("--seeds", "4", "4")
    assert "either --seeds or -n" in error("--seeds", "4", "-n", "2")
    assert "-n is 0" in error("-n", "0")
    assert "64 bits" in error("--seed", str(2**63))
