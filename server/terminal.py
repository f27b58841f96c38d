"""Prints for people. A failure to print never stops a server: the reader may have gone, or lack some letters."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def open_standard_files() -> None:
    """Give stdin, stdout and stderr a file where the process was started without: the next one opened would be taken
    for them, and what a library prints would end up in it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def say(text: str, stream: TextIO | None = None) -> None:
    """Print to stdout, or `stream`, at once."""
    stream = stream or sys.stdout
    if stream is None:  # closed when the process was started
        return
    try:
        # As bytes that the terminal can show: a path may have letters that its encoding lacks.
        encoding = stream.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except OSError:
        _mute(stream)


def _mute(stream: TextIO) -> None:
    """Send the rest to nowhere: Python would try again at its end, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
