"""Pictures in a terminal, drawn again and again in the same place: `open_screen`, `Screen`.

The package blessed (extra `watch`) asks the terminal what it can show. Everything goes to stderr, as progress bars do.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

import numpy as np
from PIL import Image

from . import _terminal_codes as codes
from ._errors import InvalidRequest
from ._extras import need
from .pictures import Pixels

if TYPE_CHECKING:
    from blessed import Terminal

#: Ways to show a picture, the best first.
KINDS = ("kitty", "iterm", "sixel", "blocks")
_TIMEOUT = 2.0  # seconds until a terminal that has not answered is taken for one that never does
_USUAL_CELL = (20.0, 10.0)  # height and width of a character in pixels, where the terminal does not tell
_GREYS = 64  # in sixel: more cannot be told apart, and take longer
_MOST_ROWS = 24  # of characters: a picture is no larger in a large window
_ESCAPES = {"begin": "\x1b[?2026h\x1b[?25l", "end": "\x1b[?25h\x1b[?2026l"}  # all of a frame at once, without cursor
_SANE = f"\x1b\\\x1b[0m{_ESCAPES['end']}\r\n"  # also ends a code that was cut short


def open_screen(kind: str = "auto") -> Screen | None:
    """A screen on stderr; None where no picture can be shown.

    That is where stderr is a file or a pipe, with TERM=dumb, with NO_COLOR, or without the characters for it (UTF-8).

    Args:
        kind: "kitty", "iterm", "sixel" or "blocks", for a terminal that gives no answer or a wrong one; by default
            the best that it says it can, which takes milliseconds, or 6 s where nothing answers.

    Raises:
        MissingPackage: blessed is not installed.
        InvalidRequest: there is no such kind.
    """
    if kind not in ("auto", *KINDS):
        raise InvalidRequest(f"{kind!r} is no way to show a picture: choose auto, {', '.join(KINDS)}")
    if not _shows_pictures():
        return None
    terminal = _terminal()
    if kind == "blocks" or _in_gnu_screen() or terminal.get_location(timeout=_TIMEOUT) == (-1, -1):
        return Screen(terminal, "blocks" if kind == "auto" else kind, _USUAL_CELL, sys.stderr)
    return Screen(terminal, _best(terminal) if kind == "auto" else kind, _cell(terminal), sys.stderr)


def _shows_pictures() -> bool:
    if os.environ.get("NO_COLOR") or (os.name != "nt" and os.environ.get("TERM", "dumb") == "dumb"):
        return False
    # Both: sys.stderr is where pictures go, and the questions go to what it was at the start.
    if not all(stream is not None and stream.isatty() for stream in (sys.stderr, sys.__stderr__)):
        return False
    with contextlib.suppress(UnicodeEncodeError):
        codes.HALF_BLOCK.encode(sys.stderr.encoding)
        return True
    return False


def _terminal() -> Terminal:
    """blessed's view of the terminal. It asks a few questions at once."""
    with _variable("BLESSED_QUERY_TIMEOUT_SECONDS", str(_TIMEOUT)):  # read when it is imported; 5 s otherwise
        blessed = need("blessed")
    terminal: Terminal = blessed.Terminal(stream=sys.__stderr__)
    return terminal


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """In the block, the environment has the variable, unless it had it before."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _in_gnu_screen() -> bool:
    """It takes kitty's question for a message to its user."""
    return "STY" in os.environ and "TMUX" not in os.environ


def _best(terminal: Terminal) -> str:
    can = {"kitty": terminal.does_kitty_graphics, "iterm": terminal.does_iterm2_graphics, "sixel": terminal.does_sixel}
    return next((kind for kind, does in can.items() if does(timeout=_TIMEOUT)), "blocks")


def _cell(terminal: Terminal) -> tuple[float, float]:
    """Height and width of a character in pixels."""
    height, width = terminal.get_sixel_height_and_width(timeout=_TIMEOUT)
    if min(height, width, terminal.height, terminal.width) <= 0:
        return _USUAL_CELL
    return height / terminal.height, width / terminal.width


class Screen:
    """A place in a terminal for pictures with lines of text below. Each takes the place of the one before.

    Use it in a `with` block, or close it. Made by `open_screen`. For one thread at a time.
    """

    def __init__(self, terminal: Terminal, kind: str, cell: tuple[float, float], stream: TextIO) -> None:
        self.kind = kind
        """How pictures are shown: one of `KINDS`."""
        self._terminal, self._cell, self._stream = terminal, cell, stream
        self._number = 0  # of the picture, for kitty
        self._drawn: tuple[int, ...] = ()  # lines of what is there, and the size of the terminal then
        self._greys = min(_GREYS, terminal.get_sixel_colors(timeout=_TIMEOUT)) if kind == "sixel" else 0
        shades = range(256) if kind == "blocks" else ()
        self._fore = [str(terminal.color_rgb(grey, grey, grey)) for grey in shades]
        self._back = [str(terminal.on_color_rgb(grey, grey, grey)) for grey in shades]

    @property
    def columns(self) -> int:
        """Characters in a line."""
        return max(1, (self._terminal.width or 80) - 1)  # without the last: terminals wrap there in different ways

    def show(self, pixels: Pixels, lines: Sequence[str] = ()) -> None:
        """Draw a picture, as large as it fits, with lines of text below; they are cut where they are too long."""
        lines = lines or [""]
        columns, rows = self._cells(pixels, len(lines))
        place = self._place(rows + len(lines))
        code = self._code(_padded(pixels, rows / columns * self._cell[0] / self._cell[1]), columns, rows)
        text = "\r\n".join(f"{line[: self.columns]}\x1b[K" for line in lines)
        self._write(f"{_ESCAPES['begin']}{place}\x1b7{code}\x1b8\x1b[{rows}B{text}{_ESCAPES['end']}")

    def _cells(self, pixels: Pixels, lines: int) -> tuple[int, int]:
        """Columns and rows of characters that the picture covers."""
        height, width = pixels.shape
        shape = height / width * self._cell[1] / self._cell[0]  # rows for a column
        most = max(1, min(_MOST_ROWS, (self._terminal.height or 24) - lines - 1))
        columns = max(1, min(self.columns, int(most / shape)))
        return columns, min(most, math.ceil(columns * shape))

    def _place(self, height: int) -> str:
        """The codes that move the cursor to the top left of the place, and make one where there is none."""
        now = (height, self._terminal.width, self._terminal.height)
        # In another size of the window nobody knows where the lines are.
        before = "" if self._drawn == now else ("\r\n" if self._drawn else "\r") + "\n" * (height - 1)
        if before:
            self._number = 1 + secrets.randbelow(2**31)
        self._drawn = now
        return f"{before}\r\x1b[{height - 1}A"

    def _code(self, pixels: Pixels, columns: int, rows: int) -> str:
        if self.kind == "kitty":
            return codes.kitty(pixels, columns, rows, self._number)
        if self.kind == "iterm":
            return codes.iterm(pixels, columns, rows)
        if self.kind == "sixel":
            height, width = (int(n * side) for n, side in zip((rows, columns), self._cell, strict=True))
            return codes.sixel(_resized(pixels, width, height), self._greys)
        return "\r\n".join(codes.blocks(_resized(pixels, columns, 2 * rows), self._fore, self._back, "\x1b[0m"))

    def leave(self) -> None:
        """Leave what is there; the next picture comes below."""
        if self._drawn:
            self._write(_SANE)
            self._drawn = ()

    close = leave

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _padded(pixels: Pixels, shape: float) -> Pixels:
    """With black below, so that height / width is `shape`; what is too high is cut."""
    height, width = pixels.shape
    whole = np.zeros((max(1, round(width * shape)), width), np.uint8)
    whole[:height] = pixels[: len(whole)]
    return whole


def _resized(pixels: Pixels, width: int, height: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
