"""What a command may meet around it: no user, closed streams, a full disk, torn files, few descriptors, odd paths."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import summary

from benchmarks.harness.sections import recorded
from export.repository import RepositoryError, export_repository
from support.common import ROOT, SMALL, no_file_above, tracked, write_toml
from training import curves, plot, train_autoencoder
from training.checkpoint import load_snapshot, save_snapshot, save_state
from training.event_writer import EventWriter
from training.files import NotWritten, duplicate, is_utf8, whole_folder, write_npz, write_text
from training.latents import cached_latents
from training.networks import build_autoencoder
from training.pictures import save_picture
from training.processes import joined

NOT_UTF8 = os.fsdecode(b"fl\xe4che")


# --- streams


PRINTS = """
import sys
from training.cli import run_command
def main():
    assert open(sys.argv[1]).fileno() > 2, "what libraries print to standard error would land in this file"
    for _ in range(3000):
        print("fl\\udce4che \\u2588")
        print("\\u2588", file=sys.stderr)
    return 7
run_command(main)
"""


@pytest.mark.parametrize("shell", ["{}", "{} 1>&-", "{} 2>&-", "{} 0<&- 1>&- 2>&-", "{} 1>/dev/full 2>/dev/full"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_printing_never_decides_the_exit_status(shell: str, encoding: str) -> None:
    command = shell.format(f'"{sys.executable}" -c "$PRINTS" "{__file__}"')
    env = os.environ | {"PRINTS": PRINTS, "PYTHONIOENCODING": encoding}
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, env=env, capture_output=True, check=False)
    assert done.returncode == 7, done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_reader_that_goes_away_does_not_end_the_work() -> None:
    """As `| head -1` does: the rest is dropped, the status is the command's."""
    with subprocess.Popen([sys.executable, "-c", PRINTS, __file__], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 7


def test_every_command_settles_its_streams_and_writes_through_one_helper() -> None:
    for path in (path for folder in ("training", "export", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text()
        if "\nif __name__" in text and path.name != "litserve_server.py":  # a rival's, started by its client
            assert text.endswith("    run_command(main)\n"), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and node.attr in ("write_text", "write_bytes"):
                assert ast.unparse(node.value) == "temporary", f"{path}:{node.lineno}: use training.files"


# --- a full disk


WRITERS: dict[str, Callable[[Path], object]] = {
    "state.pt": lambda path: save_state({"iteration": 1, "weights": torch.zeros(5000)}, path),
    "note.md": lambda path: write_text(path, "x" * 5000),
    "images.npz": lambda path: write_npz(path, images=np.random.default_rng(0).random(5000)),
    "picture.png": lambda path: save_picture(np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_is_named_and_what_was_there_is_kept(tmp_path, name: str) -> None:
    path = tmp_path / name
    path.write_text("before")
    with no_file_above(1000), pytest.raises(NotWritten) as raised:
        WRITERS[name](path)
    assert str(raised.value) == f"{path} could not be written: File too large; the file before it is kept"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {name: "before"}
    WRITERS[name](path)
    assert path.stat().st_size > 1000


def test_a_snapshot_that_cannot_be_written_leaves_the_one_before(small_snapshot, tmp_path) -> None:
    folder = tmp_path / "snapshot"
    save_snapshot(small_snapshot, folder)
    file = tmp_path / ".snapshot.new" / "autoencoder.safetensors"
    words = f"{file} could not be written: File too large; {folder} is as it was$"
    with no_file_above(1000), pytest.raises(NotWritten, match=words):
        save_snapshot(replace(small_snapshot, scale_factor=2.0), folder)
    assert load_snapshot(folder).scale_factor == small_snapshot.scale_factor
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~os.umask(os.umask(0o022))}


def test_a_second_name_may_be_given_twice(tmp_path) -> None:
    """Linux leaves both names alone where one of them is to take the place of the other."""
    (tmp_path / "one").write_text("content")
    for _ in range(2):
        duplicate(tmp_path / "one", tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    write_text(tmp_path / "one", "other content")
    assert (tmp_path / "two").read_text() == "content"


def test_folders_with_the_names_of_copies_stay(small_snapshot, tmp_path) -> None:
    for name in ("snapshot.new", "snapshot.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    for _ in range(2):
        save_snapshot(small_snapshot, tmp_path / "snapshot")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshot", "snapshot.new", "snapshot.old"]
    assert len(list(tmp_path.rglob("thesis.txt"))) == 2


def test_a_folder_may_be_a_link_or_the_one_that_one_is_in(small_snapshot, tmp_path, monkeypatch) -> None:
    (tmp_path / "link").symlink_to("disk")
    for scale_factor in (1.0, 2.0):
        save_snapshot(replace(small_snapshot, scale_factor=scale_factor), tmp_path / "link")
    assert (tmp_path / "link").readlink() == Path("disk")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    monkeypatch.chdir(tmp_path / "disk")
    assert load_snapshot(Path()).scale_factor == 2.0


def test_half_an_event_is_taken_back(tmp_path) -> None:
    """A reader gives up at half of one, and with it at all that come after."""
    file = EventWriter(tmp_path / "events", purge_step=1)
    file.add(1, summary.scalar("loss", 1.0))
    with no_file_above(1000), pytest.raises(NotWritten, match=r"tfevents.* could not be written: File too large"):
        file.add(2, summary.scalar("x" * 5000, 2.0))
    file.add(3, summary.scalar("loss", 3.0))
    assert curves.read_scalars(tmp_path)["loss"][1].tolist() == [1.0, 3.0]


def test_a_folder_that_cannot_be_copied_is_one_line(tmp_path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "large").write_bytes(bytes(5000))
    refused = pytest.raises(NotWritten, match=r"^\[Errno 27\] File too large: .*large'$")
    with no_file_above(1000), refused, whole_folder(tmp_path / "out") as new:
        shutil.copytree(tmp_path / "source", new, dirs_exist_ok=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.slow
def test_a_run_says_from_where_it_goes_on_and_does_to_the_same_bytes(tiny, small_data, tmp_path) -> None:
    stage = replace(tiny.autoencoder_training, epochs=1, volumes_per_batch=1, checkpoint_every=1)  # five iterations
    config = replace(tiny, autoencoder_training=stage)
    full, whole = tmp_path / "full", tmp_path / "whole"
    train_autoencoder.train(config, small_data, whole)
    shutil.copytree(whole, full)
    (full / "state.pt").write_bytes((full / "state_before.pt").read_bytes())  # one iteration to go
    with no_file_above(200_000), pytest.raises(NotWritten) as raised:
        train_autoencoder.train(config, small_data, full)
    state = full / "state.pt"
    words = f"{state} could not be written: File too large; the file before it is kept. {state} holds iteration 4; "
    assert str(raised.value) == words + "give the same command when there is room"
    train_autoencoder.train(config, small_data, full)
    for name in ("autoencoder.safetensors", "snapshot.json"):
        assert (full / "snapshot" / name).read_bytes() == (whole / "snapshot" / name).read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_torn_record_is_measured_again(tmp_path) -> None:
    path = tmp_path / "section.json"
    assert not recorded(path)
    for text, whole in (("", False), ('{"result": 1', False), ('{"error": "x"}', False), ('{"result": 1}', True)):
        path.write_text(text)
        assert recorded(path) is whole


# --- torn files


def test_torn_latents_are_encoded_again(tiny, small_data, tmp_path, capsys) -> None:
    path = tmp_path / "latents.safetensors"
    torch.manual_seed(0)
    autoencoder = build_autoencoder(tiny.autoencoder).eval()

    def latents() -> dict[str, torch.Tensor]:
        cached = cached_latents(autoencoder, small_data, SMALL, joined(), path, "key")
        return {name: tensor.clone() for name, tensor in cached.items()}  # they are mapped from the file, which is torn

    first, content = latents(), path.read_bytes()
    for torn in (b"", content[:100], content[:-1]):
        path.write_bytes(torn)
        again = latents()
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert "latents.safetensors cannot be read" in capsys.readouterr().err
        assert path.read_bytes() == content


# --- paths and options


def test_a_path_that_is_not_utf8_is_read_or_refused(small_snapshot, tmp_path) -> None:
    folder = tmp_path / NOT_UTF8
    assert (is_utf8(tmp_path / "fläche"), is_utf8(folder)) == (True, False)
    save_snapshot(small_snapshot, folder)
    assert load_snapshot(folder).config == small_snapshot.config
    EventWriter(folder / "events", purge_step=1).add(1, summary.scalar("loss", 1.0))
    plot.plot([folder], None)
    assert (folder / "curves.png").is_file()
    with pytest.raises(RepositoryError, match="is not UTF-8"):
        export_repository(small_snapshot, folder / "repository", "x")


NAMELESS = """
import pwd, resource, runpy, sys
pwd.getpwuid = {}.__getitem__  # no entry for any user
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
runpy.run_module("training.train_autoencoder", run_name="__main__")
"""


@pytest.mark.slow
def test_training_needs_no_user_no_streams_and_few_descriptors(tiny, small_data, tmp_path) -> None:
    """As of `docker run -u 12345`, from a service without streams, with 32 descriptors, into a folder of odd bytes."""
    stage = replace(tiny.autoencoder_training, epochs=1, checkpoint_every=1)
    file = write_toml(replace(tiny, autoencoder_training=stage), tmp_path / "tiny.toml")
    out = tmp_path / NOT_UTF8
    unset = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    options = [b"--config", file.encode(), b"--data", os.fsencode(small_data), b"--out"]
    command = [os.fsencode(sys.executable), b"-c", NAMELESS.encode(), *options, os.fsencode(out)]
    streams = [b"sh", b"-c", b'"$@" 0<&- 1>&- 2>&-', b"sh"]
    done = subprocess.run([*streams, *command], cwd=ROOT, env=env, timeout=120, check=False)
    assert done.returncode == 0
    assert load_snapshot(out / "snapshot").history["autoencoder"]["iterations"] == 1


@pytest.mark.slow
def test_help_is_whole_without_docstrings() -> None:
    command = [sys.executable, "-OO", "-m", "training.sample", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "Denoising steps" in shown
    assert not re.search(r"^None$", shown, re.MULTILINE)


def test_no_wait_with_a_timeout_lasts_for_ever() -> None:
    """`queue.SimpleQueue.get(timeout=…)` of CPython 3.10 to 3.12 does, on a busy machine: a thread that loses its core
    at the wrong place, for longer than the timeout, waits for less than nothing, that is, for ever. Seen in the client,
    whose waits between two tries can be of microseconds."""
    timed = re.compile(r"SimpleQueue\(.*\.get\((timeout=|True, )", re.DOTALL)
    assert not [path for path in tracked(".py") if timed.search(path.read_text())]
