"""python -m benchmarks.bulk: images a second beside the bare server, and a run that loses one of its two servers.

rate: `brats-ldm bulk` as a process of its own, from its start to its summary page, in turns with Triton's own client,
which sends the same requests and drops the answers. failover: two servers; one is killed when a third of the shards is
written. The folder is then verified, and read with nibabel, pydicom and webdataset; dciodvfy checks every DICOM file.

Nothing else may run meanwhile. Half an hour. The record goes into benchmarks/bulk.json, with --quick into --work.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import ROOT
from benchmarks.harness.command import heed_sigterm, parser, read_record, write_record
from training.cli import run_command


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    command = parser("benchmarks.bulk", __doc__, "repository", "profile", "quick")
    command.add_argument("--again", action="store_true", help="measure again what --work has recorded")
    command.add_argument("--work", type=Path, help="folder for recorded parts and images (default: build/bulk)")
    arguments = command.parse_args(argv)
    arguments.work = arguments.work or ROOT / "build" / ("bulk-quick" if arguments.quick else "bulk")
    arguments.command = shlex.join(["python", "-m", "benchmarks.bulk", *(sys.argv[1:] if argv is None else argv)])
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print; returns the exit status."""
    arguments = _parse(argv)

    from benchmarks.bulk import failover, rate
    from benchmarks.harness.machine import describe
    from benchmarks.harness.sections import left, run_sections
    from benchmarks.tables.bulk import tables

    quick = arguments.quick
    where = arguments.repository, arguments.profile, arguments.work
    sections = {
        "rate": partial(rate.measure, *where, rate.QUICK if quick else rate.FULL),
        "failover": partial(failover.measure, *where, failover.QUICK if quick else failover.FULL),
    }
    to_measure = left(sections, arguments.work, arguments.again)
    facts = {"command": arguments.command, "profile": arguments.profile}
    failed = run_sections(to_measure, arguments.work, lambda: {"machine": describe(), **facts}, lambda: None)
    if failed:
        print(f"error: these parts failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    record = {name: read_record(arguments.work / f"{name}.json") for name in sections}
    write_record((arguments.work if quick else ROOT / "benchmarks") / "bulk.json", record)
    print("\n".join(tables(record)))
    return 0


if __name__ == "__main__":
    heed_sigterm()
    run_command(main)
