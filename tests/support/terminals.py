"""A terminal without a window: a pseudo-terminal whose other end is played by pyte, which also answers questions."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyte

from support.common import ROOT, heeding_signals

#: What a terminal may be able to do, beside text.
KINDS = ("kitty", "iterm", "sixel", "blocks")
CELL = (20, 10)  # height and width in pixels
_STRING = re.compile(rb"\x1b[P_\]](.*?)(?:\x1b\\|\x07)", re.DOTALL)
_STRING_BEGINS = re.compile(rb"\x1b(?:[P_\]]|$)")
_SIZES = {b"\x1b[16t": b"\x1b[6;%d;%dt" % CELL}


class _Screen(pyte.Screen):
    """Says what it can as its terminal tells it to."""

    def __init__(self, terminal: Terminal, columns: int, rows: int) -> None:
        self._terminal = terminal
        super().__init__(columns, rows)

    def write_process_input(self, data: str) -> None:
        self._terminal.answer(data.encode())

    def report_device_attributes(self, mode: int = 0, **kwargs: Any) -> None:
        self._terminal.answer(b"\x1b[?62;4;22c" if self._terminal.kind == "sixel" else b"\x1b[?62;22c")


class Terminal:
    """Runs one command, in a terminal that can do what `kind` says: one of KINDS, or "silent", which never answers."""

    def __init__(self, kind: str, columns: int = 80, rows: int = 40) -> None:
        self.kind = kind
        self.screen = _Screen(self, columns, rows)
        self.strings: list[bytes] = []
        """What came in codes that pyte does not know: pictures, mostly, and questions."""
        self.written = b""
        self._stream = pyte.ByteStream(self.screen)
        self._left, self._reading = b"", threading.Event()
        self._reading.set()
        self._master, self._slave = pty.openpty()
        self.resize(columns, rows)
        self._modes = termios.tcgetattr(self._master)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, *command: object, env: dict[str, str] | None = None, **streams: Any) -> None:
        """Start a command with this as its terminal, in which Ctrl-C works. A variable that is "" is not set."""
        ends = {"stdin": self._slave, "stdout": self._slave, "stderr": self._slave, **streams}
        usual = {
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT / "client"),
            "COLORTERM": "truecolor",
        }
        both = {key: value for key, value in ({"PATH": os.environ["PATH"]} | usual | (env or {})).items() if value}
        words = ["setsid", "--ctty", *map(str, command)] if "stdin" not in streams else [str(word) for word in command]
        self._process = subprocess.Popen(heeding_signals(words), env=both, **ends)
        os.close(self._slave)  # so that reading ends when the command does
        self._reader.start()

    def python(self, *arguments: object, **options: Any) -> None:
        self.run(sys.executable, *arguments, **options)

    def _read(self) -> None:
        while self._reading.wait():
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the command has ended
                return
            self.written += data
            self._take(self._left + data)

    def _take(self, data: bytes) -> None:
        while (begins := _STRING_BEGINS.search(data)) and (whole := _STRING.match(data, begins.start())):
            self._text(data[: begins.start()])
            self._string(whole[1])
            data = data[whole.end() :]
        self._left = data[begins.start() :] if begins else b""
        self._text(data[: begins.start()] if begins else data)

    def _text(self, data: bytes) -> None:
        for part in re.split(rb"(\x1b\[16t)", data):
            if part in _SIZES and self.kind != "silent":
                self.answer(_SIZES[part])
            else:
                self._stream.feed(part)

    def _string(self, string: bytes) -> None:
        self.strings.append(string)
        if self.kind == "kitty" and b"a=q" in string:
            self.answer(b"\x1b_Gi=31;OK\x1b\\")
        if self.kind == "iterm" and string.startswith(b"1337;File="):
            self.screen.cursor_forward(1)

    def answer(self, data: bytes) -> None:
        if self.kind != "silent":
            self.type(data)

    def type(self, data: bytes) -> None:
        """As if keys were pressed."""
        os.write(self._master, data)

    def resize(self, columns: int, rows: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        self.screen.resize(rows, columns)

    def hold(self) -> None:
        """Read no more, as a terminal on a slow line or after Ctrl-S."""
        self._reading.clear()

    def go_on(self) -> None:
        self._reading.set()

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, f"never {what}:\n" + "\n".join(self.screen.display)
            time.sleep(0.02)

    def wait_text(self, text: str) -> None:
        self.wait_for(lambda: text in "\n".join(self.screen.display), text)

    def wait(self) -> int:
        """The exit status, after all that was written has been read."""
        assert self._process is not None
        status = self._process.wait(60)
        self._reader.join(60)
        return status

    @property
    def modes_are_as_before(self) -> bool:
        """Whether keys are echoed, lines can be edited, and so on."""
        return termios.tcgetattr(self._master) == self._modes

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """All lines, so that one that is too long for its line is whole."""
        return "".join(self.screen.display)

    def grey(self, top: int, rows: int, columns: int) -> np.ndarray:
        """What half blocks show, from 0 to 255, in the rows of characters from `top` on: [2 * rows, columns]."""
        pixels = np.zeros((2 * rows, columns))
        for y in range(rows):
            for x in range(columns):
                cell = self.screen.buffer[top + y][x]
                assert cell.data == "▀", (y, x, cell)
                pixels[2 * y : 2 * y + 2, x] = [_grey(cell.fg), _grey(cell.bg)]
        return pixels

    def pictures(self) -> list[bytes]:
        """The strings that are pictures, put together where they come in parts; those that ask are left out."""
        whole: list[bytes] = []
        more = False
        for string in self.strings:
            if string.startswith(b"G") and b"a=q" not in string:
                keys, _, data = string.partition(b";")
                whole[len(whole) :] = [string] if not more else [whole.pop() + data]
                more = b"m=1" in keys
            elif string.startswith((b"1337;File=", b"0;1q")) and b";width=1;" not in string:
                whole.append(string)
        return whole

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._reading.set()
            self._reader.join(60)
        os.close(self._master)


def _grey(colour: str) -> int:
    """pyte names the colours of its palette, and gives others as rrggbb."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (0, 2, 4))
    assert red == green == blue, colour
    return red
