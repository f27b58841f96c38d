"""What other libraries read from the shards of a real server: its images, and that they are synthetic."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import webdataset
import zarr
from PIL import Image

from brats_ldm_client import Client
from brats_ldm_client._cli import main
from brats_ldm_client.bulk import FORMATS
from brats_ldm_client.pictures import NOTICE, SOURCE_TYPE
from server.process import TritonServer
from support.bulk import arguments
from support.common import ROOT, with_tools

pytestmark = pytest.mark.slow
BASE, COUNT, SIZE, STEPS = 7, 5, 3, 2


@dataclass(frozen=True)
class Made:
    folder: Path
    images: npt.NDArray[np.float32]
    digest: str

    def levels(self, largest: int) -> npt.NDArray[np.int64]:
        """The images as grey levels, by the formula of docs/formats.md."""
        return np.rint(np.clip(self.images, 0, 1) * np.float32(largest)).astype(np.int64)

    def files(self, format: str, ending: str) -> list[Path]:
        """In the order of the seeds."""
        return sorted(self.folder.glob(f"shard-*-{format}/*{ending}"))


@pytest.fixture(scope="module")
def made(small_server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("bulk") / "out"
    options = ("--count", COUNT, "--seed-base", BASE, "--shard-size", SIZE, "--steps", STEPS)
    assert main(arguments(folder, small_server.grpc_url, *options, "--format", ",".join(FORMATS))) == 0
    with Client(small_server.grpc_url) as client:
        generation = client.generate(COUNT, seed=BASE, steps=STEPS)
        digest = client.info().model_digest
    assert digest
    return Made(folder, generation.images, digest)


BLOCK = re.compile(r"```(python|bash)\n(.*?)```", re.DOTALL)
BLOCKS = [
    (kind, code)
    for page in ("bulk.md", "scale.md", "verify.md")
    for kind, code in BLOCK.findall((ROOT / "docs" / page).read_text())
]


@pytest.mark.parametrize(("kind", "code"), BLOCKS, ids=lambda text: text.split("\n")[0])
def test_the_code_of_the_pages(made: Made, small_server: TritonServer, tmp_path: Path, kind: str, code: str) -> None:
    """It runs beside the folder, and prints no fault."""
    (tmp_path / "dataset").symlink_to(made.folder)
    code = code.replace("127.0.0.1:8001", small_server.grpc_url).replace('preset="fast"', "steps=1")
    words = [sys.executable, "-c", code] if kind == "python" else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(
        words, cwd=tmp_path, env=with_tools(), capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or [*tmp_path.glob("*/summary.html")]
    assert not re.search("fault|FAILED|seed ", done.stdout)


def upright(picture: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Rows from anterior to posterior as [x to the right, y to anterior]."""
    return picture[::-1, ::-1].T.astype(np.int64)


def test_hdf5(made: Made) -> None:
    shards = []
    for index in range(2):
        with h5py.File(made.folder / f"shard-00000{index}.h5") as file:
            shards.append((file["image"][:], file["seed"][:]))
            assert dict(file.attrs) == {
                "synthetic": True, "notice": NOTICE, "digital_source_type": SOURCE_TYPE, "sampler": "ddim",
                "steps": STEPS, "eta": 0.0, "model_name": "small", "model_digest": made.digest,
            }  # fmt: skip
    np.testing.assert_array_equal(np.concatenate([images for images, _ in shards]), made.images)
    assert np.concatenate([seeds for _, seeds in shards]).tolist() == [*range(BASE, BASE + COUNT)]


def test_zarr(made: Made) -> None:
    groups = [zarr.open_group(str(made.folder / f"shard-00000{index}.zarr"), mode="r") for index in range(2)]
    np.testing.assert_array_equal(np.concatenate([group["image"][:] for group in groups]), made.images)
    assert np.concatenate([group["seed"][:] for group in groups]).tolist() == [*range(BASE, BASE + COUNT)]
    assert dict(groups[0].attrs)["notice"] == NOTICE
    assert dict(groups[0].attrs)["model_digest"] == made.digest


def test_webdataset(made: Made) -> None:
    """As a training program reads it: decoded samples in the order of the seeds."""
    urls = [str(path) for path in sorted(made.folder.glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("l8").to_tuple("png", "json", "__key__")
    samples = [*dataset]
    assert [key for *_, key in samples] == [f"slice_seed{seed:09d}" for seed in range(BASE, BASE + COUNT)]
    assert [record["seed"] for _, record, _ in samples] == [*range(BASE, BASE + COUNT)]
    assert {(record["synthetic"], record["model_digest"]) for _, record, _ in samples} == {(True, made.digest)}
    np.testing.assert_array_equal([upright(picture) for picture, *_ in samples], made.levels(255))


@pytest.mark.parametrize(("format", "largest"), [("png", 255), ("png16", 65535)])
def test_png(made: Made, format: str, largest: int) -> None:
    pictures = [upright(np.asarray(Image.open(path))) for path in made.files(format, ".png")]
    np.testing.assert_array_equal(pictures, made.levels(largest))


def test_nifti(made: Made) -> None:
    volumes = [nibabel.load(path).get_fdata(dtype=np.float32)[:, :, 0] for path in made.files("nifti", ".nii.gz")]
    np.testing.assert_array_equal(volumes, made.images)
    assert len(made.files("nifti", ".json")) == COUNT


def test_dicom(made: Made) -> None:
    objects = [pydicom.dcmread(path) for path in made.files("dicom", ".dcm")]
    np.testing.assert_array_equal([upright(each.pixel_array) for each in objects], made.levels(65535))
    assert {each["SyntheticData"].value for each in objects} == {"YES"}
    assert len({each.SOPInstanceUID for each in objects}) == COUNT


def test_the_summary_page(made: Made) -> None:
    page = (made.folder / "summary.html").read_text()
    for words in (NOTICE, made.digest, "5 synthetic slices", f"{BASE} to {BASE + COUNT - 1}", "contact_sheet.png"):
        assert words in page
    assert not {"<script", "http"} & {word for word in ("<script", "http") if word in page}
    with Image.open(made.folder / "contact_sheet.png") as sheet:
        first = np.asarray(sheet)[4:244]
    columns = [upright(first[:, left : left + 240]) for left in range(first.shape[1] - 240)]
    assert any((column == made.levels(255)[0]).all() for column in columns), "the first image is on it"


def test_the_hashes_are_those_of_the_images(made: Made) -> None:
    import hashlib

    marks = [json.loads((made.folder / f"shard-00000{index}.json").read_text()) for index in range(2)]
    hashes = [digest for mark in marks for digest in mark["pixels_sha256"]]
    assert hashes == [hashlib.sha256(image.astype("<f4").tobytes()).hexdigest() for image in made.images]


def test_verify_makes_images_again(made: Made, small_server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    verify = ("verify", str(made.folder), "--url", small_server.grpc_url)
    assert main([*verify, "--sample", "3", "--seed", "1"]) == 0
    assert "no fault; read " in (said := capsys.readouterr().out)
    assert said.endswith("in 2 of 2 shards, and made 3 images again to compare them bit for bit\n")
    assert main([*verify, "--tolerance", "1e-6"]) == 0
    assert "made 5 images again to compare them within 1e-06" in capsys.readouterr().out
