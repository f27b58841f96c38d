"""What a tritonserver has logged, read as a file while it runs and afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

TAIL_LINES = 50
LINE = re.compile(rb"^([IWE]\d{4} |\d{4}-\d\d-\d\dT)", re.MULTILINE)
INFORMATION = re.compile(r"I\d{4} |\d{4}-\d\d-\d\dT\S+ I ")
"""How lines begin that tell of no trouble, in either of Triton's formats."""


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of the file."""
    return log.read_text(errors="replace").splitlines()[-count:]


def reasons(lines: Sequence[str]) -> list[str]:
    """The last of the lines that may say why a server has failed.

    Without Triton's tables and information, which come after the reasons and would push them out of sight; with the
    information where there is nothing else.
    """
    kept = [line for line in lines if line.strip() and not line.startswith(("+", "|"))]
    return ([line for line in kept if not INFORMATION.match(line)] or kept)[-TAIL_LINES:]


def has_read_its_command(log: Path, start: int) -> bool:
    """Whether a tritonserver that logs from byte `start` on has read its command line: it starts to log after that."""
    with log.open("rb") as file:
        file.seek(start)  # what an earlier server wrote says nothing of this one
        return LINE.search(file.read()) is not None
