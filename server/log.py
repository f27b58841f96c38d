"""Reads the log of a tritonserver while it runs and afterwards, even if the file was moved or removed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from io import FileIO

TAIL_LINES = 50
TAIL_BYTES = 2**22
LINE = re.compile(rb"^([IWE]\d{4} |\d{4}-\d\d-\d\dT)", re.MULTILINE)
INFORMATION = re.compile(r"I\d{4} |\d{4}-\d\d-\d\dT\S+ I ")
"""How lines of information begin, in both of Triton's formats."""


def last_lines(log: FileIO, count: int) -> list[str]:
    """The last lines of an open log, as far as they lie in its last TAIL_BYTES."""
    start = max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES)
    return os.pread(log.fileno(), TAIL_BYTES, start).decode(errors="replace").splitlines()[-count:]


def reasons(lines: Sequence[str]) -> list[str]:
    """The last lines that may say why a server has failed.

    Without Triton's tables and information, which come after the reasons and would push them out of sight. With the
    information if there is nothing else.
    """
    kept = [line for line in lines if line.strip() and not line.startswith(("+", "|"))]
    return ([line for line in kept if not INFORMATION.match(line)] or kept)[-TAIL_LINES:]


def has_read_its_command(log: FileIO, start: int) -> bool:
    """Whether a tritonserver that logs from byte `start` on has read its command line: it starts to log after that."""
    return LINE.search(os.pread(log.fileno(), TAIL_BYTES, start)) is not None
