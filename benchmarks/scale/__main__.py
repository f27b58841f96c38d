"""python -m benchmarks.scale: what slow servers and crashes cost, whether images are lost, what a large run needs.

fleet: 200 servers and 200 workers in simulated time, by policy, with servers that are slow, freeze or crash and workers
that die. folder: the same, played on a real folder by processes, hundreds of which are killed. sizes: bytes, files and
CPU seconds of an image, a shard and a folder, from a server and the real client. paper: what the tables of large runs
assume beside these.

Ten minutes. Only seconds of the CPU are measured, so other work may run. The record goes into benchmarks/scale.json and
the picture into docs/fleet.png, with --quick into --work.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.harness.command import heed_sigterm, parser, read_record, write_record
from training.cli import run_command


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    command = parser("benchmarks.scale", __doc__, "repository", "profile", "quick")
    command.add_argument("--again", action="store_true", help="measure again what --work has recorded")
    command.add_argument("--work", type=Path, help="folder for recorded parts and images (default: build/scale)")
    arguments = command.parse_args(argv)
    arguments.work = arguments.work or ROOT / "build" / ("scale-quick" if arguments.quick else "scale")
    arguments.command = shlex.join(["python", "-m", "benchmarks.scale", *(sys.argv[1:] if argv is None else argv)])
    return arguments


def _sections(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """By name, in the order in which they run."""
    from benchmarks.scale import engines, folder, paper, servers, sizes, stragglers, unequal

    quick, work = arguments.quick, arguments.work
    where = arguments.repository, arguments.profile, work
    return {
        "fleet": partial(stragglers.measure, stragglers.QUICK if quick else stragglers.FULL),
        "folder": partial(folder.measure, work, folder.QUICK if quick else folder.FULL),
        "sizes": partial(sizes.measure, *where, sizes.QUICK if quick else sizes.FULL),
        "paper": paper.inputs,
        "engines": partial(engines.measure, *where, engines.QUICK if quick else engines.FULL),
        "servers": partial(servers.measure, *where, servers.QUICK if quick else servers.FULL),
        "unequal": partial(unequal.measure, arguments.repository, work, unequal.QUICK if quick else unequal.FULL),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print; returns the exit status."""
    arguments = _parse(argv)

    from benchmarks.harness.machine import describe
    from benchmarks.harness.sections import left, run_sections
    from benchmarks.scale.plot import draw
    from benchmarks.tables import scale, scale_runs

    sections = _sections(arguments)
    to_measure = left(sections, arguments.work, arguments.again)
    facts = {"command": arguments.command, "profile": arguments.profile}
    failed = run_sections(to_measure, arguments.work, lambda: {"machine": describe(), **facts}, lambda: None)
    if failed:
        print(f"error: these parts failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    record = {name: read_record(arguments.work / f"{name}.json") for name in sections}
    write_record((arguments.work if arguments.quick else ROOT / "benchmarks") / "scale.json", record)
    draw(record["fleet"]["result"], (arguments.work if arguments.quick else ROOT / "docs") / "fleet.png")
    print("\n".join([*scale.tables(record), *scale_runs.tables(record)]))
    return 0


if __name__ == "__main__":
    heed_sigterm()
    run_command(main)
