"""Files written and read back with the libraries that users have."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from brats_ldm_client import Generation, InvalidRequest
from brats_ldm_client._formats import formats_of
from brats_ldm_client._formats.record import describe
from brats_ldm_client._writers import FolderWriter
from brats_ldm_client.pictures import SOURCE_TYPE, _columns, to_display
from support.common import no_file_above

DIGEST = "sha256:" + "0123456789abcdef" * 4


def generation(seeds: list[int], *, latents: bool = False, size: int = 240) -> Generation:
    images = np.random.default_rng(0).random((len(seeds), size, size), np.float32) * 1.4 - 0.2
    server = {"synthetic": True, "model_name": "mri_ldm", "model_digest": DIGEST, "versions": {"server": "2.51.0"}}
    return Generation(
        images=images,
        seeds=np.array(seeds, np.int64),
        steps=50,
        sampler="ddim",
        eta=0.25,
        provenance=tuple({**server, "seed": seed} for seed in seeds),
        seconds=1.0,
        latents=np.zeros((len(seeds), 64, 64), np.float32) if latents else None,
    )


def add_all(writer: FolderWriter, made: Generation) -> None:
    for one in made:
        writer.add(one)


def test_picture_is_radiological() -> None:
    """An image with one bright corner region each: anterior must be up, the patient's right on the left."""
    image = np.zeros((240, 240), np.float32)
    image[230, 5] = 1.0  # x = 230: far Right; y = 5: far posterior
    image[100, 235] = 0.5  # y = 235: far Anterior
    shown = to_display(image)
    assert shown[239 - 5, 239 - 230] == 255, "right posterior is at the bottom left"
    assert shown[239 - 235, 239 - 100] == 128, "anterior is at the top"
    assert (239 - 5, 239 - 230) == (234, 9)
    assert (239 - 235) < 10
    assert np.count_nonzero(shown) == 2


def test_one_window_for_all_images() -> None:
    dark, beyond = np.full((2, 2), 0.1, np.float32), np.array([[-3.0, 9.0], [0.2, np.nan]], np.float32)
    assert to_display(dark).tolist() == [[26, 26], [26, 26]], "not stretched to the image's own maximum"
    assert sorted(to_display(beyond).ravel().tolist()) == [0, 0, 51, 255]


def test_png(tmp_path: Path) -> None:
    made = generation([42])
    made.save(tmp_path)
    with Image.open(tmp_path / "slice_seed000000042.png") as read:
        assert (read.mode, read.size) == ("L", (240, 240))
        np.testing.assert_array_equal(np.asarray(read), to_display(made.images[0]))
        text = dict(read.text)
    assert text["Description"].startswith("SYNTHETIC")
    assert text["DigitalSourceType"] == SOURCE_TYPE
    assert SOURCE_TYPE in text["XML:com.adobe.xmp"]
    assert (text["seed"], text["sampler"], text["steps"], text["eta"]) == ("42", "ddim", "50", "0.25")
    assert (text["synthetic"], text["model_digest"]) == ("true", DIGEST)


def test_nifti(tmp_path: Path) -> None:
    made = generation([7])
    made.save(tmp_path, "nifti")
    read = nibabel.load(tmp_path / "slice_seed000000007.nii.gz")
    assert read.shape == (240, 240, 1)
    assert read.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(read.dataobj)[:, :, 0], made.images[0])
    assert nibabel.aff2axcodes(read.affine) == ("R", "A", "S")
    assert read.header.get_zooms() == (1, 1, 1)
    assert read.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(read.affine @ [119.5, 119.5, 0, 1], [0, 0, 0, 1])
    descrip = read.header["descrip"].item().decode()
    assert descrip == "SYNTHETIC seed=7 ddim steps=50 eta=0.25 model=0123456789ab"
    assert read.header["intent_name"].item() == b"SYNTHETIC"
    extension = json.loads(read.header.extensions[0].get_content())
    assert (extension["seed"], extension["digital_source_type"]) == (7, SOURCE_TYPE)


def test_the_longest_description_fits_its_field() -> None:
    record = {"seed": -(2**63), "sampler": "dpmpp_2m", "steps": 1000, "eta": 0.123456789, "model_digest": DIGEST}
    text = describe(record)
    assert len(text) <= 79
    assert text.startswith("SYNTHETIC seed=-9223372036854775808 dpmpp_2m steps=1000 eta=0.123457")
    text = describe({**record, "seed": 7, "eta": 0.0, "timestep_grid": "log_snr", "decoder": "tiny"})
    assert text == "SYNTHETIC seed=7 dpmpp_2m steps=1000 eta=0 log_snr tiny model=0123456789ab"


def test_npz(tmp_path: Path) -> None:
    made = generation([3, 1], latents=True)
    made.save(tmp_path, "npz")
    with np.load(tmp_path / "slices.npz", allow_pickle=False) as read:
        np.testing.assert_array_equal(read["images"], made.images)
        assert read["seeds"].tolist() == [3, 1]
        assert (str(read["sampler"]), int(read["steps"]), float(read["eta"])) == ("ddim", 50, 0.25)
        assert read["latents"].shape == (2, 64, 64)
        assert [json.loads(str(text))["seed"] for text in read["provenance"]] == [3, 1]
        assert str(read["notice"]).startswith("SYNTHETIC")
        assert not {"timestep_grid", "decoder"} & {*read.files}, "they are the default"
    replace(made, timestep_grid="karras", decoder="tiny").save(tmp_path, "npz")
    with np.load(tmp_path / "slices.npz", allow_pickle=False) as read:
        assert (str(read["timestep_grid"]), str(read["decoder"])) == ("karras", "tiny")


def test_contact_sheet(tmp_path: Path) -> None:
    paths = generation(list(range(5))).save(tmp_path, "png,nifti")
    assert tmp_path / "contact_sheet.png" in paths
    with Image.open(tmp_path / "contact_sheet.png") as read:
        assert read.size == (5 * 244 + 4, 264 + 4 + 60)
        assert read.text["Description"].startswith("SYNTHETIC")
    assert "contact_sheet.png" not in {path.name for path in generation([1]).save(tmp_path, contact_sheet=False)}


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 5), (7, 4), (8, 4), (16, 4), (60, 8), (64, 8)]
)
def test_columns_of_a_contact_sheet(count: int, columns: int) -> None:
    assert _columns(count) == columns


def test_a_large_contact_sheet_is_bounded(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path, "npz")
    for start in (0, 40):
        add_all(writer, generation(list(range(start, start + 40)), size=60))
    writer.close()
    with Image.open(tmp_path / "contact_sheet.png") as read:
        assert read.size[0] == 8 * 64 + 4
        assert read.size[1] == 8 * 84 + 4 + 60
    with np.load(tmp_path / "slices.npz") as read:
        assert read["seeds"].tolist() == list(range(80))


def test_provenance_names_each_file_and_its_hash(tmp_path: Path) -> None:
    paths = generation([1, 2]).save(tmp_path, ["png", "nifti", "npz"])
    assert paths[-1] == tmp_path / "provenance.json"
    assert sorted(tmp_path.iterdir()) == sorted(paths), "no temporary file is left"
    document = json.loads(paths[-1].read_text())
    assert document["synthetic"] is True
    assert len(document["images"]) == 8
    for record in document["images"]:
        data = (tmp_path / record["file"]).read_bytes()
        assert record["sha256"] == hashlib.sha256(data).hexdigest()
        assert (record["model_digest"], record["versions"]) == (DIGEST, {"server": "2.51.0"})


def test_a_second_run_keeps_the_records_of_the_first(tmp_path: Path) -> None:
    generation([1, 2]).save(tmp_path)
    generation([2, 3]).save(tmp_path)
    records = json.loads((tmp_path / "provenance.json").read_text())["images"]
    assert sorted(record["seed"] for record in records) == [1, 2, 3]


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        generation([1, 2]).save(tmp_path / folder, ["png", "nifti", "npz"])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_seed_twice_in_a_run_gives_two_files(tmp_path: Path) -> None:
    names = {path.name for path in generation([5, 5, -5]).save(tmp_path)}
    assert {"slice_seed000000005.png", "slice_seed000000005_2.png", "slice_seed-00000005.png"} <= names


def test_a_slice_that_does_not_fit_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path)
    add_all(writer, generation([1], size=16))
    with no_file_above(3000), pytest.raises(OSError, match=r"File too large: '.*/slice_seed000000002\.png'"):
        add_all(writer, generation([2]))
    writer.close()
    assert {path.name for path in tmp_path.iterdir()} == {
        "slice_seed000000001.png",
        "contact_sheet.png",
        "provenance.json",
    }
    assert (writer.count, len(recorded(tmp_path))) == (1, 1)


def test_every_slice_has_its_record_where_provenance_cannot_be_written(tmp_path: Path) -> None:
    """A full disk left 290 slices and no provenance. Here the journal of the run is what is too large."""
    seeds = list(range(1, 20))
    with no_file_above(3000):
        writer = FolderWriter(tmp_path, contact_sheet=False)
        with pytest.raises(OSError, match=r"File too large: '.*/provenance\.\w+\.jsonl'"):
            add_all(writer, generation(seeds, size=16))
        with pytest.raises(OSError, match=r"File too large: '.*/provenance\.json'"):
            writer.close()
    done = writer.count
    assert 1 < done < 19
    assert len(list(tmp_path.glob("slice_*.png"))) == done
    assert not (tmp_path / "provenance.json").exists()
    later = FolderWriter(tmp_path, contact_sheet=False)
    assert [seed for seed in seeds if later.has(seed, {"steps": 50})] == seeds[:done]
    assert not later.has(1, {"steps": 20})
    add_all(later, generation([20], size=16))
    later.close()
    assert sorted(record["seed"] for record in recorded(tmp_path)) == [*seeds[:done], 20]
    assert not list(tmp_path.glob("*.jsonl")), "taken up"


def test_an_archive_that_is_there_is_recorded_once_and_one_that_is_not_never(tmp_path: Path) -> None:
    """The end of a run that is cut short is tried again: for the error line, with what is there."""
    generation([1, 2], size=16).save(tmp_path, "npz", contact_sheet=False)
    before = recorded(tmp_path)
    writer = FolderWriter(tmp_path, "npz")
    add_all(writer, generation([3, 4]))
    with no_file_above(3000), pytest.raises(OSError, match=r"File too large: '.*slices\.npz'"):
        writer.close()
    assert recorded(tmp_path) == before
    (tmp_path / "contact_sheet.png").mkdir()
    for _ in range(2):
        with pytest.raises(OSError, match=r"Is a directory: '.*/contact_sheet\.png'$"):
            writer.close()
        assert [(record["seed"], record["index"]) for record in recorded(tmp_path)] == [(3, 0), (4, 1)]


def test_what_a_killed_run_has_left(tmp_path: Path) -> None:
    """Half a line, a record whose file never got its name, and one whose file is that of an earlier run."""
    generation([1], size=16).save(tmp_path, contact_sheet=False)
    (old,) = recorded(tmp_path)
    lines = [{**old, "sha256": "0" * 64, "steps": 7}, {**old, "file": "slice_seed000000002.png", "seed": 2}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"file": "slice_se'
    (tmp_path / "provenance.0123abcd.jsonl").write_text(text)
    (tmp_path / "provenance.notes.jsonl").write_text("somebody's own")
    generation([3], size=16).save(tmp_path, contact_sheet=False)
    assert [(record["seed"], record["steps"]) for record in recorded(tmp_path)] == [(1, 50), (3, 50)]
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["provenance.notes.jsonl"]


def test_two_runs_in_a_folder_at_the_same_time_lose_no_record(tmp_path: Path) -> None:
    first, second = FolderWriter(tmp_path), FolderWriter(tmp_path)
    add_all(first, generation([1], size=16))
    add_all(second, generation([2], size=16))
    second.close()
    first.close()
    assert sorted(record["seed"] for record in recorded(tmp_path)) == [1, 2]


def recorded(folder: Path) -> list[dict]:
    return json.loads((folder / "provenance.json").read_text())["images"]


def test_formats() -> None:
    assert formats_of("png, NIFTI,png") == ("png", "nifti")
    for bad in ("jpeg", "", "png,tiff", []):
        with pytest.raises(InvalidRequest, match="png, png16, nifti, dicom, npz"):
            formats_of(bad)


def test_a_file_in_the_way_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="choose a folder"):
            FolderWriter(folder)
    (tmp_path / "provenance.json").write_text('{"somebody": "else\'s"}')
    with pytest.raises(InvalidRequest, match="not a record"):
        FolderWriter(tmp_path)
    FolderWriter(tmp_path / "new")
    assert not (tmp_path / "new").exists(), "made with the first file"


def test_a_run_in_bulk_is_not_mixed_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "shard-000000.json").touch()
    with pytest.raises(InvalidRequest, match="holds a run of `brats-ldm bulk`: choose another folder"):
        generation([1], size=16).save(tmp_path)
