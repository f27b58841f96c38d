"""Write the figures of README and other pages from their records: python -m benchmarks.figures.

Each stands between two comments that name this command and the table. Nothing is measured; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.blocks import replaced
from benchmarks.figures import runs, speed, steps
from benchmarks.figures.speed import Reader, Record
from training.cli import run_command
from training.files import write_text

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python -m benchmarks.figures"
PAGES: dict[str, dict[str, Callable[[Reader], Iterator[str]]]] = {
    "README.md": {
        "two-commands": runs.two_commands,
        "how-fast": speed.how_fast,
        "reliability": runs.reliability,
    },
    "benchmarks/README.md": {
        "rewrite": speed.rewrite,
        "mixed-load": speed.mixed_load,
        "steps-a-call": steps.choice,
        "loop": steps.loop,
    },
    "docs/openvino.md": {"openvino": speed.openvino},
}
"""Page to its tables by name."""


def read(name: str) -> Record:
    """The record benchmarks/`name`.json."""
    found: Record = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())
    return found


def page(name: str) -> str:
    """The page as it should be. Raises ValueError where it lacks the comments of a table."""
    text = (ROOT / name).read_text()
    for table, lines in PAGES[name].items():
        text = replaced(text, f"{COMMAND}, {table}", lines(read), name)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is out of date")
    options = parser.parse_args(argv)
    pages = {name: page(name) for name in PAGES}
    stale = [name for name in PAGES if pages[name] != (ROOT / name).read_text()]
    for name in stale:
        if options.check:
            print(f"{name} does not show what is recorded: run `{COMMAND}`", file=sys.stderr)
        else:
            write_text(ROOT / name, pages[name])
            print(f"wrote {name}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    run_command(main)
