"""Pictures in terminals: what they show, how they are asked what they can, and what is left behind."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.common import with_tools
from support.terminals import CELL, KINDS, Terminal

PROGRAM = """\
import sys
import numpy as np
from brats_ldm_client.terminal import open_screen

y, x = np.mgrid[:120, :240]
pixels = (255 * (0.5 + 0.5 * np.sin(x / 40) * np.cos(y / 30))).astype(np.uint8)
print("before")
screen = open_screen(*sys.argv[1:2])
if screen is None:
    sys.exit("no screen")
with screen:
    screen.show(255 - pixels, ["first", "more of it"])
    for line in sys.argv[2:]:  # to go on
        input()
    screen.show(pixels, ["SYNTHETIC", "below"])
print(screen.kind)
"""


def picture() -> np.ndarray:
    y, x = np.mgrid[:120, :240]
    return 255 * (0.5 + 0.5 * np.sin(x / 40) * np.cos(y / 30))


def at(height: int, width: int, used: float = 1.0) -> np.ndarray:
    """The picture at so many places; `used`: rows for it, the others are black."""
    y, x = np.mgrid[:height, :width]
    y, x = (y + 0.5) / used * 120 - 0.5, (x + 0.5) / width * 240 - 0.5
    return np.where(y < 119.5, 255 * (0.5 + 0.5 * np.sin(x / 40) * np.cos(y / 30)), 0)


def png_of(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as read:
        assert "SYNTHETIC" in read.info["Description"]
        return np.asarray(read)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_drawn_in_the_place_of_the_one_before(kind: str, terminal: Callable[..., Terminal]) -> None:
    at_work = terminal(kind)
    at_work.python("-c", PROGRAM)
    assert at_work.wait() == 0, at_work.lines
    # 79 columns of 10 pixels for 240; 120 / 240 * 790 = 395 pixels are 20 rows of 20.
    assert at_work.lines[0] == "before"
    assert at_work.lines[21:] == ["SYNTHETIC", "below", kind, *[""] * 16], (
        "the first has left nothing, nothing has scrolled"
    )
    assert not at_work.screen.cursor.hidden
    if kind != "blocks":
        assert not any(at_work.lines[1:21])
        assert len(at_work.pictures()) == 2


def test_half_blocks_show_the_picture(terminal: Callable[..., Terminal]) -> None:
    at_work = terminal("blocks")
    at_work.python("-c", PROGRAM)
    assert at_work.wait() == 0, at_work.lines
    shown = at_work.grey(1, 20, 79)
    expected = at(40, 79, used=39.5)
    assert np.abs(shown - expected)[:36].max() < 4
    assert np.abs(shown - np.where(expected, 255 - expected, 0))[:36].max() > 200, "not the first one"


def test_kitty_gets_a_png_that_replaces_the_one_before(terminal: Callable[..., Terminal]) -> None:
    at_work = terminal("kitty")
    at_work.python("-c", PROGRAM)
    assert at_work.wait() == 0, at_work.lines
    first, second = (string[1:].partition(b";") for string in at_work.pictures())
    keys, again = (dict(pair.split(b"=") for pair in keys.split(b",")) for keys, _, _ in (first, second))
    assert keys[b"i"] == again[b"i"] != b"0"
    assert {keys[name] for name in (b"a", b"f", b"q", b"C")} == {b"T", b"100", b"2", b"1"}
    assert (keys[b"c"], keys[b"r"], keys[b"p"]) == (b"79", b"20", b"1")
    pixels = png_of(second[2])
    assert np.array_equal(pixels[:120], picture().astype(np.uint8))
    assert pixels.shape == (round(400 / 790 * 240), 240), "as wide and high as 79 x 20 cells"
    assert not pixels[120:].any()
    # Longer parts are not allowed.
    assert max(len(string) for string in at_work.strings) < 4096 + 100


def test_iterm_gets_a_png(terminal: Callable[..., Terminal]) -> None:
    at_work = terminal("iterm")
    at_work.python("-c", PROGRAM)
    assert at_work.wait() == 0, at_work.lines
    head, _, data = at_work.pictures()[-1].partition(b":")
    assert b"inline=1" in head
    assert b"width=79;height=20" in head
    assert int(re.search(rb"size=(\d+)", head)[1]) == len(base64.b64decode(data))
    assert np.array_equal(png_of(data)[:120], picture().astype(np.uint8))


def test_sixel_shows_the_picture(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """libsixel reads it."""
    at_work = terminal("sixel")
    at_work.python("-c", PROGRAM)
    assert at_work.wait() == 0, at_work.lines
    code = b"\x1bP" + at_work.pictures()[-1] + b"\x1b\\"
    command = ["sixel2png", "-o", str(tmp_path / "shown.png")]
    subprocess.run(command, input=code, env=with_tools(), timeout=60, check=True)
    with Image.open(tmp_path / "shown.png") as read:
        shown = np.asarray(read.convert("L")).astype(float)
    height, width = 20 * CELL[0], 79 * CELL[1]
    assert shown.shape == (height, width)
    # 64 greys are 4 levels apart, and percents round another 1.3.
    assert np.abs(shown - at(height, width, used=395))[:370].max() < 6


def test_a_picture_at_the_bottom_scrolls_once(terminal: Callable[..., Terminal]) -> None:
    at_work = terminal("blocks")
    at_work.python("-c", "print('\\n' * 50)\n" + PROGRAM)
    assert at_work.wait() == 0, at_work.lines
    assert at_work.lines[15] == "before"
    assert at_work.lines[36:] == ["SYNTHETIC", "below", "blocks", ""]
    assert np.abs(at_work.grey(16, 20, 79) - at(40, 79, used=39.5))[:36].max() < 4


@pytest.mark.slow
def test_a_terminal_that_never_answers_gets_half_blocks(terminal: Callable[..., Terminal]) -> None:
    """As that of `ssh -t` in a script. The questions end after some seconds."""
    at_work = terminal("silent")
    at_work.python("-c", PROGRAM)
    assert at_work.wait() == 0, at_work.lines
    assert at_work.lines[21:24] == ["SYNTHETIC", "below", "blocks"]


@pytest.mark.slow
def test_answers_are_not_left_for_the_shell(terminal: Callable[..., Terminal]) -> None:
    ends = "\nimport select\nprint('typed' if select.select([sys.stdin], [], [], 0.5)[0] else 'nothing typed')"
    for kind in KINDS:
        at_work = terminal(kind)
        # In this mode a program sees what is typed before Enter, too.
        at_work.python("-c", PROGRAM + "import tty; tty.setcbreak(0)" + ends)
        assert at_work.wait() == 0, at_work.lines
        assert "nothing typed" in at_work.lines, kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_is_given_is_taken(kind: str, terminal: Callable[..., Terminal]) -> None:
    at_work = terminal("blocks")
    at_work.python("-c", PROGRAM, kind)
    assert at_work.wait() == 0, at_work.lines
    assert kind in at_work.lines
    assert len(at_work.pictures()) == (0 if kind == "blocks" else 2)


@pytest.mark.parametrize(
    "env", [{"TERM": "dumb"}, {"TERM": ""}, {"NO_COLOR": "1"}, {"LANG": "C", "PYTHONIOENCODING": "ascii"}]
)
def test_where_no_picture_can_be_shown_nothing_is_asked(env: dict[str, str], terminal: Callable[..., Terminal]) -> None:
    at_work = terminal("kitty")
    at_work.python("-c", PROGRAM, env=env)
    assert at_work.wait() == 1
    assert at_work.lines[:2] == ["before", "no screen"]
    assert b"\x1b" not in at_work.written


def test_without_a_terminal_there_is_no_screen() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "before\n", "no screen\n")


def test_without_a_keyboard_nothing_is_asked(terminal: Callable[..., Terminal]) -> None:
    at_work = terminal("kitty")
    at_work.python("-c", PROGRAM, stdin=subprocess.DEVNULL)
    assert at_work.wait() == 0, at_work.lines
    assert "blocks" in at_work.lines
    assert not at_work.strings


@pytest.mark.parametrize("env", [{"STY": "1.pts", "TERM": "screen"}, {"TERM": "screen-256color"}])
def test_gnu_screen_is_asked_nothing(env: dict[str, str], terminal: Callable[..., Terminal]) -> None:
    """It shows the questions to its user."""
    at_work = terminal("kitty")
    at_work.python("-c", PROGRAM, env=env)
    assert at_work.wait() == 0, at_work.lines
    assert "blocks" in at_work.lines
    assert not at_work.strings


@pytest.mark.parametrize("kind", ["sixel", "blocks"])
def test_tmux_is_not_asked_for_what_would_become_its_title(kind: str, terminal: Callable[..., Terminal]) -> None:
    at_work = terminal(kind)
    at_work.python("-c", PROGRAM, env={"TMUX": "/tmp/tmux-0/default,1,0", "TERM": "screen-256color"})
    assert at_work.wait() == 0, at_work.lines
    assert kind in at_work.lines
    assert not any(string.startswith(b"G") for string in at_work.strings)


def test_in_another_size_of_the_window_the_picture_comes_below(terminal: Callable[..., Terminal]) -> None:
    at_work = terminal("blocks", columns=80, rows=60)
    at_work.python("-c", PROGRAM, "auto", "wait")
    at_work.wait_text("more of it")
    at_work.resize(50, 60)
    at_work.type(b"\n")
    assert at_work.wait() == 0, at_work.lines
    assert at_work.lines.index("SYNTHETIC") > at_work.lines.index("more of it")
    end = at_work.lines.index("SYNTHETIC")
    # 49 columns: 245 pixels are 12.25 rows.
    assert np.abs(at_work.grey(end - 13, 13, 49) - at(26, 49, used=24.5))[:22].max() < 5


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (3, 2), (400, 100)])
def test_windows_of_any_size(columns: int, rows: int, terminal: Callable[..., Terminal]) -> None:
    at_work = terminal("blocks", columns=columns, rows=rows)
    at_work.python("-c", PROGRAM + "open(0, 'w').write('')\n")
    assert at_work.wait() == 0, at_work.lines
    if columns == 400:
        assert at_work.lines[25:28] == ["SYNTHETIC", "below", "blocks"], "24 rows, however large the window is"


@pytest.mark.parametrize("term", ["xterm", "xterm-256color", "linux"])
def test_few_colours(term: str, terminal: Callable[..., Terminal]) -> None:
    """xterm itself says TERM=xterm, to which eight colours belong: brains in red and cyan."""
    at_work = terminal("blocks")
    at_work.python("-c", PROGRAM, env={"COLORTERM": "", "TERM": term})
    assert at_work.wait() == 0, at_work.lines
    # The palette's greys are 10 levels apart, and its lightest 17.
    assert np.abs(at_work.grey(1, 20, 79) - at(40, 79, used=39.5))[:36].max() < 13


def test_the_modes_of_the_terminal_are_as_before(terminal: Callable[..., Terminal]) -> None:
    at_work = terminal("sixel")
    at_work.python("-c", PROGRAM)
    assert at_work.wait() == 0, at_work.lines
    assert at_work.modes_are_as_before


@pytest.mark.parametrize("kind", ["auto", "kitty"])
def test_without_blessed_nothing_is_asked(kind: str, terminal: Callable[..., Terminal]) -> None:
    at_work = terminal("kitty")
    at_work.python("-c", "import sys; sys.modules['blessed'] = None\n" + PROGRAM, kind)
    assert at_work.wait() == 0, at_work.lines
    assert ("blocks" if kind == "auto" else "kitty") in at_work.lines
    assert not any(b"a=q" in string for string in at_work.strings)


def test_an_unknown_kind_is_refused(terminal: Callable[..., Terminal]) -> None:
    at_work = terminal("kitty", columns=200)
    at_work.python("-c", PROGRAM, "ascii")
    assert at_work.wait() == 1
    said = "'ascii' is no way to show a picture: choose auto, kitty, iterm, sixel, blocks"
    assert said in at_work.text
