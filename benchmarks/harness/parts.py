"""A benchmark of several parts: each is recorded in a folder when it is done, and all of them then in one record."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.harness.command import parser, read_record, write_record
from benchmarks.harness.markdown import Record


def parse(name: str, description: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of `python -m benchmarks.NAME`."""
    command = parser(f"benchmarks.{name}", description, "repository", "profile", "quick")
    command.add_argument("--again", action="store_true", help="measure again what --work has recorded")
    command.add_argument("--work", type=Path, help=f"folder for recorded parts and images (default: build/{name})")
    arguments = command.parse_args(argv)
    arguments.work = arguments.work or ROOT / "build" / (f"{name}-quick" if arguments.quick else name)
    arguments.command = shlex.join(["python", "-m", f"benchmarks.{name}", *(sys.argv[1:] if argv is None else argv)])
    return arguments


def measure(name: str, arguments: argparse.Namespace, parts: Mapping[str, Callable[[], Any]]) -> Record | None:
    """Run the parts that are not recorded. Writes and returns the whole record; None if a part failed."""
    from benchmarks.harness.machine import describe
    from benchmarks.harness.sections import left, run_sections

    to_measure = left(parts, arguments.work, arguments.again)
    facts = {"command": arguments.command, "profile": arguments.profile}
    failed = run_sections(to_measure, arguments.work, lambda: {"machine": describe(), **facts}, lambda: None)
    if failed:
        print(f"error: these parts failed: {', '.join(failed)}", file=sys.stderr)
        return None
    record = {part: read_record(arguments.work / f"{part}.json") for part in parts}
    write_record((arguments.work if arguments.quick else ROOT / "benchmarks") / f"{name}.json", record)
    return record
