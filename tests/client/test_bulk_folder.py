"""What several processes do to each other in one folder of `brats-ldm bulk`."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from brats_ldm_client import Client, InvalidRequest
from brats_ldm_client.bulk import make_all, make_shard, model_of, plan_for
from brats_ldm_client.bulk.plan import read_manifest, write_manifest
from brats_ldm_client.bulk.workplace import put, tidy, workplace
from support.bulk import tree
from support.fake_triton import Served


def test_another_plan_that_begins_meanwhile_is_left_alone(served: Served, tmp_path: Path) -> None:
    """Another process writes its manifest while this one waits for its first image."""
    folder = tmp_path / "out"
    with Client(served.url) as client:
        plan = plan_for(model_of(client), 4, "png")
        other = replace(plan, steps=20)
        for make in (partial(make_all, client, plan, folder), partial(make_shard, client, plan, folder, 0)):
            shutil.rmtree(folder, ignore_errors=True)
            served.triton.behave = lambda seeds, context: write_manifest(folder, other)
            with pytest.raises(InvalidRequest, match="holds a run with steps 20, not 50"):
                make()
            assert read_manifest(folder)["plan"] == other
            assert {path.name for path in folder.iterdir()} == {"manifest.json"}


def test_another_run_that_begins_meanwhile_is_left_alone(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with contextlib.ExitStack() as stack, Client(served.url) as client:
        plan = plan_for(model_of(client), 4, "png")
        served.triton.behave = lambda seeds, context: stack.enter_context(workplace(folder, "run")) and None
        with pytest.raises(InvalidRequest, match="another run is writing to"):
            make_all(client, plan, folder)
        assert [path.name.split(".")[1] for path in folder.iterdir()] == ["run"]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    with workplace(tmp_path, "shard") as place:
        for name in ("old", "new"):
            (place / name / "deep").mkdir(parents=True)
            (place / name / "deep" / "file").write_text(name)
            put(place / name, tmp_path / "shard")
    assert tree(tmp_path) == {"shard/deep/file": b"new"}
    assert tidy(tmp_path) == []


def test_a_folder_that_several_processes_put_at_once(tmp_path: Path) -> None:
    """As two that make the same shard: none fails, and one of the folders is there, whole."""

    def puts(number: int) -> None:
        with workplace(tmp_path, "shard") as place:
            for _ in range(50):
                (place / "made").mkdir()
                for name in "ab":
                    (place / "made" / name).write_text(str(number))
                put(place / "made", tmp_path / "shard")

    with ThreadPoolExecutor(4) as pool:
        assert len([*pool.map(puts, range(4))]) == 4
    assert len(set(tree(tmp_path).values())) == 1
    assert set(tree(tmp_path)) == {"shard/a", "shard/b"}


def test_a_folder_that_another_process_takes_away_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the system's "not empty" and what follows there is nothing in the way any more."""
    replace_file = os.replace

    def taken(made: Path, path: Path) -> None:
        try:
            replace_file(made, path)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                shutil.rmtree(path)
            raise

    monkeypatch.setattr(os, "replace", taken)
    with workplace(tmp_path, "shard") as place:
        for name in ("old", "new"):
            (place / name).mkdir()
            (place / name / "file").write_text(name)
            put(place / name, tmp_path / "shard")
    assert tree(tmp_path) == {"shard/file": b"new"}
