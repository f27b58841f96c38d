"""Markdown that commands write: tables, and blocks between two comments of a page. People write the rest."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Record = dict[str, Any]
Reader = Callable[[str], Record]
"""Gives a record by its path below benchmarks/, without `.json`."""
Lines = Iterable[str]

BEGIN = "<!-- figures: python -m benchmarks.report, "
END = "<!-- end of figures -->"
BLOCK = re.compile(rf"^{re.escape(BEGIN)}(\S+) -->\n.*?^{END}$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(/([^)]+)\)")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """A table; None is an empty cell."""
    yield f"| {' | '.join(map(str, head))} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join('' if value is None else str(value) for value in row)} |"


def formatted(head: str, row: str, records: Iterable[Record]) -> Iterator[str]:
    """A table with a line for each record: `head` and `row` are lines of Markdown, `row` with names of the record.

    `formatted("rows | s", "{rows} | {seconds[median]:.2f}", records)`.
    """
    yield f"| {head} |"
    yield f"|{'---|' * len(head.split(' | '))}"
    for record in records:
        yield f"| {row.format_map(record)} |"


def milliseconds(seconds: Record) -> Record:
    """`timing.spread` of seconds in milliseconds."""
    return {key: 1e3 * seconds[key] for key in ("median", "min", "max")}


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def around(values: Record) -> str:
    """The range of `timing.spread`."""
    return f"{number(values['min'])} to {number(values['max'])}"


def ranged(values: Record, digits: int = 2) -> str:
    """The median of `timing.spread` or `timing.ratio`, and their range."""
    median, least, most = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def cores(record: Record) -> str:
    """The processor of a record."""
    return f"{record['machine']['cores']} cores of {record['machine']['processor']}"


def where_and_when(record: Record) -> str:
    """The processor of a record, and its date."""
    return f"{cores(record)}, {record['machine']['date'][:10]}"


def filled(text: str, page: str, blocks: Mapping[str, Callable[[], Lines]]) -> str:
    """`text` with all its blocks written anew. `page` is its path in the repository, for links and messages.

    A block's links start at the repository's root ("/docs/cost.md"), so a block can stand in any page.

    Raises:
        ValueError: a block has no end, or a name that is not in `blocks`.
    """

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name not in blocks:
            raise ValueError(f"{page} asks for the figures {name!r}; there are {', '.join(blocks)}")
        lines = "\n".join([f"{BEGIN}{name} -->", "", *blocks[name](), "", END])
        return LINK.sub(lambda link: f"]({os.path.relpath(link[1], os.path.dirname(page) or '.')})", lines)

    if text.count(BEGIN) != len(BLOCK.findall(text)):
        raise ValueError(f"{page} needs a line {END} after each line {BEGIN}NAME -->")
    return BLOCK.sub(block, text)
