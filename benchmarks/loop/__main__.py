"""What the served sampling loop costs beside the calls of its network: milliseconds of a step.

    python -m benchmarks.loop --as now --out benchmarks/loop.json
    python -m benchmarks.loop --as demo --own-networks --out benchmarks/loop.json

A tritonserver with the front model of a repository and toy networks that compute next to nothing, and in the same
server a model of bare calls of the same network with the same tensors. What a step takes longer than its share of such
a call is the loop's own: threads, recurrence, noise, bookkeeping. With --own-networks the repository's networks are
served. Nothing else may run meanwhile; the load at the start is recorded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from training.cli import run_command

COMMITTED = ROOT / "model_repository"
STEPS_A_CALL = (1, 5, 10, 25)


def _runs(options: argparse.Namespace) -> Iterator[Any]:
    """The records, as they come."""
    from benchmarks.loop.measure import Amount, Loop, measure
    from benchmarks.loop.repository import write_own, write_toy

    if options.quick:
        amount = Amount(rows=(1, 2), steps=20, rounds=2, seconds=0.05)
    elif options.own_networks:
        amount = Amount(rows=(1, 8), steps=20, rounds=5, seconds=1.0)
    else:
        # So many steps that what a request costs once is nothing beside them.
        amount = Amount(rows=(1, 8, 64), steps=500, rounds=5, seconds=0.5)
    for steps in _steps_a_call(options):
        with tempfile.TemporaryDirectory() as folder:
            if options.own_networks:
                repository = write_own(options.repository, Path(folder))
            else:
                repository = write_toy(options.repository, Path(folder), steps)
            with Loop(repository, options.profile) as loop:
                yield from measure(loop, steps, amount)


def _steps_a_call(options: argparse.Namespace) -> Sequence[int]:
    """The numbers of steps a call to measure; with a repository's own networks, the one that it was exported for."""
    if options.own_networks:
        record = json.loads((options.repository / "mri_ldm" / "1" / "model.json").read_text())
        return [max(1, record.get("steps_per_call", 1))]
    return options.steps_per_call or ((1, 5) if options.quick else STEPS_A_CALL)


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown; milliseconds."""
    lines = [
        "| steps a call | rows | sampler | a step, ms | a bare call, ms | beside it, ms | times its share of a call |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        step, call = record["step_ms"]["median"], record["bare_call_ms"]["median"]
        lines.append(
            f"| {record['steps_a_call']:.1f} | {record['rows']} | {record['sampler']} | {step:.3f} | {call:.3f} "
            f"| {record['beside_call_ms']:.3f} | {record['times_the_call']:.2f} |"
        )
    return "\n".join(lines)


def _code(repository: Path) -> str:
    """The commit of the serving code, "+" where it has changed since; empty outside of a checkout."""
    git = ["git", "-C", str(repository)]
    found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if found.returncode:
        return ""
    changed = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, check=False)
    return found.stdout.strip() + ("+" if changed.stdout else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=COMMITTED, help="whose front model is measured")
    parser.add_argument("--own-networks", action="store_true", help="serve that repository's networks, not toys")
    parser.add_argument("--profile", default="cpu", help="of its own networks (default: %(default)s)")
    parser.add_argument("--steps-per-call", type=int, nargs="+", metavar="K", help="of toys (default: 1 5 10 25)")
    parser.add_argument("--quick", action="store_true", help="try the benchmark itself: few steps, few rows")
    parser.add_argument("--as", dest="name", default="now", help="name in the record: before, now, demo, ...")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep it in this JSON, beside what else it has")
    options = parser.parse_args(argv)
    if not (options.repository / "mri_ldm" / "config.pbtxt").is_file():
        parser.error(f"--repository: no mri_ldm/config.pbtxt in {options.repository}")

    from benchmarks.machine import describe
    from training.files import write_text

    machine, code, records = describe(), _code(options.repository), []
    print(table([]))
    for record in _runs(options):
        records.append(record)
        print(table([record]).splitlines()[-1], flush=True)
    if options.out is not None:
        kept = json.loads(options.out.read_text()) if options.out.is_file() else {}
        networks = "its own" if options.own_networks else "toys"
        kept[options.name] = {"machine": machine, "code": code, "networks": networks, "records": records}
        write_text(options.out, json.dumps(kept, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
