"""python -m benchmarks.bulk: images a second beside the bare server, and a run that loses one of its two servers.

rate: `brats-ldm bulk` as a process of its own, from its start to its summary page, in turns with Triton's own client,
which sends the same requests and drops the answers. failover: two servers; one is killed when a third of the shards is
written. The folder is then verified, and read with nibabel, pydicom and webdataset; dciodvfy checks every DICOM file.

Nothing else may run meanwhile. Half an hour. The record goes into benchmarks/bulk.json, with --quick into --work.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.harness import parts
from benchmarks.harness.command import heed_sigterm
from training.cli import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print; returns the exit status."""
    arguments = parts.parse("bulk", __doc__, argv)

    from benchmarks.bulk import failover, rate
    from benchmarks.tables.bulk import tables

    quick = arguments.quick
    where = arguments.repository, arguments.profile, arguments.work
    measured = {
        "rate": partial(rate.measure, *where, rate.QUICK if quick else rate.FULL),
        "failover": partial(failover.measure, *where, failover.QUICK if quick else failover.FULL),
    }
    record = parts.measure("bulk", arguments, measured)
    if record is None:
        return 1
    print("\n".join(tables(record)))
    return 0


if __name__ == "__main__":
    heed_sigterm()
    run_command(main)
