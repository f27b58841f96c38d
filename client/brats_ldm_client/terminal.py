"""Pictures in a terminal, drawn again and again in the same place: `open_screen`, `Screen`.

The package blessed (extra `watch`) asks the terminal what it can show; without it there are half blocks. Everything
goes to stderr, as progress bars do.
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
from ._errors import InvalidRequest, MissingPackage
from ._extras import need
from ._terminal_kinds import KINDS
from .pictures import Pixels

if TYPE_CHECKING:
    from blessed import Terminal

_TIMEOUT = 2.0  # seconds until a terminal that has not answered is taken for one that never does
_USUAL_CELL = (20.0, 10.0)  # height and width of a character in pixels, where the terminal does not tell
_GREYS = 64  # in sixel: nobody sees more, and more take longer
_MOST_ROWS = 24  # of characters: a picture is no larger in a large window
_BEGIN, _END = "\x1b[?2026h\x1b[?25l", "\x1b[?25h\x1b[?2026l"  # all of a frame at once, without the cursor
_SANE = f"\x1b\\\x1b[0m{_END}\r\n"  # also ends a code that was cut short


def open_screen(kind: str = "auto") -> Screen | None:
    """A screen on stderr; None where no picture can be shown.

    That is where stderr is a file or a pipe, with TERM=dumb, with NO_COLOR, without the characters for it (UTF-8), and
    on Windows without blessed.

    Args:
        kind: "kitty", "iterm", "sixel" or "blocks", for a terminal that gives no answer or a wrong one; by default
            the best that it says it can, which takes milliseconds, or 6 s where nothing answers.

    Raises:
        InvalidRequest: There is no such kind.
    """
    if kind not in ("auto", *KINDS):
        raise InvalidRequest(f"{kind!r} is no way to show a picture: choose auto, {', '.join(KINDS)}")
    if not _shows_pictures():
        return None
    # On Windows blessed also makes the console take codes.
    asks = os.name == "nt" or (kind != "blocks" and _multiplexer() != "screen")
    terminal = _terminal() if asks else None
    if terminal is None and os.name == "nt":
        return None
    if terminal is None or terminal.get_location(timeout=_TIMEOUT) == (-1, -1):
        return Screen("blocks" if kind == "auto" else kind)
    kind = _best(terminal) if kind == "auto" else kind
    greys = terminal.get_sixel_colors(timeout=_TIMEOUT) if kind == "sixel" else _GREYS
    return Screen(kind, _cell(terminal), min(_GREYS, max(2, greys)))


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


def _multiplexer() -> str:
    """What stands between us and the terminal: "screen", "tmux" or "".

    GNU screen shows what it does not understand. tmux makes kitty's question the title of its window.
    """
    term = os.environ.get("TERM", "")
    if "TMUX" in os.environ or term.startswith("tmux"):
        return "tmux"
    return "screen" if "STY" in os.environ or term.startswith("screen") else ""


def _terminal() -> Terminal | None:
    """blessed's view of the terminal, to which it sends a few questions at once. None without blessed."""
    try:
        with _variable("BLESSED_QUERY_TIMEOUT_SECONDS", str(_TIMEOUT)):  # read when it is imported; 5 s otherwise
            blessed = need("blessed")
    except MissingPackage:
        return None
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


def _best(terminal: Terminal) -> str:
    if _multiplexer() != "tmux":
        if terminal.does_kitty_graphics(timeout=_TIMEOUT):
            return "kitty"
        if terminal.does_iterm2_graphics(timeout=_TIMEOUT):
            return "iterm"
    return "sixel" if terminal.does_sixel(timeout=_TIMEOUT) else "blocks"


def _cell(terminal: Terminal) -> tuple[float, float]:
    """Height and width of a character in pixels."""
    height, width = terminal.get_sixel_height_and_width(timeout=_TIMEOUT)
    if min(height, width, terminal.height, terminal.width) <= 0:
        return _USUAL_CELL
    return height / terminal.height, width / terminal.width


class Screen:
    """A place in a terminal for pictures with lines of text below. Each takes the place of the one before.

    Use it in a `with` block, or close it. `open_screen` makes one that fits the terminal. For one thread at a time.

    Args:
        kind: "kitty", "iterm", "sixel" or "blocks".
        cell: Height and width of a character in pixels.
        greys: Levels of grey in sixel, from 2 to 101.
        stream: A terminal; by default stderr.
    """

    def __init__(
        self,
        kind: str,
        cell: tuple[float, float] = _USUAL_CELL,
        greys: int = _GREYS,
        stream: TextIO | None = None,
    ) -> None:
        self.kind = kind
        """How pictures are shown: "kitty", "iterm", "sixel" or "blocks"."""
        self._cell, self._greys, self._stream = cell, greys, stream or sys.stderr
        self._number = 0  # of the picture, for kitty
        self._drawn: tuple[int, ...] = ()  # lines of what is there, and the size of the terminal then
        self._shades = codes.shades(os.environ.get("COLORTERM", "") in ("truecolor", "24bit"))

    def _size(self) -> tuple[int, int]:
        """Columns and rows of characters."""
        columns, rows = 0, 0
        with contextlib.suppress(OSError, ValueError):
            columns, rows = os.get_terminal_size(self._stream.fileno())
        return columns or 80, rows or 24  # a pseudo-terminal may have no size

    @property
    def columns(self) -> int:
        """Characters in a line."""
        return max(1, self._size()[0] - 1)  # without the last: terminals wrap there in different ways

    def show(self, pixels: Pixels, lines: Sequence[str] = ()) -> None:
        """Draw a picture, as large as it fits, with lines of text below; they are cut where they are too long."""
        lines = lines or [""]
        columns, rows = self._cells(pixels, len(lines))
        place = self._place(rows + len(lines))
        code = self._code(_padded(pixels, rows / columns * self._cell[0] / self._cell[1]), columns, rows)
        text = "\r\n".join(f"{line[: self.columns]}\x1b[K" for line in lines)
        self._write(f"{_BEGIN}{place}\x1b7{code}\x1b8\x1b[{rows}B{text}{_END}")

    def _cells(self, pixels: Pixels, lines: int) -> tuple[int, int]:
        """Columns and rows of characters that the picture covers."""
        height, width = pixels.shape
        shape = height / width * self._cell[1] / self._cell[0]  # rows for a column
        most = max(1, min(_MOST_ROWS, self._size()[1] - lines - 1))
        columns = max(1, min(self.columns, int(most / shape)))
        return columns, min(most, math.ceil(columns * shape))

    def _place(self, height: int) -> str:
        """The codes that move the cursor to the top left of the place, and make one where there is none."""
        now = (height, *self._size())
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
        return "\r\n".join(codes.blocks(_resized(pixels, columns, 2 * rows), *self._shades))

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
