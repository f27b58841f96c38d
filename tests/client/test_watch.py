"""`brats-ldm generate --watch`: what is seen while images are made, and that the files are those of a run unseen."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from brats_ldm_client._cli import main
from brats_ldm_client.pictures import MARK
from server.process import TritonServer
from support.common import ROOT
from support.fake_triton import Served
from support.terminals import Terminal

pytestmark = pytest.mark.slow  # each runs a command of seconds
Make = Callable[..., Terminal]


class Run:
    """`brats-ldm generate --watch` in a terminal."""

    def __init__(self, terminal: Terminal, url: str, out: Path) -> None:
        self.terminal, self.url, self.out = terminal, url, out

    def start(self, *arguments: object, **options: object) -> None:
        words = ("-m", "brats_ldm_client", "generate", "--watch", "--url", self.url, "--out", self.out, *arguments)
        self.terminal.python(*words, **options)

    def __call__(self, *arguments: object, **options: object) -> int:
        self.start(*arguments, **options)
        return self.terminal.wait()


def held_at(served: Served, *steps: int) -> threading.Event:
    """The server stops there until this is set."""
    go_on = threading.Event()

    def hold(step: int, context: grpc.ServicerContext) -> None:
        if step in steps:
            go_on.wait(60)

    served.triton.stream_behave = hold
    return go_on


def content(folder: Path) -> dict[str, object]:
    return {
        path.name: json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
        for path in folder.iterdir()
    }


def unseen(url: str, out: Path, *arguments: object) -> dict[str, object]:
    assert main(["generate", "--url", url, "--out", str(out), *map(str, arguments)]) == 0
    return content(out)


def test_previews_are_seen_and_the_files_are_the_same(terminal: Make, served: Served, tmp_path: Path) -> None:
    go_on = held_at(served, 5)
    arguments = ("-n", 4, "--seed", 0, "--steps", 8, "--format", "png,nifti")
    at_work = terminal("blocks")
    run = Run(at_work, served.url, tmp_path / "seen")
    run.start(*arguments)
    at_work.wait_text("step 4 of 8, 0 of 4 images")
    assert at_work.lines[10] == f"{MARK}; previews: tiny decoder; seeds 0, 1, 2, 3"
    assert at_work.lines[11].startswith(" 50%|███")
    # The decoder's images of the fake server are 2 * (step + seed): white.
    assert (at_work.grey(0, 10, 19)[1:18, :18] > 240).all()
    go_on.set()
    assert at_work.wait() == 0, at_work.lines
    assert at_work.lines[10] == f"{MARK}; seeds 0, 1, 2, 3"
    assert at_work.lines[11].startswith("100%|███")
    assert "4 of 4 images, 00:00 left" in at_work.lines[11]
    assert "".join(at_work.lines[12:]).startswith("4 synthetic slices (seeds 0 to 3) in ")
    # An image of the fake server is a plane of the seed.
    shown = at_work.grey(0, 10, 79)[1:18]
    assert (shown[:, :18] < 15).all()
    assert (shown[:, 22:38] > 240).all()
    assert content(tmp_path / "seen") == unseen(served.url, tmp_path / "unseen", *arguments)


@pytest.mark.parametrize("kind", ["kitty", "iterm", "sixel"])
def test_every_kind_of_terminal(kind: str, terminal: Make, served: Served, tmp_path: Path) -> None:
    at_work = terminal(kind)
    assert Run(at_work, served.url, tmp_path / "seen")("-n", 1, "--seed", 7, "--steps", 3) == 0
    assert at_work.pictures()
    assert at_work.text.count(MARK) == 1
    assert content(tmp_path / "seen") == unseen(served.url, tmp_path / "unseen", "-n", 1, "--seed", 7, "--steps", 3)


def test_what_does_not_fit_side_by_side_comes_after(terminal: Make, served: Served, tmp_path: Path) -> None:
    at_work = terminal("blocks")
    run = Run(at_work, served.url, tmp_path)
    assert run("-n", 6, "--seed", 0, "--steps", 2) == 0
    assert served.triton.seeds() == [[0, 1, 2], [3, 4, 5]], "four fit, but then two would be left"
    text = at_work.text
    assert text.count(MARK) == 1, "the second row took the place of the first"
    assert "6 of 6 images" in text


def test_a_second_run_makes_what_is_missing(terminal: Make, served: Served, tmp_path: Path) -> None:
    arguments = ("-n", 5, "--seed", 1, "--steps", 2)
    before = unseen(served.url, tmp_path, *arguments)
    (tmp_path / "slice_seed000000002.png").unlink()
    served.triton.received.clear()
    at_work = terminal("blocks")
    assert Run(at_work, served.url, tmp_path)(*arguments) == 0
    assert {seed for seeds in served.triton.seeds() for seed in seeds} - {0} == {2}
    text = at_work.text
    assert "5 of 5 images" in text
    assert "5 synthetic slices (seeds 1 to 5), 4 of them there before," in text
    after = content(tmp_path)
    assert {name for name in after if after[name] != before[name]} <= {"provenance.json"}
    served.triton.received.clear()
    again = terminal("blocks")
    assert Run(again, served.url, tmp_path)(*arguments) == 0
    assert {seed for seeds in served.triton.seeds() for seed in seeds} <= {0}
    assert again.lines[0].startswith("5 synthetic slices"), "nothing to see"


def test_the_bar_begins_with_the_images_that_are_there(terminal: Make, served: Served, tmp_path: Path) -> None:
    unseen(served.url, tmp_path, "-n", 3, "--seed", 1, "--steps", 8)
    go_on = held_at(served, 5)
    at_work = terminal("blocks")
    run = Run(at_work, served.url, tmp_path)
    run.start("-n", 4, "--seed", 1, "--steps", 8)
    at_work.wait_text("step 4 of 8, 3 of 4 images")
    go_on.set()
    assert at_work.wait() == 0, at_work.lines
    assert "4 of 4 images" in at_work.text


def test_ctrl_c(terminal: Make, served: Served, tmp_path: Path) -> None:
    held_at(served, 4)
    at_work = terminal("blocks")
    run = Run(at_work, served.url, tmp_path)
    run.start("-n", 2, "--seed", 0, "--steps", 8)
    at_work.wait_text("step 3 of 8")
    at_work.type(b"\x03")
    assert at_work.wait() == 130
    served.triton.wait_cancelled(1)
    assert at_work.lines[at_work.screen.cursor.y - 1] == "brats-ldm: interrupted"
    assert not at_work.screen.cursor.hidden
    assert at_work.modes_are_as_before


def test_an_error_is_one_line_below_the_pictures(terminal: Make, served: Served, tmp_path: Path) -> None:
    def fail_late(step: int, context: grpc.ServicerContext) -> None:
        if served.triton.received[-1]["seed"][0, 0] == 4 and step == 3:
            context.abort(grpc.StatusCode.INTERNAL, "unet gave up")

    served.triton.stream_behave = fail_late
    at_work = terminal("blocks", columns=160)
    run = Run(at_work, served.url, tmp_path)
    assert run("-n", 8, "--seed", 0, "--steps", 4, "--rows-per-request", 4) == 1
    below = at_work.text.partition("4 of 8 images, ")[2]
    assert re.search(r"left *brats-ldm: .*unet gave up.*; 4 of 8 images are in .*makes the rest *$", below), below
    assert len(json.loads((tmp_path / "provenance.json").read_text())["images"]) == 4


def test_a_stream_that_breaks_is_tried_again(terminal: Make, served: Served, tmp_path: Path) -> None:
    """As a request without --watch is: a server that restarts costs time, and no image."""
    broken: list[int] = []

    def break_once(step: int, context: grpc.ServicerContext) -> None:
        if step == 3 and not broken:
            broken.append(step)
            context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    served.triton.stream_behave = break_once
    assert Run(terminal("blocks"), served.url, tmp_path / "seen")("-n", 2, "--seed", 0, "--steps", 4) == 0
    assert len(served.triton.received) == 2
    assert content(tmp_path / "seen") == unseen(served.url, tmp_path / "unseen", "-n", 2, "--seed", 0, "--steps", 4)


def test_other_weights_end_the_run(terminal: Make, served: Served, tmp_path: Path) -> None:
    def change(seeds: list[int], context: grpc.ServicerContext) -> None:
        if len(served.triton.received) == 2:
            served.triton.digest = "sha256:other"

    served.triton.behave = change
    at_work = terminal("blocks", columns=200)
    run = Run(at_work, served.url, tmp_path)
    assert run("-n", 4, "--seed", 0, "--steps", 2, "--rows-per-request", 2) == 1
    assert "brats-ldm: the weights changed during the run" in at_work.text


def test_an_older_server_shows_latents(terminal: Make, served: Served, tmp_path: Path) -> None:
    def refuse(seeds: list[int], context: grpc.ServicerContext) -> None:
        if "preview_decoder" in served.triton.received[-1]:
            words = "unexpected inference input 'preview_decoder' for model 'mri_ldm_stream'"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)

    served.triton.behave = refuse
    go_on = held_at(served, 3)
    at_work = terminal("blocks")
    run = Run(at_work, served.url, tmp_path)
    run.start("-n", 1, "--seed", 0, "--steps", 4)
    at_work.wait_text("previews: latents; seeds 0")
    go_on.set()
    assert at_work.wait() == 0, at_work.lines


def test_a_refused_request_is_one_line(terminal: Make, served: Served, tmp_path: Path) -> None:
    def refuse(seeds: list[int], context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "steps=0: must be 1 to 1000")

    served.triton.behave = refuse
    at_work = terminal("blocks")
    assert Run(at_work, served.url, tmp_path)("-n", 1, "--steps", 0) == 1
    assert at_work.text.startswith("brats-ldm: ")
    assert at_work.text.rstrip().endswith("steps=0: must be 1 to 1000")
    assert MARK not in at_work.text


def test_a_warning_stands_alone(terminal: Make, served: Served, tmp_path: Path) -> None:
    served.triton.more = {"warning": "300 steps leave out something"}
    at_work = terminal("blocks")
    assert Run(at_work, served.url, tmp_path)("-n", 2, "--seed", 0, "--steps", 3) == 0
    assert at_work.lines.count("brats-ldm: warning: 300 steps leave out something") == 1
    assert "2 of 2 images" in at_work.text


def test_a_terminal_that_takes_nothing_does_not_stop_the_work(terminal: Make, served: Served, tmp_path: Path) -> None:
    go_on = held_at(served, 1)
    at_work = terminal("blocks")
    run = Run(at_work, served.url, tmp_path)
    run.start("-n", 20, "--seed", 0, "--steps", 4)
    at_work.wait_for(lambda: served.triton.received, "asked")
    at_work.hold()
    go_on.set()
    at_work.wait_for(lambda: len(list(tmp_path.glob("*.png"))) >= 20, "20 files")
    at_work.go_on()
    assert at_work.wait() == 0, at_work.lines
    assert "20 of 20 images" in at_work.text


def test_not_every_step_of_many_has_a_preview(terminal: Make, served: Served, tmp_path: Path) -> None:
    for steps, every in ((1000, 40), (49, 2)):
        served.triton.received.clear()
        assert Run(terminal("blocks"), served.url, tmp_path / f"{steps}")("-n", 1, "--steps", steps) == 0
        assert served.triton.received[0]["preview_every"].tolist() == [[every]]


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_the_usual_bar_where_no_picture_can_be_shown(
    env: dict[str, str], terminal: Make, served: Served, tmp_path: Path
) -> None:
    at_work = terminal("kitty")
    assert Run(at_work, served.url, tmp_path)("-n", 2, "--seed", 0, env=env) == 0
    assert not at_work.strings
    assert at_work.lines[0].startswith("100%|")
    assert "2/2" in at_work.lines[0]


def test_nothing_but_the_summary_without_a_terminal(served: Served, tmp_path: Path) -> None:
    words = ("generate", "--watch", "-n", 2, "--seed", 0, "--out", tmp_path, "--url", served.url)
    command = [sys.executable, "-m", "brats_ldm_client", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 synthetic slices")
    assert "\x1b" not in done.stdout


def test_stdout_can_be_a_file(terminal: Make, served: Served, tmp_path: Path) -> None:
    at_work = terminal("blocks")
    with open(tmp_path / "said", "w") as said:
        assert Run(at_work, served.url, tmp_path / "out")("-n", 1, "--seed", 0, "--steps", 2, stdout=said) == 0
    assert (tmp_path / "said").read_text().startswith("1 synthetic slices")
    assert "1 of 1 images" in at_work.text


def test_the_script_of_the_page(terminal: Make, served: Served) -> None:
    page = (ROOT / "docs" / "generate.md").read_text()
    (script,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "open_screen" in code)
    # The fake server's latents are small.
    script = script.replace("127.0.0.1:8001", served.url).replace("previews[0]", "previews[0], (32, 32)")
    at_work = terminal("blocks")
    at_work.python("-c", script)
    assert at_work.wait() == 0, at_work.lines
    line = at_work.lines[at_work.screen.cursor.y - 1]
    assert line == MARK, "the last step's is gone"


def test_the_images_of_a_real_server_are_the_same(terminal: Make, small_server: TritonServer, tmp_path: Path) -> None:
    arguments = ("-n", 6, "--seed", 40, "--steps", 6, "--format", "png,nifti")
    at_work = terminal("blocks")
    assert Run(at_work, small_server.grpc_url, tmp_path / "seen")(*arguments) == 0, at_work.lines
    assert "6 of 6 images" in at_work.text
    seen, other = content(tmp_path / "seen"), unseen(small_server.grpc_url, tmp_path / "unseen", *arguments)
    assert seen == other
    assert np.ptp(at_work.grey(0, 10, 79)) > 20, "pictures, not planes"
