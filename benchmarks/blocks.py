"""The parts of a page that a command writes, between two comments; people write the rest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

END = "<!-- end of figures -->"


def begin(command: str) -> str:
    """The line before what `command` writes."""
    return f"<!-- figures: {command} -->"


def replaced(text: str, command: str, lines: Iterable[str], page: str | Path) -> str:
    """`text`, that of `page`, with `lines` in place of what stands between `begin(command)` and END.

    Raises:
        ValueError: the first line is not there exactly once, or no END follows it.
    """
    first = begin(command)
    before, *rest = text.split(f"{first}\n")
    if len(rest) != 1 or END not in rest[0]:
        raise ValueError(f"{page} needs the lines {first} and {END} once each: the figures go between them")
    _, _, after = rest[0].partition(END)
    return "\n".join([f"{before}{first}", "", *lines, "", f"{END}{after}"])
