"""Draining: the models and the command, which use the same folder; and the end of `python -m server`."""

import os
import runpy
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from mri_ldm import drain
from mri_ldm.drain import Drain
from mri_ldm.errors import Draining
from mri_ldm.job_queue import JobQueue
from reliability.drain import drains, grace_over
from support.batching import Recorder, make_job
from support.common import ROOT
from support.container_machine import SCRIPT, Machine
from support.faulty_networks import write_faulty

pytestmark = pytest.mark.slow

TRITON_WITH_A_REQUEST = """#!{python}
import signal, sys, time
sys.path.insert(0, "{code}")
from mri_ldm.drain import Drain

def say(text):
    print(text, flush=True)

def end(number, frame):
    say("terminated")
    sys.exit(0)

signal.signal(signal.SIGTERM, end)
model = Drain("mri_ldm_0_0")
say("serving")
while not model.asked():
    time.sleep(0.02)
say("asked")
time.sleep(0.3)
say("finished")
model.done()
time.sleep(60)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drain:
    monkeypatch.setenv(drain.VARIABLE, str(tmp_path))
    return Drain("mri_ldm_0_0")


def test_the_command_waits_until_the_model_has_finished(model: Drain, tmp_path: Path, capsys) -> None:
    assert not model.asked()

    def finish() -> None:
        while not model.asked():
            time.sleep(0.01)
        time.sleep(0.3)
        model.done()

    thread = threading.Thread(target=finish)
    thread.start()
    began = time.monotonic()
    assert drain.main([str(tmp_path), "--grace=10"]) == 0
    assert 0.3 <= time.monotonic() - began < 10
    thread.join()
    assert drain.main([str(tmp_path)]) == 0, "asking again does no harm"
    assert capsys.readouterr().out == "drained\n" * 2


def test_a_folder_that_was_cleaned_is_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd-tmpfiles cleans /tmp: an instance without its file would not be waited for."""
    monkeypatch.setenv(drain.VARIABLE, str(folder := tmp_path / "drain"))
    model = Drain("mri_ldm_0_0")
    shutil.rmtree(folder)
    assert not model.asked()
    assert folder.stat().st_mode & 0o077 == 0
    assert drain.drain(folder, grace=0) == ["mri_ldm_0_0"]
    assert model.asked()
    model.done()
    assert drain.drain(folder, grace=0) == []


def test_the_command_names_who_has_not_finished_in_time(model: Drain, tmp_path: Path, capsys) -> None:
    assert drain.main([str(tmp_path), "--grace=0.1"]) == 1
    assert model.asked()
    assert capsys.readouterr().err == "error: not drained within 0.1 s: mri_ldm_0_0\n"


def test_the_command_can_have_what_runs_refused_too(model: Drain, tmp_path: Path) -> None:
    assert drain.main([str(tmp_path), "--grace=0.1"]) == 1
    assert not model.time_is_over()
    assert drain.main([str(tmp_path), "--grace=0.1", "--refuse"]) == 1
    assert model.asked()
    assert model.time_is_over()


def test_a_front_model_is_not_ready_while_it_drains(model: Drain, tmp_path: Path, monkeypatch) -> None:
    """Triton from 26.03 on asks `is_ready`; 24.10 does not, so it is asked here. No network has one."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", MagicMock())
    kind = runpy.run_path(str(ROOT / "model_repository" / "mri_ldm" / "1" / "model.py"))["TritonPythonModel"]
    front = kind.__new__(kind)
    front._drain = model
    assert front.is_ready() is True
    (tmp_path / "drain").touch()
    assert front.is_ready() is False
    for name in ("mri_ldm.reply", "mri_ldm.responder", "mri_ldm.networks", "mri_ldm.metrics"):
        sys.modules.pop(name, None)
    backends = list((ROOT / "server" / "backends").glob("*/model.py"))
    assert len(backends) == 4
    assert not [path for path in backends if "def is_ready" in path.read_text()], "every call of it would ask"


def test_a_model_that_died_is_not_waited_for(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    (tmp_path / f"mri_ldm_0_0.{dead.pid}.serving").touch()
    deadline = time.monotonic() + 10
    while drain.drain(tmp_path, grace=0):
        assert time.monotonic() < deadline
    assert dead.wait() == 0


def test_without_a_folder_nothing_can_be_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.delenv(drain.VARIABLE, raising=False)
    model = Drain("mri_ldm_0_0")
    assert model.poll_seconds is None, "an idle loop must not wake up for it"
    assert not model.asked()
    model.done()
    assert drain.main([]) == 1
    assert drain.main([str(tmp_path / "absent")]) == 1
    assert drain.VARIABLE in capsys.readouterr().err


def test_a_closed_queue_lets_nobody_in_and_keeps_who_is_there() -> None:
    queue = JobQueue(max_rows=10, max_row_steps=1000)
    queue.submit(make_job(Recorder([0]), [(1, "ddim", 5, 0.0)]))
    queue.close("stopping")
    with pytest.raises(Draining, match="stopping: try again in about 5 s"):
        queue.submit(make_job(Recorder([0]), [(2, "ddim", 5, 0.0)]))
    assert queue.rows == 1


def test_a_stop_lets_running_requests_finish_refuses_others_and_leaves_nothing(tmp_path: Path) -> None:
    counts = drains(write_faulty(tmp_path / "repository"))
    assert counts["new requests refused"] == 1
    assert counts["slowest exit after the last row, s"] < 10, "30 s are given to what is still there"
    for name in ("requests lost", "images wrong", "processes left", "regions left", "ports left"):
        assert counts[name] == 0, counts


def test_a_request_that_outlives_the_grace_period_is_told_to_try_again(tmp_path: Path) -> None:
    counts = grace_over(write_faulty(tmp_path / "repository"), grace=0.5)
    assert counts["answer after SIGTERM, s"] < 10, "it would run for 100"
    assert counts["other answers"] == 0, "refused by the loop itself: Triton from 25.05 on would let it go on"
    assert counts["exit after the answer, s"] < 10
    assert counts["processes left"] == counts["regions left"] == counts["ports left"] == 0


def test_docker_stop_drains_the_models_before_it_ends_triton(tmp_path: Path) -> None:
    """The models' side is the repository's own drain.py, in a stand-in for tritonserver."""
    machine = Machine(tmp_path)
    machine.prepare()
    machine.program(
        "tritonserver", TRITON_WITH_A_REQUEST.format(python=sys.executable, code=machine.models / "mri_ldm/1")
    )
    folder = machine.folder / "drain"
    env = {**os.environ, "PATH": f"{machine.folder}:/usr/bin:/bin", "TRTEXEC": str(machine.folder / "trtexec")}
    command = [sys.executable, str(SCRIPT), "serve", str(machine.models), "--grace=20"]
    env["BRATS_LDM_DRAIN_FOLDER"] = str(folder)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout
        assert serving.stdout.readline() == "serving\n"
        assert folder.stat().st_mode & 0o077 == 0, "nobody else may ask"
        serving.terminate()  # what `docker stop` does
        assert serving.stdout.read() == "asked\nfinished\ndrained\nterminated\n"
        assert serving.wait(20) == 0
