"""`brats-ldm verify` finds what is wrong with a folder, and says what it has checked."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from brats_ldm_client import Client
from brats_ldm_client._cli import main
from brats_ldm_client.bulk import FORMATS, check_sample
from support.bulk import arguments
from support.fake_triton import DIGEST, Served

Verify = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def folder(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    options = ("--count", 10, "--shard-size", 4, "--format", ",".join(FORMATS))
    assert main(arguments(tmp_path / "out", served.url, *options)) == 0
    capsys.readouterr()
    return tmp_path / "out"


@pytest.fixture
def verify(served: Served, folder: Path, capsys: pytest.CaptureFixture[str]) -> Verify:
    def verify(*more: object) -> tuple[int, str, list[str]]:
        """The command's status, what it says at the end, and its faults."""
        status = main([str(word) for word in ("verify", folder, "--url", served.url, *more)])
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return verify


def test_a_sound_folder(verify: Verify, folder: Path, served: Served) -> None:
    count = len([path for path in folder.rglob("*") if path.is_file()]) - 1  # not the manifest, which no hash covers
    status, out, err = verify("--sample", 4)
    assert (status, err) == (0, [])
    read = rf"no fault; read {count} files \([\d,]+ bytes\) in 3 of 3 shards"
    assert re.search(read + ", and made 4 images again to compare them bit for bit", out)
    served.stop()
    assert verify("--hashes-only")[0] == 0


def test_the_sample_can_be_drawn_again(verify: Verify, served: Served) -> None:
    def drawn(*more: object) -> list[int]:
        served.triton.received.clear()
        assert verify("--sample", 3, *more)[0] == 0
        return [seed for seeds in served.triton.seeds()[1:] for seed in seeds]

    assert drawn("--seed", 5) == drawn("--seed", 5)
    assert len({*map(tuple, (drawn() for _ in range(8)))}) > 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_flipped_bit(verify: Verify, folder: Path, format: str) -> None:
    name = {"webdataset": "shard-000001.tar", "hdf5": "shard-000001.h5", "zarr": "shard-000001.zarr"}.get(
        format, f"shard-000001-{format}"
    )
    path = folder / name
    path = max(filter(Path.is_file, path.rglob("*")), key=lambda file: file.stat().st_size) if path.is_dir() else path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    status, out, (fault,) = verify("--hashes-only")
    assert status == 1
    assert "1 fault; read " in out
    assert fault.startswith(f"brats-ldm: {path.relative_to(folder)} is not what was written (its SHA-256 is ")


def test_files_that_are_missing_or_too_many(verify: Verify, folder: Path) -> None:
    (folder / "shard-000000-png" / "slice_seed000000002.png").unlink()
    (folder / "shard-000001.json").unlink()
    (folder / "notes.txt").write_text("mine")
    (folder / "shard-000002-png" / "more.png").write_bytes(b"")
    status, out, faults = verify("--hashes-only")
    assert status == 1
    assert "4 faults; read " in out
    assert "in 2 of 3 shards" in out
    assert [fault.removeprefix("brats-ldm: ").split(" (")[0] for fault in faults] == [
        "shard-000000-png/slice_seed000000002.png cannot be read",
        "shard-000001.json cannot be read",
        "notes.txt does not belong here: move it away",
        "shard-000002-png/more.png does not belong here: move it away",
    ]


def test_a_mark_that_was_changed(verify: Verify, folder: Path) -> None:
    path = folder / "shard-000001.json"
    path.write_text(path.read_text().replace('"shard": 1', '"shard": 2'))
    _, _, (fault,) = verify("--hashes-only")
    assert fault.startswith("brats-ldm: shard-000001.json is not what was written")


def rewritten(folder: Path, name: str, **changes: object) -> None:
    """A mark with other content and the hashes that fit it, as whoever writes a folder by hand can make them."""
    mark, manifest = folder / name, folder / "manifest.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), **changes}))
    document = json.loads(manifest.read_text())
    document["shards"][name] = hashlib.sha256(mark.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(document))


@pytest.mark.parametrize("path", ["../secret", "{folder}/../secret", "shard-000001-png/../../secret", "..\\secret"])
def test_no_path_of_a_mark_leaves_the_folder(verify: Verify, folder: Path, path: str) -> None:
    """Its hash would be the right one: who reads the file finds no fault."""
    secret = folder.parent / "secret"
    secret.write_text("secret")
    files = json.loads((folder / "shard-000001.json").read_text())["files"]
    entry = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    rewritten(folder, "shard-000001.json", files={**files, path.format(folder=folder): entry})
    status, out, (fault,) = verify("--hashes-only")
    assert (status, "2 of 3 shards" in out) == (1, True)
    assert fault.startswith(f"brats-ldm: {folder}/shard-000001.json is damaged, or of another plan: remove it")


def test_a_mark_of_fewer_files(verify: Verify, folder: Path) -> None:
    """A format that is left out is missed, also when its file is gone and all hashes fit."""
    files = json.loads((folder / "shard-000001.json").read_text())["files"]
    (folder / "shard-000001.tar").unlink()
    rewritten(folder, "shard-000001.json", files={name: files[name] for name in files if not name.endswith(".tar")})
    _, _, (fault,) = verify("--hashes-only")
    assert "shard-000001.json is damaged, or of another plan" in fault


@pytest.mark.parametrize(
    "changes", [{"files": []}, {"files": {"shard-000000.tar": 3}}, {"seeds": [1]}, {"model_digest": 1}]
)
def test_a_mark_of_something_else(verify: Verify, folder: Path, changes: dict[str, object]) -> None:
    rewritten(folder, "shard-000001.json", **changes)
    _, _, (fault,) = verify("--hashes-only")
    assert "shard-000001.json is damaged, or of another plan" in fault


def test_a_manifest_of_fewer_hashes(verify: Verify, folder: Path) -> None:
    manifest = folder / "manifest.json"
    document = json.loads(manifest.read_text())
    del document["shards"]["shard-000001.json"]
    manifest.write_text(json.dumps(document))
    _, _, (fault,) = verify("--hashes-only")
    assert fault == "brats-ldm: manifest.json has not the hashes of all shards: give the same bulk command again"
    document["summary"]["../secret"] = "0" * 64
    manifest.write_text(json.dumps(document))
    assert verify("--hashes-only")[2] == [fault]


def test_what_is_no_file_is_not_read(verify: Verify, folder: Path) -> None:
    """A device would never end."""
    (folder / "shard-000001.tar").unlink()
    (folder / "shard-000001.tar").symlink_to("/dev/zero")
    _, _, (fault,) = verify("--hashes-only")
    assert fault.startswith("brats-ldm: shard-000001.tar cannot be read (it is no file)")


def test_a_package_that_is_missing_is_said_before_the_long_part(
    verify: Verify, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    words = "brats-ldm: h5py is not installed: install it with pip install h5py"
    assert verify() == (1, "", [words])
    assert verify("--hashes-only")[0] == 0


def test_an_unfinished_run(verify: Verify, folder: Path) -> None:
    manifest = folder / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({key: document[key] for key in document if key not in ("summary", "shards")}))
    for name in ("summary.html", "contact_sheet.png", "shard-000002.json"):
        (folder / name).unlink()
    left = folder / ".run.00000000.tmp" / "lock"  # of a killed run
    left.parent.mkdir()
    left.touch()
    status, _, faults = verify("--hashes-only")
    assert status == 1
    assert any("the run has not ended: the same bulk command makes the rest" in fault for fault in faults)
    assert not any("lock" in fault for fault in faults)


def test_many_faults_are_counted(verify: Verify, folder: Path) -> None:
    for number in range(30):
        (folder / f"{number}.txt").touch()
    _, out, faults = verify("--hashes-only")
    assert len(faults) == 21
    assert faults[-1] == "brats-ldm: and 10 more"
    assert "30 faults; read " in out


def test_an_image_that_the_server_makes_otherwise(verify: Verify, served: Served, folder: Path) -> None:
    """The planes of the fake server are dark or white: a level further in the grey ones is found in each format."""
    shutil.rmtree(folder)
    outputs = served.triton.outputs

    def moved(by: float) -> None:
        def changed(tensors: dict[str, np.ndarray], asked: list[str]) -> dict[str, np.ndarray]:
            made = outputs(tensors, asked)
            if "image" in made:
                made["image"] = (0.5 + made["image"] / 100 + by).astype(np.float32)
            return made

        served.triton.outputs = changed  # type: ignore[method-assign]

    moved(0)
    options = ("--count", 3, "--format", ",".join(FORMATS))
    assert main(arguments(folder, served.url, *options)) == 0
    moved(0.01)
    status, _, faults = verify("--sample", 2, "--seed", 0)
    assert status == 1
    faults = [fault for fault in faults if "seed" in fault]
    assert len(faults) == 2 * (len(FORMATS) + 1)
    assert "brats-ldm: seed 1: the server makes another image; a GPU or another processor needs a tolerance" in faults
    assert {f"brats-ldm: seed 1: its {format} is off by 0.01" for format in ("hdf5", "zarr", "nifti")} < set(faults)
    assert verify("--tolerance", 0.009)[0] == 1
    assert verify("--tolerance", 0.011)[0] == 0
    moved(1e-6)
    assert verify()[0] == 1
    assert verify("--tolerance", 2e-6)[0] == 0


def test_a_wrong_image_with_a_right_hash(served: Served, folder: Path) -> None:
    """As of a writer with a fault: only the sample can find it."""
    import h5py

    with h5py.File(folder / "shard-000000.h5", "r+") as file:
        file["image"][1, 3, 4] += 0.25
    with Client(served.url) as client:
        assert check_sample(client, folder, 10).faults == ["seed 1: its hdf5 is off by 0.25"]


def test_damage_that_libraries_cannot_read(served: Served, folder: Path) -> None:
    for path in (*folder.glob("shard-000000*/*"), *folder.glob("*.tar"), *folder.glob("*.h5")):
        if path.is_file():
            path.write_bytes(b"nothing")
    shutil.rmtree(folder / "shard-000000.zarr" / "image")
    with Client(served.url) as client:
        faults = check_sample(client, folder, 10).faults
    assert len(faults) >= 10
    assert all("cannot be read" in fault for fault in faults)
    assert all(len(fault.splitlines()) == 1 for fault in faults)


def test_other_weights_after_the_first_answer(verify: Verify, served: Served) -> None:
    """As of the second of two servers: the images are not to blame."""

    def other(seeds: list[int], context: grpc.ServicerContext) -> None:
        served.triton.digest = "sha256:other" if len(seeds) > 1 else DIGEST

    served.triton.behave = other
    status, out, errors = verify()
    assert (status, out) == (1, "")
    assert "the server has the weights sha256:other" in errors[-1]


def test_other_weights_and_other_folders(verify: Verify, served: Served, folder: Path, tmp_path: Path) -> None:
    served.triton.digest = "sha256:other"
    status, out, (error,) = verify()
    assert (status, out) == (1, "")
    assert "the server has the weights sha256:other, and the images are of sha256:abab" in error
    shutil.rmtree(folder)
    folder.mkdir()
    words = f"brats-ldm: {folder} has no manifest.json: give a folder of `brats-ldm bulk`"
    assert verify("--hashes-only")[2] == [words]


def test_a_missing_package_is_no_fault_of_the_folder(verify: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    status, out, (error,) = verify("--sample", 10)
    assert (status, out) == (1, "")
    assert error == "brats-ldm: h5py is not installed: install it with pip install h5py"
    assert verify("--hashes-only")[0] == 0


@pytest.mark.parametrize("more", [("--sample", "0"), ("--tolerance", "-1"), ("--tolerance", "nan")])
def test_usage_errors(tmp_path: Path, more: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["verify", str(tmp_path), *more])
    assert exit.value.code == 2
