"""The shipped weights through the shipped demo: real slices on disk, as the README promises."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from benchmarks.harness.engine import Engine
from brats_ldm_client.labels import read_library
from export.onnx.run import cpu_session
from mri_ldm.conditioning import CONDITION_SHAPE
from mri_ldm.noise import standard_normal
from mri_ldm.request import RowParameters
from mri_ldm.samplers import NoiseSchedule, advance, sampler_table
from support.common import ROOT, run_python
from training.files import sha256

pytestmark = pytest.mark.slow

REPOSITORY = ROOT / "model_repository"


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """What `make demo` leaves behind."""
    folder = tmp_path_factory.mktemp("demo")
    result = run_python("-m", "examples.demo", "--out", str(folder), timeout=300)
    assert result.returncode == 0, result.stderr
    assert str(folder) in result.stdout
    return folder


def images(folder: Path) -> np.ndarray:
    """The slices [8, 240, 240] by ascending seed."""
    return np.stack([nib.load(path).get_fdata(dtype=np.float32)[..., 0] for path in sorted(folder.glob("*.nii.gz"))])


def test_everything_is_there(out: Path) -> None:
    assert len(list(out.glob("slice_seed*.png"))) == len(list(out.glob("slice_seed*.nii.gz"))) == 8
    record = json.loads((out / "provenance.json").read_text())
    assert record["synthetic"] is True
    assert len(record["images"]) == 24
    assert all(sha256(out / image["file"]) == image["sha256"] for image in record["images"])
    assert all(image["model_name"] == "brats_phantom_demo" for image in record["images"])
    sheet = Image.open(out / "contact_sheet.png")
    assert min(sheet.size) > 240


def test_slices_are_the_recurrence_over_the_shipped_graphs(out: Path) -> None:
    """An in-process loop over the same ONNX files, from the same seed: what the server adds must be nothing."""
    schedule = NoiseSchedule(**json.loads((REPOSITORY / "mri_ldm/1/model.json").read_text())["noise_schedule"])
    table = sampler_table(schedule, "ddim", 50, 0.0)
    unet, decoder = (cpu_session(REPOSITORY / name / "1/model.onnx", threads=2) for name in ("unet", "vae_decoder"))
    x = standard_normal(0, 0)[None]
    h = none = np.zeros_like(x)
    unlabelled = np.zeros((1, *CONDITION_SHAPE), np.float32)
    for i, t in enumerate(table.timesteps):
        eps = unet.run(None, {"latent": x, "condition": unlabelled, "timesteps": np.array([[t]], np.int32)})[0]
        x, h, _ = advance(table.coefficients[i : i + 1], x, eps, h, none, none)
    expected = decoder.run(None, {"latent": x})[0][0, 0, 8:248, 8:248]
    # The server may run another number of threads, which may change the order of sums.
    np.testing.assert_allclose(images(out)[0], expected, atol=1e-4)


def test_slices_look_like_brains(out: Path) -> None:
    """No judgement of quality: dark corners, a bright centre of brain size, contrast inside, eight different ones."""
    slices = images(out)
    corners = np.concatenate([slices[:, :25, :25], slices[:, -25:, :25], slices[:, :25, -25:], slices[:, -25:, -25:]])
    assert np.abs(corners).mean() < 0.03
    areas = (slices > 0.25).sum((1, 2))  # mm2; an axial slice of a brain has up to about 20,000
    assert ((areas > 1500) & (areas < 28_000)).all(), areas
    assert np.median(areas) > 8000
    inside = [image[image > 0.25].std() for image in slices]
    assert min(inside) > 0.03
    distances = [np.abs(a - b).mean() for i, a in enumerate(slices) for b in slices[:i]]
    assert min(distances) > 0.02


def test_the_record_of_the_weights_is_true() -> None:
    manifest = json.loads((REPOSITORY / "manifest.json").read_text())
    for name, digest in manifest["sha256"].items():
        assert sha256(REPOSITORY / name) == digest, name
    history = manifest["training"]["history"]
    assert history["autoencoder"]["iterations"] > 0
    assert history["diffusion"]["smoothed_losses"]["diffusion_loss"] < 0.5


def test_oedema_is_bright_where_the_map_has_it() -> None:
    """In the shipped weights, with shipped maps; beside the same seeds without a map."""
    library, engine = read_library(ROOT / "examples" / "label-maps.npz"), Engine(REPOSITORY)
    largest = np.argsort(-(library.labels == 1).sum((1, 2)))[:4]
    fast = {"steps": 10, "sampler": "dpmpp_2m", "eta": 0.0}
    with_maps = [RowParameters(seed, **fast, labels=library.labels[i][None]) for seed, i in enumerate(largest)]
    without = [RowParameters(seed, **fast) for seed in range(len(largest))]
    brighter = []
    for rows in (with_maps, without):
        pictures = engine.generate(rows)[1][:, 0]
        brighter.append(
            [float(picture[library.labels[i] == 1].mean()) for picture, i in zip(pictures, largest, strict=True)]
        )
    assert np.mean(np.subtract(*brighter)) > 0.15, brighter


def test_the_picture_of_lesions_is_made(tmp_path: Path) -> None:
    out = tmp_path / "lesions.png"
    result = run_python("-m", "examples.lesions", "--maps", "1", "--seed", "3", "--out", str(out), timeout=300)
    assert result.returncode == 0, result.stderr
    assert f"seed 3 with 1 label maps: {out}" in result.stdout
    assert Image.open(out).size[1] > 2 * 240
