"""Snapshots: what goes in comes out, and what was tampered with is refused."""

import itertools
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from training import checkpoint
from training.checkpoint import (
    CheckpointError,
    Snapshot,
    load_snapshot,
    load_state,
    save_snapshot,
    save_state,
)
from training.config import Config
from training.files import remove_temporary_files


def test_snapshot_round_trip_and_tampering(small_snapshot, tmp_path) -> None:
    save_snapshot(small_snapshot, tmp_path)
    loaded = load_snapshot(tmp_path)
    assert loaded.config == small_snapshot.config
    assert loaded.scale_factor == small_snapshot.scale_factor
    assert all(torch.equal(loaded.unet[name], tensor) for name, tensor in small_snapshot.unet.items())
    assert not list(tmp_path.glob("*.tmp"))

    path = tmp_path / "unet.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"unet\.safetensors: missing, or not the file"):
        load_snapshot(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, "format 9"),
        ({"sha256": {"../x": ""}}, "unknown"),
        ({"sha256": {}}, "names no autoencoder"),
    ],
)
def test_a_foreign_snapshot_is_refused(small_snapshot, tmp_path, change, message) -> None:
    save_snapshot(Snapshot(small_snapshot.config, small_snapshot.autoencoder), tmp_path)
    record = json.loads((tmp_path / "snapshot.json").read_text())
    (tmp_path / "snapshot.json").write_text(json.dumps(record | change))
    with pytest.raises(CheckpointError, match=message):
        load_snapshot(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no JSON"), ("[]", "format None"), ('{"format_version": 1}', "has no config, scale")],
)
def test_what_is_no_snapshot_is_said_with_its_path(tmp_path, content, message) -> None:
    (tmp_path / "snapshot.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"snapshot\.json.* {message}"):
        load_snapshot(tmp_path)


MOMENTS = 10  # of a save: two removals, a folder twice, weights, a record and again its folder, two renames, a removal


class Killed(BaseException):
    """What ends a process, if it could be caught."""


def numbered(number: int) -> Snapshot:
    return Snapshot(Config(), {"weight": torch.tensor([float(number)])})


def number_of(folder: Path) -> int:
    return int(load_snapshot(folder).autoencoder["weight"].item())


def killed_at(patch: pytest.MonkeyPatch, moment: int) -> None:
    """Die before the file operation number `moment` of a save; a removal dies with one file of several gone."""
    operations = itertools.count()

    def dying(function, half=None):
        def call(*arguments, **options):
            if (operation := next(operations)) >= moment:  # the dead clean nothing up
                if half and operation == moment:
                    half(*arguments)
                raise Killed
            return function(*arguments, **options)

        return call

    def remove_one_file(folder: Path, **_) -> None:
        for path in sorted(folder.glob("*"))[:1]:
            path.unlink()

    patch.setattr(Path, "rename", dying(Path.rename))
    patch.setattr(Path, "mkdir", dying(Path.mkdir))
    patch.setattr(shutil, "rmtree", dying(shutil.rmtree, remove_one_file))
    patch.setattr(checkpoint, "save_file", dying(checkpoint.save_file))
    patch.setattr(checkpoint, "write_text", dying(checkpoint.write_text))


def save_and_die(number: int, folder: Path, moment: int) -> bool:
    """Whether the save came to its end before."""
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        killed_at(patch, moment)
        save_snapshot(numbered(number), folder)
        return True
    return False


@pytest.mark.slow
def test_there_is_a_whole_snapshot_whenever_a_run_dies(tmp_path, monkeypatch) -> None:
    """A death between the two renames left the only whole one as .old, which the next save deleted before it wrote.

    Each moment of a second save, and after it each moment of a third; in every other case somebody reads in between.
    """
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what a process did lives on without it
    ended = {}
    for case, (first, second) in enumerate(itertools.product(range(MOMENTS + 1), repeat=2)):
        folder = tmp_path / f"run{case}"
        save_snapshot(numbered(1), folder)
        ended[first] = save_and_die(2, folder, first)
        if case % 2:
            assert number_of(folder) in ((2,) if ended[first] else (1, 2))
        last = save_and_die(3, folder, second)
        assert number_of(folder) in ((3,) if last else (1, 2, 3))
        save_snapshot(numbered(4), folder)
        assert number_of(folder) == 4
        assert not list(tmp_path.glob(f".{folder.name}.*"))
    assert ended == {moment: moment == MOMENTS for moment in range(MOMENTS + 1)}


def test_a_reader_in_the_middle_of_a_save_does_not_end_it(tmp_path, monkeypatch) -> None:
    """It finds no folder and does the second rename, which the writer then finds done."""
    folder = tmp_path / "snapshot"
    save_snapshot(numbered(1), folder)
    rename, read = Path.rename, []

    def slow_rename(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if target.suffix == ".old":
            read.append(number_of(folder))
        return moved

    monkeypatch.setattr(Path, "rename", slow_rename)
    save_snapshot(numbered(2), folder)
    assert read == [2]
    assert number_of(folder) == 2


def test_a_torn_resume_state_is_named_with_what_to_do(tmp_path) -> None:
    path = tmp_path / "state.pt"
    assert load_state(path) is None
    save_state({"iteration": 3, "weight": torch.arange(1000.0)}, path)
    assert load_state(path)["iteration"] == 3
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=rf"{path} cannot be read .*: delete it to begin again .* new --out$"):
            load_state(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="is no resume state of a training run"):
        load_state(path)


@pytest.mark.parametrize("links", [True, False])
def test_the_state_before_a_torn_one_takes_its_place(tmp_path, capsys, monkeypatch, links) -> None:
    """Also on a file system without links, and after deaths that left links to the state, which a run removes."""
    path, before = tmp_path / "state.pt", tmp_path / "state_before.pt"
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (tmp_path / "no links here").stat())
    for iteration in (1, 2, 3):
        save_state({"iteration": iteration}, path)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert load_state(path, first=False) == {"iteration": 2}  # one process of several: it neither writes nor speaks
        assert (path.stat().st_size, capsys.readouterr().err) == (size, "")
        assert load_state(path) == {"iteration": 2}
        line = capsys.readouterr().err
        assert line.startswith(f"WARNING: {path} cannot be read (")
        assert line.endswith("from the state before it, of iteration 2; what came after is trained again\n")
        assert path.read_bytes() == before.read_bytes()
        if links:
            (tmp_path / f".state_before.pt.{size:08x}.tmp").hardlink_to(path)
        save_state({"iteration": 3}, path)
        assert (load_state(path), load_state(before)) == ({"iteration": 3}, {"iteration": 2})
    remove_temporary_files(tmp_path)
    assert set(tmp_path.iterdir()) == {path, before}
    assert (load_state(path), load_state(before)) == ({"iteration": 3}, {"iteration": 2})
    path.write_bytes(b"")
    before.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"state.pt .*it is empty.*_before.pt .*it is empty.*: delete both to"):
        load_state(path)
