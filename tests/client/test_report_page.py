"""The page of large folders, of hostile texts and of evaluations; the command."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from brats_ldm_client import Client, Generation, InvalidRequest, _cli
from brats_ldm_client.bulk import make_all, model_of, plan_for
from brats_ldm_client.bulk.verify import check_hashes
from brats_ldm_client.pictures import MARK, SOURCE_TYPE, marked, to_display
from brats_ldm_client.report import gather, readers, write_report
from brats_ldm_client.report.parameters import ranges
from brats_ldm_client.testing import FakeTransport
from support.report_page import ReportPage

EVIL = '<script>alert("1")</script><img src=x onerror=alert(1)>'


def image_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((12, 12), np.float32)


def generate(count: int) -> Generation:
    with Client(transport=FakeTransport(image_of)) as client:
        return client.generate(count, seed=0)


# --- large folders


def test_of_a_large_folder_a_bounded_number_of_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4000):
        (tmp_path / f"{number:05}.png").symlink_to("one")
    Image.fromarray(np.full((12, 12), 51, np.uint8)).save(tmp_path / "one", "PNG")
    opened: list[str] = []
    read = readers.read
    monkeypatch.setattr(readers, "read", lambda path, *more: opened.append(path.name) or read(path, *more))
    ticks: list[None] = []
    page = ReportPage(write_report(tmp_path, on_image=lambda: ticks.append(None)))
    assert len(opened) == len(set(opened)) == len(ticks) == gather.SAMPLE
    assert list(page.pictures) == [f"{4000 * place // 64:05}.png" for place in range(64)]
    assert "64 of 4,000, evenly spread" in page.words
    assert "Of 512 images, evenly spread." in page.words
    assert "4,000 images are too many for a table of them." in page.words
    assert len(page.viewed["images"]) == 32


def test_only_what_was_read_is_called_synthetic(tmp_path: Path) -> None:
    generate(1).save(tmp_path / "ours")
    ours = next((tmp_path / "ours").glob("slice_*"))
    for number in range(1000):
        (tmp_path / f"{number:04}.png").symlink_to(ours)
    page = ReportPage(write_report(tmp_path))
    assert "All 512 slices that were read are recorded as synthetic" in page.words
    assert f"{tmp_path.name}: 1,000 slices" in page.words


def test_the_page_of_large_pictures_stays_small(tmp_path: Path) -> None:
    for number in range(3):
        rows = np.random.default_rng(number).integers(0, 256, (1500, 3000), np.uint8)
        Image.fromarray(rows).save(tmp_path / f"{number}.png")
    page = ReportPage(write_report(tmp_path))
    assert [picture.shape for picture in page.pictures.values()] == [(256, 512)] * 3
    assert [image["width"] for image in page.viewed["images"]] == [3000]
    assert "1 of the slices above, with their values in the page." in page.words


def test_memory_does_not_grow_with_an_archive(tmp_path: Path) -> None:
    peaks = []
    for count in (600, 600, 6000):  # the first imports
        np.savez(tmp_path / "images.npz", images=np.zeros((count, 64, 64), np.float32))
        tracemalloc.start()
        try:
            write_report(tmp_path)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] - peaks[1] < 5400 * 64 * 64 * 4 / 10


def test_a_run_in_bulk_of_many_shards_keeps_its_memory(tmp_path: Path) -> None:
    peaks = []
    for shards in (100, 100, 400):
        folder = tmp_path / f"{len(peaks)}"
        with Client(transport=FakeTransport(lambda seed: np.zeros((4, 4), np.float32))) as client:
            make_all(client, plan_for(model_of(client), shards, "png", shard_size=1), folder)
        tracemalloc.start()
        try:
            write_report(folder)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / 300 < 5000  # bytes a shard: a row of the table, and no histogram


def test_very_many_faults_are_counted(tmp_path: Path) -> None:
    generate(1).save(tmp_path)
    for number in range(300):
        (tmp_path / f"{number}.nii").write_text("no volume")
    page = ReportPage(write_report(tmp_path))
    assert page.words.count("cannot be read") == 200
    assert "and 100 more" in page.words


# --- texts of anyone


def test_hostile_names_and_records_are_texts(tmp_path: Path) -> None:
    generate(3).save(tmp_path)
    document = json.loads((tmp_path / "provenance.json").read_text())
    names = ["<b onclick=1>.png", "&amp;\"'.png", "seed</td>.png"]
    for record, name in zip(document["images"], names, strict=True):
        name = name.replace("/", "\N{DIVISION SLASH}")
        (tmp_path / record["file"]).rename(tmp_path / name)
        record |= {"file": name, "seed": EVIL, "sampler": EVIL, EVIL: {EVIL: EVIL}, "versions": [EVIL, {"x": None}]}
    (tmp_path / "provenance.json").write_text(json.dumps(document))
    page = ReportPage(write_report(tmp_path, title=EVIL))
    assert page.tags.count("script") == 3  # data and script of the viewer, search
    assert "b" not in page.tags[page.tags.index("section") : page.tags.index("canvas")]
    assert page.outside == []
    assert sorted(page.pictures) == sorted(name.replace("/", "\N{DIVISION SLASH}") for name in names)
    assert page.value("sampler") == EVIL
    assert EVIL in page.words


def test_a_text_that_is_too_deep_to_parse_is_a_text(tmp_path: Path) -> None:
    generate(1).save(tmp_path)
    (tmp_path / "provenance.json").unlink()
    chunks = PngInfo()
    for name, text in {"DigitalSourceType": SOURCE_TYPE, "sampler": "[" * 100_000}.items():
        chunks.add_text(name, text)
    Image.new("L", (4, 4)).save(tmp_path / "deep.png", pnginfo=chunks)
    problems: list[str] = []
    assert "deep.png" in ReportPage(write_report(tmp_path, on_problem=problems.append)).pictures
    assert problems == []


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "one", "PNG")
    (tmp_path / "one").rename(Path(bytes(tmp_path).decode()) / b"\xff.png".decode("utf-8", "surrogateescape"))
    page = ReportPage(write_report(tmp_path))
    assert len(page.pictures) == 1


def test_numbers_as_ranges() -> None:
    assert ranges([104, *range(100)]) == "0\N{EN DASH}99, 104"
    assert ranges([-3, -2, 5, 5]) == "-3 to -2, 5 (1 of them more than once)"
    assert ranges(range(0, 200, 2)).endswith("118, and 40 more ranges")
    assert ranges([2**63 - 1]) == "9223372036854775807"


# --- evaluations


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Folders of synthetic, training and real slices, 12 pixels wide."""
    places = {name: tmp_path / name for name in ("synthetic", "training", "real")}
    generate(3).save(places["synthetic"], "nifti")
    for name, start in (("training", 10), ("real", 20)):
        places[name].mkdir()
        np.savez(places[name] / "volume.npz", images=np.stack([image_of(start + index) for index in range(4)]))
    return places


def evaluation(folders: dict[str, Path], **changes: Any) -> dict[str, Any]:
    rows = [
        {
            "synthetic": f"slice_seed00000000{seed}.nii.gz",
            "copy": seed == 1,
            "score": [0.1, 2.5, 0.3][seed],
            "training": f"volume.npz[{seed}]",
            "similarity_training": 0.5 + seed / 100,
            "held_out": f"volume.npz[{seed + 1}]",
            "similarity_held_out": 0.4,
        }
        for seed in range(3)
    ]
    found = {"copies": 1, "threshold": 0.9, "planted_copies": 100, "planted_copies_found": 99, "held_out_alarms": 0}
    return {
        "arguments": {name: str(folder) for name, folder in folders.items()},
        "slices": {"real": 4, "synthetic": 3, "training": 4},
        "metrics": {"FID": {"synthetic": 12.5, "reference": 3.25}},
        "reading": {"FID": "lower is better"},
        "notes": ["features: encoder"],
        "memorisation": {**found, "slices": rows},
        **changes,
    }


def test_an_evaluation_with_its_nearest_pairs(folders: dict[str, Path]) -> None:
    (folders["synthetic"] / "evaluation.json").write_text(json.dumps(evaluation(folders)))
    page = ReportPage(write_report(folders["synthetic"], evaluation=folders["synthetic"]))
    assert ["FID", "12.5", "3.25", "lower is better"] in page.rows
    assert "1 copy found: slices with a score above 0.9." in page.words
    assert "99 of 100 planted copies were found" in page.words
    assert "Training and held-out slices can be of patients" in page.words
    assert page.words.index("score 2.50") < page.words.index("score 0.30") < page.words.index("score 0.10")
    synthetic = page.pictures["synthetic: slice_seed000000001.nii.gz"]
    np.testing.assert_array_equal(synthetic, marked(to_display(image_of(1))))
    training = page.pictures["nearest training slice, 0.510: volume.npz[1]"]
    np.testing.assert_array_equal(training, to_display(image_of(11)))
    held_out = page.pictures["nearest held-out slice, 0.400: volume.npz[2]"]
    np.testing.assert_array_equal(held_out, to_display(image_of(22)))


def test_an_evaluation_that_came_with_the_folder_opens_no_other(folders: dict[str, Path]) -> None:
    (folders["synthetic"] / "evaluation.json").write_text(json.dumps(evaluation(folders)))
    page = ReportPage(write_report(folders["synthetic"]))
    assert "synthetic: slice_seed000000001.nii.gz" in page.pictures
    assert "nearest training slice, 0.510: volume.npz[1]" in page.words
    assert page.words.count("not opened") == 6
    assert "With --evaluation the page also has pictures" in page.words
    assert not [caption for caption in page.pictures if caption.startswith("nearest")]


def test_numbers_of_an_evaluation_that_are_none(folders: dict[str, Path]) -> None:
    text = json.dumps(evaluation(folders)).replace('"copies": 1,', '"copies": NaN,').replace("12.5", "Infinity")
    (folders["synthetic"] / "evaluation.json").write_text(text)
    page = ReportPage(write_report(folders["synthetic"]))
    assert "nan copies found" in page.words
    assert ["FID", "inf", "3.25", "lower is better"] in page.rows


def test_where_folders_are_gone_pairs_have_their_names(folders: dict[str, Path], tmp_path: Path) -> None:
    document = evaluation({name: tmp_path / "gone" / name for name in folders})
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "evaluation.json").write_text(json.dumps(document))
    page = ReportPage(write_report(folders["synthetic"], tmp_path / "page.html", tmp_path / "evaluation"))
    assert "nearest training slice, 0.510: volume.npz[1]" in page.words
    assert page.words.count("not here any more") == 6
    assert "synthetic: slice_seed000000001.nii.gz" in page.pictures  # the folder of the page has it
    assert "can be of patients" not in page.words


def test_an_evaluation_without_training_slices(folders: dict[str, Path]) -> None:
    document = evaluation(folders, memorisation=None)
    (folders["synthetic"] / "evaluation.json").write_text(json.dumps(document))
    assert "Copies were not looked for" in ReportPage(write_report(folders["synthetic"])).words


@pytest.mark.parametrize("name", ["../secret/a.png", "/etc/passwd", "..", "volume.npz[99]", "volume.npz[x]", EVIL, ""])
def test_a_name_leads_to_no_other_folder(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    Image.new("L", (12, 12)).save(tmp_path / "secret" / "a.png")
    document = evaluation(folders)
    for row in document["memorisation"]["slices"]:
        row["training"] = name
    (folders["synthetic"] / "evaluation.json").write_text(json.dumps(document))
    page = ReportPage(write_report(folders["synthetic"], evaluation=folders["synthetic"]))
    assert page.words.count("not here any more") == 3
    assert page.tags.count("script") == 3


BROKEN: list[Any] = [
    [],
    {},
    {"arguments": 3},
    {"metrics": {"FID": 1}},
    {"memorisation": {"slices": [{}]}},
    {"notes": None},
    {"slices": {"real": float("inf")}},
    {"metrics": {"FID": {"synthetic": 10**400, "reference": 1}}},
]


@pytest.mark.parametrize("changes", BROKEN)
def test_a_broken_evaluation(changes: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    """One that only lies there keeps no page from being written; one that was asked for does."""
    document = {**evaluation(folders), **changes} if changes else changes
    file = folders["synthetic"] / "evaluation.json"
    file.write_text(json.dumps(document))
    problems: list[str] = []
    write_report(folders["synthetic"], on_problem=problems.append)
    assert problems[0].startswith("evaluation.json is no evaluation"), "the page names no folder of this machine"
    file.rename(tmp_path / "evaluation.json")
    with pytest.raises(InvalidRequest, match=r"evaluation\.json is no evaluation .*: evaluate again$"):
        write_report(folders["synthetic"], evaluation=tmp_path)


# --- the command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(2).save(tmp_path / "slices")
    for name in ("a.png", "b.png"):
        (tmp_path / "slices" / name).write_text("no picture")
    out = tmp_path / "page.html"
    assert _cli.main(["report", str(tmp_path / "slices"), "--out", str(out), "--title", "Mine & yours"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    (line,) = printed.err.splitlines()
    assert line.startswith("brats-ldm: a.png cannot be read (")
    assert line.endswith("(and 1 more: the page lists them)")
    assert "Mine & yours" in ReportPage(out).words


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["EMPTY"], "EMPTY has no slices to read: give a folder of .png, .nii, .nii.gz, .dcm or .npz files"),
        (["NONE"], "NONE is not a folder: give a folder of slices"),
        (["SLICES", "--evaluation", "NONE"], "there is no NONE: give what `python -m training.evaluation` has written"),
        (["SLICES", "--out", "NONE/page.html"], "NONE/page.html: No such file or directory"),
    ],
)
def test_errors_are_one_line(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generate(1).save("SLICES")
    Path("EMPTY").mkdir()
    assert _cli.main(["report", *words]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[0].startswith(f"brats-ldm: {line}")
    assert len(printed.err.splitlines()) == 1


def test_a_failed_report_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(1).save(tmp_path)
    path = write_report(tmp_path)
    before = path.read_bytes()
    assert write_report(tmp_path).read_bytes() == before  # the same folder gives the same page

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path)
    assert path.read_bytes() == before


def test_a_report_does_not_disturb_a_run_in_bulk(tmp_path: Path) -> None:
    with Client(transport=FakeTransport(image_of)) as client:
        make_all(client, plan_for(model_of(client), 3, "png"), tmp_path)
    assert MARK in ReportPage(write_report(tmp_path)).text
    assert check_hashes(tmp_path).sound
