"""Prints messages. A failure to print never stops a server, for example if nobody reads the output any more."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def open_standard_files() -> None:
    """Open stdin, stdout and stderr if the process was started without them. Otherwise the next opened file would get
    their number, and output of libraries would end up in it."""
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
    """Send further output to /dev/null: otherwise Python would try to write it at its end, and fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
