"""python -m benchmarks.scale: what slow servers and crashes cost, whether images are lost, what a large run needs.

fleet: 200 servers and 200 workers in simulated time, by policy, with servers that are slow, freeze or crash and workers
that die. folder: the same, played on a real folder by processes, hundreds of which are killed. sizes: bytes, files and
CPU seconds of an image, a shard and a folder, from a server and the real client. paper: what the tables of large runs
assume beside these. engines: runs by Ray and by Dask that lose a worker and a server. servers: a second server.
unequal: one of two servers is slow, without and with HAProxy.

Three quarters of an hour. Nothing else may run during servers and unequal. The record goes into benchmarks/scale.json
and the picture into docs/fleet.png, with --quick into --work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks import ROOT
from benchmarks.harness import parts
from benchmarks.harness.command import heed_sigterm
from training.cli import run_command


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
    arguments = parts.parse("scale", __doc__, argv)

    from benchmarks.scale.plot import draw
    from benchmarks.tables import scale, scale_runs

    record = parts.measure("scale", arguments, _sections(arguments))
    if record is None:
        return 1
    draw(record["fleet"]["result"], (arguments.work if arguments.quick else ROOT / "docs") / "fleet.png")
    print("\n".join([*scale.tables(record), *scale_runs.tables(record)]))
    return 0


if __name__ == "__main__":
    heed_sigterm()
    run_command(main)
