"""The reliability run: its command, and that a server that hangs or errs costs it neither time nor memory."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from reliability.__main__ import SCENARIOS, Counts, main, must_be_none
from reliability.bounds import OutOfBounds, bounded
from reliability.load import KEPT_ERRORS, Load
from support.common import ROOT

IMAGES = np.zeros((2, 240, 240), np.float32)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.slow
def test_the_command_runs_from_any_folder(tmp_path: Path) -> None:
    """`make test-reliability` in small: it could once not be started where nothing was on the path by chance."""
    command = [sys.executable, str(ROOT / "tests" / "reliability"), "--amount=0.005", "--out", str(tmp_path / "out")]
    command += ["--only=networks that fail", "--only=early leavers"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Nothing lost, nothing wrong, nothing left." in done.stdout
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.strip() in done.stdout
    assert len(re.findall(r"\| (networks that fail|early leavers) \(\d+ s\)", table)) == 2


def test_every_scenario_can_be_asked_for() -> None:
    command = [sys.executable, str(ROOT / "tests" / "reliability"), "--help"]
    shown = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert all(name in shown for name in SCENARIOS)


def test_a_load_on_a_server_that_hangs_ends_when_it_is_told(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reliability.load.STOP_SECONDS", 0.5)
    before, began = threading.active_count(), time.monotonic()
    with Load(silent, [1, 2], IMAGES):
        time.sleep(0.5)
    assert time.monotonic() - began < 20, "a request has 120 s"
    deadline = time.monotonic() + 15
    while threading.active_count() > before + 4:  # gRPC's own threads of four channels
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_load_on_a_server_that_errs_for_ever_keeps_a_few_words() -> None:
    """Exceptions hold on to their requests with all images: 24 GB were seen."""
    with Load("127.0.0.1:1", [1, 2], IMAGES, threads=8, retry=0) as load:
        deadline = time.monotonic() + 20
        while load.lost <= 2 * KEPT_ERRORS:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert load.images == 0
    assert len(load.errors) == KEPT_ERRORS
    assert all(type(error) is str and "127.0.0.1:1" in error for error in load.errors)


@pytest.mark.slow
def test_a_run_that_takes_too_long_or_too_much_is_ended_wherever_it_waits() -> None:
    began = time.monotonic()
    with pytest.raises(OutOfBounds, match=r"not done after 0\.3 s"), bounded(0.3, 1e6):
        threading.Event().wait(30)
    with pytest.raises(OutOfBounds, match=r"holds \d+ MB, more than 1"), bounded(60, 1):
        threading.Event().wait(30)
    assert time.monotonic() - began < 20
    with bounded(60, 1e6):
        pass


@pytest.mark.parametrize("name", ["failed: not done after 1200 s", "requests lost", "images wrong", "other errors: x"])
def test_what_must_not_be_ends_the_run_with_1(name: str) -> None:
    assert must_be_none(name)


def test_a_scenario_that_fails_without_a_word_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(amount: float, folder: Path, out: Path) -> Counts:
        raise AssertionError

    monkeypatch.setitem(SCENARIOS, "load held", fail)
    monkeypatch.setitem(SCENARIOS, "bad input", lambda amount, folder, out: {"inputs tried": 7})
    assert main(["--only", "load held", "--only", "bad input", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "| failed: AssertionError | 1 | **wrong** |" in shown
    assert "| inputs tried | 7 |  |" in shown
    assert shown.endswith("wrong: load held, failed: AssertionError: 1\n")
