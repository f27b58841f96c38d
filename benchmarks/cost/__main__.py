"""python -m benchmarks.cost: how time and memory grow, beside what one `brats-ldm calibrate` on the same server says.

Seconds against steps, images of a request, clients, images of a call; memory against rows in flight and the decoder's
batch. Each part is kept in a file of --work when it is done, and a run that was stopped continues; --again measures all
anew. Nothing else may run meanwhile. The record and the picture of the committed weights go into benchmarks and docs,
those of others into --work.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks import COMMITTED, ROOT
from benchmarks.harness.command import heed_sigterm, parser, read_record, write_record
from benchmarks.harness.markdown import Record
from training.cli import run_command


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    command = parser("benchmarks.cost", __doc__, "repository", "profile", "quick")
    command.add_argument("--again", action="store_true", help="measure again what --work has recorded")
    command.add_argument("--work", type=Path, help="folder for recorded parts (default: one per weights in build/cost)")
    arguments = command.parse_args(argv)
    arguments.model = read_record(arguments.repository / "mri_ldm" / "1" / "model.json")
    if not arguments.model:
        command.error(f"--repository: no mri_ldm/1/model.json in {arguments.repository}: give an exported repository")
    kind = f"{arguments.model['digest'].removeprefix('sha256:')[:12]}-{arguments.profile}"
    default = ROOT / "build" / "cost" / (f"{kind}-quick" if arguments.quick else kind)
    arguments.work = arguments.work or default
    arguments.command = shlex.join(["python", "-m", "benchmarks.cost", *(sys.argv[1:] if argv is None else argv)])
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, report; returns the exit status."""
    arguments = _parse(argv)

    from benchmarks.cost.fit import assemble
    from benchmarks.harness.machine import describe
    from benchmarks.harness.sections import left, run_sections

    work = arguments.work
    facts = {"command": arguments.command, "model": arguments.model["name"], "profile": arguments.profile}
    with ExitStack() as stack:
        sections = _sections(arguments, stack)
        to_measure = left(sections, work, arguments.again)
        failed = run_sections(to_measure, work, lambda: {"machine": describe(), **facts}, lambda: None)
    if failed:
        print(f"error: these parts failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    _write(assemble({name: read_record(work / f"{name}.json") for name in sections}), arguments)
    return 0


def _write(record: Record, arguments: argparse.Namespace) -> None:
    from benchmarks import report
    from benchmarks.cost.panels import draw
    from benchmarks.tables.cost import tables

    committed = arguments.repository == COMMITTED and not arguments.quick
    data, docs = (ROOT / "benchmarks", ROOT / "docs") if committed else (arguments.work, arguments.work)
    write_record(data / "cost.json", record)
    draw(record, docs / "cost.png")
    print("\n".join(tables(record)))
    if committed:
        report.main([])


def _sections(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, Callable[[], Any]]:
    """By name, in order. The times share one server, started for the first of them; `stack` stops it."""
    from benchmarks.cost import points
    from benchmarks.tables.cost import AXES
    from server.process import TritonServer

    amount = points.QUICK if arguments.quick else points.FULL
    unrolled = 1 if arguments.profile == "torch" else max(1, arguments.model.get("steps_per_call", 1))

    @cache
    def running() -> TritonServer:
        server = stack.enter_context(TritonServer(arguments.repository, arguments.profile))
        server.probe()
        return server

    def measure_memory(part: Callable[..., Any]) -> Any:
        stack.close()  # each starts a server of its own
        return part(arguments.repository, arguments.profile, amount)

    return {
        "calibration": lambda: points.calibration(running(), amount, unrolled),
        **{axis: partial(lambda axis: points.panel(running(), amount, axis), axis) for axis in AXES},
        "memory": partial(measure_memory, points.memory_by_rows),
        "decoder": partial(measure_memory, points.memory_by_decode_batch),
    }


if __name__ == "__main__":
    heed_sigterm()
    run_command(main)
