"""Run `make demo` and `make test`, and keep the lines that README shows, with machine and date.

benchmarks/commands.json and the pages are written as soon as a command has ended well.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks import ROOT, report
from benchmarks.harness.command import parser, read_record, write_record
from benchmarks.harness.machine import describe
from training.cli import run_command

OUT = ROOT / "benchmarks" / "commands.json"
SHOWN = {
    "demo": ("Starting ", "It answers ", "8 synthetic "),
    "test": ("precisions that ran ", "and that could not"),
}
"""By target: how the kept lines begin. Of the tests the last line is kept too."""


def shown(target: str, printed: Sequence[str]) -> list[str]:
    """The lines to keep."""
    kept = [line for line in printed if line.startswith(SHOWN[target])]
    return [*kept, printed[-1].strip("= ")] if target == "test" else kept


def run(command: Sequence[str]) -> tuple[int, list[str]]:
    """Exit status and printed lines, which are passed on as they come."""
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines += [line.rstrip()] if line.strip() else []
    return process.returncode, lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write; returns the exit status."""
    command = parser("benchmarks.commands", __doc__)
    command.add_argument("targets", nargs="*", metavar="TARGET", help="commands to run: demo, test (default: both)")
    targets = command.parse_args(argv).targets or list(SHOWN)
    if unknown := [target for target in targets if target not in SHOWN]:
        command.error(f"no target {unknown[0]!r}: {', '.join(SHOWN)}")
    for target in targets:
        machine, began = describe(), time.monotonic()
        status, lines = run(["make", target])
        if status:
            print(f"error: `make {target}` ended with {status}: nothing is recorded", file=sys.stderr)
            return 1
        seconds = round(time.monotonic() - began, 1)
        entry = {"machine": machine, "seconds": seconds, "lines": shown(target, lines)}
        write_record(OUT, read_record(OUT) | {f"make {target}": entry})
        report.main([])
    return 0


if __name__ == "__main__":
    run_command(main)
