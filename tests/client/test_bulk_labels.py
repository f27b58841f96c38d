"""Runs in bulk with labels: what a shard holds in each format, and what plan, marks and `verify` say of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import webdataset
import zarr

from brats_ldm_client import Client, InvalidRequest, ProtocolError
from brats_ldm_client._cli import main
from brats_ldm_client._formats import PAIRED
from brats_ldm_client.bulk import (
    FORMATS,
    Plan,
    check_hashes,
    check_sample,
    make_all,
    make_all_with,
    make_shards,
    plan_for,
)
from brats_ldm_client.bulk.artifacts import read_maps
from brats_ldm_client.bulk.plan import read_manifest, write_manifest
from brats_ldm_client.labels import LabelSampler, LabelSource, read_labels
from brats_ldm_client.labels.maps import digest
from brats_ldm_client.pictures import from_rows
from brats_ldm_client.report.sources import open_source
from brats_ldm_client.testing import DIGEST, FakeTransport
from support.bulk import tree
from support.fake_triton import Served
from support.label_maps import lesion, library, save

MAPS = np.stack([lesion(140 + 3 * i, 100, 8 + i) for i in range(3)])
ALL = (*FORMATS, *PAIRED)
MODEL = {"model_name": "fake", "model_digest": DIGEST}


@pytest.fixture
def drawn(tmp_path: Path) -> LabelSource:
    made = library()
    np.savez_compressed(tmp_path / "library.npz", labels=made.labels, brain=made.brain)
    return LabelSource(tmp_path / "library.npz", drawn=True)


@pytest.fixture
def turns(tmp_path: Path) -> LabelSource:
    (tmp_path / "maps").mkdir()
    for i, each in enumerate(MAPS):
        save(tmp_path / "maps" / f"{i}.nii.gz", each)
    return LabelSource(tmp_path / "maps")


def plan(labels: LabelSource | None, formats: str = "png", **more: Any) -> Plan:
    return plan_for(MODEL, 5, formats, **{"seed_base": 10, "shard_size": 2, "labels": labels, "guidance": 2.0, **more})


def client() -> Client:
    return Client(transport=FakeTransport())


def test_a_plan_names_its_labels(tmp_path: Path, drawn: LabelSource, turns: LabelSource) -> None:
    (tmp_path / "out").mkdir()
    for source, mode in ((drawn, "drawn"), (turns, "in turn")):
        made = plan(source)
        assert made.labels == source.identity
        assert made.labels.startswith(f"{mode} sha256:")
        assert made.origin()["labels"] == made.labels
        assert made.record(3, "ab") == {**made.record(3), "labels_sha256": "ab"}
        assert made.record(3)["guidance"] == 2.0
        assert "labels" not in made.record(3)
        write_manifest(tmp_path / "out", made)
        assert read_manifest(tmp_path / "out")["plan"] == made


def test_a_plan_without_labels_has_the_bytes_that_it_had(tmp_path: Path) -> None:
    write_manifest(tmp_path, plan(None, guidance=1.0))
    document = json.loads((tmp_path / "manifest.json").read_text())
    assert not {"labels", "guidance"} & {*document["plan"]}


@pytest.mark.parametrize("wrong", [{"formats": "png,task01", "guidance": 1.0}, {"guidance": 2.0}])
def test_what_needs_labels(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="is for images with labels: give labels too, or leave it out"):
        plan(None, **wrong)


def test_every_format_has_the_labels(tmp_path: Path, drawn: LabelSource) -> None:
    made, folder = plan(drawn, ",".join(ALL)), tmp_path / "out"
    with client() as asked:
        make_all(asked, made, folder, labels=drawn)
    draw = LabelSampler(library()).draw
    for index in range(made.shards):
        seeds = [*made.shard(index)]
        mark = json.loads((folder / f"shard-{index:06d}.json").read_text())
        assert mark["labels_sha256"] == [digest(draw(seed)) for seed in seeds]
        for format in ALL:
            maps = read_maps(folder, made, index, format, seeds)
            assert (np.stack(maps) == np.stack([draw(seed) for seed in seeds])).all(), format
    assert check_hashes(folder).faults == []
    with client() as asked:
        verdict = check_sample(asked, folder, 5)
    assert (verdict.faults, verdict.seeds) == ([], [10, 11, 12, 13, 14]), (
        "without the library: the maps are in the folder"
    )


def test_as_users_read_them(tmp_path: Path, turns: LabelSource) -> None:
    made, folder = plan(turns, "webdataset,hdf5,zarr,task01", shard_size=5), tmp_path / "out"
    with client() as asked:
        make_all(asked, made, folder, labels=turns)
    expected = MAPS[[0, 1, 2, 0, 1]]
    with h5py.File(folder / "shard-000000.h5") as file:
        assert (file["labels"][:] == expected).all()
        assert file["labels"].dtype == np.uint8
        assert (file.attrs["labels"], file.attrs["guidance"]) == (turns.identity, 2.0)
    group = zarr.open_group(folder / "shard-000000.zarr", mode="r")
    assert (group["labels"][:] == expected).all()
    url = str(folder / "shard-000000.tar")
    data = webdataset.WebDataset(url, shardshuffle=False).decode("l8").to_tuple("png", "labels.png", "json")
    for (picture, labels, record), each in zip(data, expected, strict=True):
        assert picture.shape == labels.shape
        assert (from_rows(labels) == each).all()
        assert record["labels_sha256"] == digest(each)
    task = folder / "shard-000000-task01" / "Task01_BrainTumour"
    assert json.loads((task / "dataset.json").read_text())["numTraining"] == 5
    assert (read_labels(task / "labelsTr") == expected).all()
    page = (folder / "summary.html").read_text()
    assert turns.identity in page


def test_shards_of_any_process_are_the_same(tmp_path: Path, drawn: LabelSource) -> None:
    made = plan(drawn, "hdf5,task01,nifti")
    with client() as asked:
        make_all(asked, made, tmp_path / "one", labels=drawn)
        for index in (2, 0, 1):
            make_shards(asked, made, tmp_path / "many", [index], labels=drawn)
        make_all(asked, made, tmp_path / "many", labels=drawn)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")


def test_an_engine_gets_the_labels(tmp_path: Path, served: Served, drawn: LabelSource) -> None:
    made = replace(plan(drawn, "png"), model_digest=served.triton.digest, model_name="mri_ldm")
    make_all_with(map, made, tmp_path / "out", {"url": served.url}, labels=drawn)
    maps = {
        int(s[0]): digest(m[0]) for t in served.triton.received for s, m in zip(t["seed"], t["labels"], strict=True)
    }
    draw = LabelSampler(library()).draw
    assert maps == {seed: digest(draw(seed)) for seed in range(10, 15)}


@pytest.mark.parametrize("make", [make_all, lambda *args, **more: make_shards(*args, [0], **more)])
def test_other_labels_than_the_plans_are_refused(
    tmp_path: Path, drawn: LabelSource, turns: LabelSource, make: Callable[..., Any]
) -> None:
    with client() as asked:
        for planned, given, words in (
            (drawn, None, "the labels are not given, and those of the plan drawn sha256:"),
            (drawn, turns, "the labels are in turn sha256:.*, and those of the plan drawn sha256:"),
            (None, turns, "and those of the plan are none: give the same labels to both"),
        ):
            made = plan(planned, guidance=1.0)
            with pytest.raises(InvalidRequest, match=words):
                make(asked, made, tmp_path / "out", labels=given)
    assert not (tmp_path / "out").exists()


def test_images_without_labels_are_refused(tmp_path: Path, drawn: LabelSource) -> None:
    from brats_ldm_client.bulk.shard import write_shard

    with (
        client() as asked,
        pytest.raises(ProtocolError, match="the image of seed 10 has no label map, unlike the plan"),
    ):
        write_shard(plan(drawn), tmp_path, 0, asked.iter_images([10, 11]))


def test_a_sample_finds_labels_that_were_changed(tmp_path: Path, drawn: LabelSource) -> None:
    made, folder = plan(drawn, "nifti,png"), tmp_path / "out"
    with client() as asked:
        make_all(asked, made, folder, labels=drawn)

        def faults(change: Callable[[], object]) -> list[str]:
            before = tree(folder)
            change()
            found = check_sample(asked, folder, 5).faults
            for name, content in before.items():
                (folder / name).write_bytes(content)
            return found

        first, other = (folder / f"shard-000000-{kind}" / "labels" for kind in ("png", "nifti"))
        names = [f"slice_seed{seed:09d}" for seed in (10, 11)]
        assert faults(lambda: shutil.copy(first / f"{names[1]}.png", first / f"{names[0]}.png")) == [
            "seed 10: its label map is of no use (in png it is not the one that the image was made with)"
        ]
        assert faults(lambda: shutil.copy(other / f"{names[0]}.nii.gz", other / f"{names[1]}.nii.gz")) == [
            "seed 11: its label map in nifti is another one"
        ]
        (fault,) = faults((first / f"{names[0]}.png").unlink)
        assert fault.startswith("seed 10: its label map is of no use (")


def test_a_report_of_a_run_with_labels(tmp_path: Path, turns: LabelSource) -> None:
    made, folder = plan(turns, "task01"), tmp_path / "out"
    with client() as asked:
        make_all(asked, made, folder, labels=turns)
    source = open_source(folder)
    assert (source.facts.count, source.facts.problems) == (5, [])
    assert source.facts.groups[0].parameters["labels"] == turns.identity
    assert len([*source.read(range(5))]) == 5


class Command:
    def __init__(self, served: Served, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.served, self.folder, self.capsys = served, folder, capsys

    def __call__(self, *words: object) -> tuple[int, str]:
        self.served.triton.received.clear()
        options = (
            "--count",
            5,
            "--shard-size",
            2,
            "--steps",
            2,
            "--url",
            self.served.url,
            "--out",
            self.folder / "out",
        )
        status = main([str(word) for word in ("bulk", *options, *words)])
        out, err = self.capsys.readouterr()
        return status, out + err


@pytest.fixture
def bulk(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(served, tmp_path, capsys)


def test_the_command_goes_on_with_the_same_library_only(bulk: Command, drawn: LabelSource) -> None:
    words = ("--draw-labels", drawn.path, "--guidance", 1.5, "--format", "png,task01")
    status, told = bulk(*words)
    assert status == 0, told
    whole = tree(bulk.folder / "out")
    (bulk.folder / "out" / "shard-000001.json").unlink()
    assert "3 of them there before" in bulk(*words)[1]
    assert tree(bulk.folder / "out") == whole
    other = library(5)
    np.savez_compressed(bulk.folder / "other.npz", labels=other.labels, brain=other.brain)
    for changed, difference in (
        (
            ("--draw-labels", bulk.folder / "other.npz", "--guidance", 1.5),
            f"labels {drawn.identity}, not drawn sha256:",
        ),
        (("--labels", drawn.path, "--guidance", 1.5), f"labels {drawn.identity}, not in turn sha256:"),
        (("--draw-labels", drawn.path), "guidance 1.5, not 1.0"),
    ):
        status, told = bulk(*changed, "--format", "png,task01")
        assert (status, told.count("\n")) == (1, 1)
        assert f"holds a run with {difference}" in told
        assert "give the same options, or choose another folder" in told
    assert tree(bulk.folder / "out") == whole
    assert main(["verify", str(bulk.folder / "out"), "--url", bulk.served.url, "--sample", "5"]) == 0


def test_maps_in_turn_by_the_number_of_the_image(bulk: Command, turns: LabelSource) -> None:
    assert bulk("--seed-base", 7, "--labels", turns.path, "--shards", "1..1")[0] == 0
    rows = [
        row for t in bulk.served.triton.received if "labels" in t for row in zip(t["seed"], t["labels"], strict=True)
    ]
    assert {int(seed[0]): digest(labels[0]) for seed, labels in rows} == {9: digest(MAPS[2]), 10: digest(MAPS[0])}


def test_a_plan_in_json_is_a_plan(turns: LabelSource) -> None:
    made = plan(turns)
    assert Plan(**json.loads(json.dumps(asdict(made)))) == made
