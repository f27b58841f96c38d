"""Images and labels on the disk: the pairs as MONAI and nibabel read them, the other formats, and runs that go on."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from brats_ldm_client import Client, Generation, InvalidRequest
from brats_ldm_client._cli import main
from brats_ldm_client._writers import FolderWriter
from brats_ldm_client.labels import LabelSampler, read_labels
from brats_ldm_client.labels.maps import digest
from brats_ldm_client.pictures import from_rows
from brats_ldm_client.testing import FakeTransport
from support.common import ROOT
from support.fake_triton import Served
from support.label_maps import lesion, library, save

MAPS = np.stack([lesion(140 + 3 * i, 100, 8 + i) for i in range(6)])
TASK = "Task01_BrainTumour"


def generation(seeds: list[int], **more: Any) -> Generation:
    with Client(transport=FakeTransport()) as client:
        return client.generate(seeds, steps=2, **{"labels": MAPS[: len(seeds)], "guidance": 2.5, **more})


def index(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / TASK / "dataset.json").read_text())
    return content


@pytest.mark.slow
def test_pairs_are_read_by_monai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", os.environ.get("USER", "somebody"))  # `import monai` asks for a name
    from monai.apps import DecathlonDataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

    made = generation([3, 8, 11, 40, 41], labels=MAPS[:5])
    made.save(tmp_path, "task01")
    load = Compose(
        [
            LoadImaged(keys=("image", "label")),
            EnsureChannelFirstd(keys=("image", "label")),
            Orientationd(keys=("image", "label"), axcodes="RAS", labels=None),
        ]
    )
    found = {}
    for section, count in (("training", 4), ("validation", 1)):
        data = DecathlonDataset(tmp_path, task=TASK, section=section, transform=load, download=False, num_workers=0)
        assert len(data) == count
        assert data.get_properties("labels")["labels"]["3"] == "enhancing tumour"
        for item in data:
            assert item["image"].shape == item["label"].shape == (1, 240, 240, 1)
            assert (item["image"].affine == item["label"].affine).all()
            found[Path(item["image"].meta["filename_or_obj"]).name] = (
                item["image"][0, ..., 0],
                item["label"][0, ..., 0],
            )
    for one in made:
        image, labels = found[f"BRATS_SYN_seed{one.seed:09d}.nii.gz"]
        assert (np.asarray(image) == one.image).all()
        assert (np.asarray(labels) == one.labels).all()


def test_pairs_have_what_nnunet_asks_for(tmp_path: Path) -> None:
    """As its converter reads them: the three folders, a number in the folder's name, these keys, images of 3 axes."""
    generation([3, 8]).save(tmp_path, "task01")
    folder, content = tmp_path / TASK, index(tmp_path)
    task, _ = folder.name.split("_")
    assert int(task[4:]) == 1
    assert all((folder / part).is_dir() for part in ("imagesTr", "labelsTr", "imagesTs"))
    assert {int(label): name for label, name in content["labels"].items()}[1] == "edema"
    assert (content["modality"], content["test"], content["numTraining"]) == ({"0": "FLAIR"}, [], 2)
    assert content["description"].startswith("SYNTHETIC")
    for pair in content["training"]:
        image, labels = (nibabel.load(folder / pair[part]) for part in ("image", "label"))
        assert image.shape == labels.shape == (240, 240, 1)
        assert (image.get_data_dtype(), labels.get_data_dtype()) == (np.float32, np.uint8)
        assert (image.affine == labels.affine).all()
        assert Path(pair["image"]).name == Path(pair["label"]).name


def test_the_labels_of_a_folder_of_pairs_are_labels_again(tmp_path: Path) -> None:
    generation([3, 8]).save(tmp_path, "task01")
    assert (read_labels(tmp_path / TASK / "labelsTr") == MAPS[:2]).all()


def test_every_file_has_its_record(tmp_path: Path) -> None:
    paths = generation([3, 8]).save(tmp_path, "task01,png,png16,nifti,dicom,npz")
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]
    assert len(paths) == len(set(paths)) == len([path for path in tmp_path.rglob("*") if path.is_file()])
    records = json.loads((tmp_path / "provenance.json").read_text())["images"]
    assert len(records) == 2 * (2 + 2 + 1 + 3 + 1 + 1), "png, png16 and dicom have one picture of the labels"
    for record in records:
        assert record["sha256"] == hashlib.sha256((tmp_path / record["file"]).read_bytes()).hexdigest()
        assert record["labels_sha256"] == digest(MAPS[[3, 8].index(record["seed"])])
        assert record["guidance"] == 2.5


def test_labels_beside_other_formats(tmp_path: Path) -> None:
    (one,) = generation([3])
    generation([3]).save(tmp_path, "png,nifti,npz")
    with Image.open(tmp_path / "labels" / "slice_seed000000003.png") as picture:
        assert (from_rows(np.asarray(picture)) == MAPS[0]).all()
        assert picture.text["Description"].startswith("SYNTHETIC")
    volume = nibabel.load(tmp_path / "labels" / "slice_seed000000003.nii.gz")
    assert (np.asarray(volume.dataobj)[:, :, 0] == MAPS[0]).all()
    with np.load(tmp_path / "slices.npz") as archive:
        assert (archive["labels"] == MAPS[:1]).all()
        assert float(archive["guidance"]) == 2.5
    with Image.open(tmp_path / "slice_seed000000003.png") as picture:
        assert picture.text["labels_sha256"] == one.record["labels_sha256"]
        assert picture.text["guidance"] == "2.5"
    sidecar = json.loads((tmp_path / "slice_seed000000003.json").read_text())
    assert (sidecar["LabelsSha256"], sidecar["Guidance"]) == (digest(MAPS[0]), 2.5)


def test_dicom_images_with_labels_are_one_series(tmp_path: Path) -> None:
    import pydicom

    generation([3, 8]).save(tmp_path, "dicom")
    files = [pydicom.dcmread(path) for path in sorted(tmp_path.glob("*.dcm"))]
    assert len({file.SeriesInstanceUID for file in files}) == 1
    assert len({file.SOPInstanceUID for file in files}) == 2
    assert "guidance=2.5" in files[0].SeriesDescription


def test_pairs_need_labels(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="format task01 has images with labels: generate them with labels"):
        generation([3], labels=None, guidance=1.0).save(tmp_path, "task01")
    assert not [*tmp_path.rglob("*")]


def test_a_second_run_adds_its_pairs(tmp_path: Path) -> None:
    generation([3, 8]).save(tmp_path, "task01")
    generation([8, 11], labels=MAPS[2:4]).save(tmp_path, "task01")
    names = [f"BRATS_SYN_seed{seed:09d}.nii.gz" for seed in (3, 8, 11)]
    assert [Path(pair["image"]).name for pair in index(tmp_path)["training"]] == names
    maps = read_labels(tmp_path / TASK / "labelsTr")
    assert (maps == MAPS[[0, 2, 3]]).all(), "of a seed that is made again the pair is replaced"


def test_a_half_pair_is_not_listed(tmp_path: Path) -> None:
    """A run that is killed may leave the image of a pair."""
    generation([3, 8]).save(tmp_path, "task01")
    (tmp_path / TASK / "labelsTr" / "BRATS_SYN_seed000000003.nii.gz").unlink()
    generation([11]).save(tmp_path, "task01")
    assert [pair["image"][-12:-7] for pair in index(tmp_path)["training"]] == ["00008", "00011"]


def test_another_data_set_is_left_alone(tmp_path: Path) -> None:
    """A folder named `data` may hold the images of patients: nothing of ours goes among them."""
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / TASK / part).mkdir(parents=True)
    save(tmp_path / TASK / "labelsTr" / "BRATS_001.nii.gz", MAPS[0])
    with pytest.raises(InvalidRequest, match="Task01_BrainTumour is another data set: choose another folder"):
        FolderWriter(tmp_path, "task01")
    (tmp_path / TASK / "labelsTr" / "BRATS_001.nii.gz").unlink()
    for text in ('{"description": "of a clinic"}', "no JSON", "[]"):
        (tmp_path / TASK / "dataset.json").write_text(text)
        with pytest.raises(InvalidRequest, match="is another data set"):
            FolderWriter(tmp_path, "task01")
    (tmp_path / TASK / "dataset.json").unlink()
    FolderWriter(tmp_path, "task01")


def test_the_same_pairs_have_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        generation([3, 8]).save(tmp_path / name, "task01")
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path


class Command:
    def __init__(self, served: Served, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.served, self.folder, self.capsys = served, folder, capsys
        self.maps, self.library = folder / "maps", folder / "library.npz"
        self.maps.mkdir()
        for i, each in enumerate(MAPS[:3]):
            save(self.maps / f"{i}.nii.gz", each)
        np.savez_compressed(self.library, labels=library().labels, brain=library().brain)

    def __call__(self, *words: object) -> tuple[int, str]:
        self.served.triton.received.clear()
        options = ("--url", self.served.url, "--steps", 2, "--out", self.folder / "out", "--retry", 1)
        status = main([str(word) for word in ("generate", *words, *options)])
        out, err = self.capsys.readouterr()
        return status, out + err

    def sent(self) -> dict[int, str]:
        """The seeds that were asked for, and the digests of their maps; without the look at the model."""
        asked = [tensors for tensors in self.served.triton.received if "labels" in tensors]
        rows = [row for tensors in asked for row in zip(tensors["seed"], tensors["labels"], strict=True)]
        return {int(seed[0]): digest(labels[0]) for seed, labels in rows}


@pytest.fixture
def generate(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(served, tmp_path, capsys)


def test_maps_in_turn(generate: Command) -> None:
    assert generate("--seed", 5, "--labels", generate.maps)[0] == 0
    expected = {5: digest(MAPS[0]), 6: digest(MAPS[1]), 7: digest(MAPS[2])}
    assert generate.sent() == expected, "without -n as many images as maps"
    assert generate("-n", 5, "--seed", 5, "--labels", generate.maps, "--format", "task01")[0] == 0
    assert generate.sent() == {**expected, 8: digest(MAPS[0]), 9: digest(MAPS[1])}
    assert (read_labels(generate.folder / "out" / TASK / "labelsTr") == MAPS[[0, 1, 2, 0, 1]]).all()


def test_maps_drawn_by_the_seed(generate: Command) -> None:
    status, told = generate("--seeds", "7,-2", "--draw-labels", generate.library, "--guidance", 3)
    assert status == 0, told
    draw = LabelSampler(library()).draw
    assert generate.sent() == {seed: digest(draw(seed)) for seed in (7, -2)}
    assert all((tensors["guidance"] == 3).all() for tensors in generate.served.triton.received)
    assert generate("--seed", 7, "--draw-labels", generate.library)[0] == 0, "one image"
    assert generate.sent().keys() == {7}


def test_a_run_goes_on_with_the_same_labels(generate: Command) -> None:
    words = ("--seed", 5, "--labels", generate.maps, "--format", "task01,png")
    assert generate(*words)[0] == 0
    assert "3 of them there before" in generate(*words)[1]
    assert generate.sent() == {}
    (generate.folder / "out" / "labels" / "slice_seed000000006.png").unlink()
    (generate.folder / "out" / TASK / "labelsTr" / "BRATS_SYN_seed000000007.nii.gz").unlink()
    assert "1 of them there before" in generate(*words)[1]
    assert generate.sent() == {6: digest(MAPS[1]), 7: digest(MAPS[2])}, "each with the map of its place"
    save(generate.maps / "1.nii.gz", MAPS[5])
    assert "2 of them there before" in generate(*words)[1]
    assert generate.sent() == {6: digest(MAPS[5])}
    generate(*words, "--guidance", 2)
    assert generate.sent().keys() == {5, 6, 7}
    assert "there before" not in generate("-n", 3, "--seed", 5, "--format", "png")[1], "images without labels"
    assert "there before" not in generate("--seed", 5, "--labels", generate.maps, "--format", "png")[1]


def test_a_seed_that_comes_twice_has_two_maps(generate: Command) -> None:
    assert generate("--seeds", "5,5", "--labels", generate.maps, "--format", "task01")[0] == 0
    assert (read_labels(generate.folder / "out" / TASK / "labelsTr") == MAPS[:2]).all()


class Screen:
    """A terminal of 80 columns that nobody looks at."""

    columns = 80

    def show(self, *frame: object) -> None: ...
    def leave(self) -> None: ...
    def close(self) -> None: ...


def test_images_that_are_watched_have_the_same_labels(generate: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brats_ldm_client.terminal.open_screen", lambda kind: Screen())
    status, told = generate("-n", 7, "--seed", 5, "--labels", generate.maps, "--guidance", 2, "--watch", "blocks")
    assert status == 0, told
    assert generate.sent() == {5 + i: digest(MAPS[i % 3]) for i in range(7)}
    assert all((tensors["guidance"] == 2).all() for tensors in generate.served.triton.received)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--labels", "a", "--draw-labels", "b"), "pass one or the other"),
        (("--guidance", "2"), "--guidance is for images with labels"),
        (("--format", "png,task01"), "--format task01 has images with labels: pass --labels or --draw-labels too"),
    ],
)
def test_wrong_options(generate: Command, words: tuple[str, ...], told: str) -> None:
    with pytest.raises(SystemExit) as ended:
        generate(*words)
    assert ended.value.code == 2
    assert told in generate.capsys.readouterr().err


def test_labels_that_cannot_be_read(generate: Command) -> None:
    for words in (("--labels", "missing.nii.gz"), ("--draw-labels", generate.maps), ("--labels", __file__)):
        status, told = generate("--seed", 0, *words)
        assert status == 1
        assert told.startswith("brats-ldm: ")
        assert told.count("\n") == 1
    assert not generate.served.triton.received


def test_the_lines_of_the_page(generate: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "generate.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "LabelSampler" in block)
    monkeypatch.chdir(generate.folder)
    exec(code.replace("127.0.0.1:8001", generate.served.url), {})
    assert index(generate.folder / "pairs")["numTraining"] == 8
    assert generate.capsys.readouterr().out.startswith("(8, 240, 240) ")
