"""Write the figures of all pages from their records: python -m benchmarks.report.

A figure stands between two comments that name this command and the table, in any Markdown page of the repository.
Nothing is measured; see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks import ROOT
from benchmarks.harness.markdown import BEGIN, Lines, Reader, Record, filled
from benchmarks.tables import bulk, cost, micro, quality, runs, scale, scale_runs, serving, speed
from training.cli import run_command
from training.files import write_text

BLOCKS: dict[str, Callable[[Reader], Lines]] = {
    "headline": speed.headline,
    "targets": speed.targets,
    "openvino": speed.openvino,
    "two-commands": runs.two_commands,
    "reliability": runs.reliability,
    "mixed-load": serving.mixed_load,
    "steps-a-call": serving.mixed_steps,
    "presets": serving.presets,
    "quality": quality.quality,
    "quality-sweep": quality.quality_sweep,
    "cost": cost.cost,
    "bulk": bulk.bulk,
    "scale-servers": scale.scale_servers,
    "scale-sizes": scale.scale_sizes,
    "scale-limits": scale.scale_limits,
    "scale-fleet": scale.scale_fleet,
    "scale-folder": scale.scale_folder,
    "scale-efficiency": scale_runs.scale_efficiency,
    "scale-unequal": scale_runs.scale_unequal,
    "scale-engines": scale_runs.scale_engines,
    "rewrite": micro.rewrite,
    "cpu-path": micro.cpu_path,
    "loop": micro.loop,
    "training-speed": micro.training_speed,
}
"""The tables by the name in a page's comment."""


def read(name: str) -> Record:
    """The record benchmarks/`name`.json."""
    record: Record = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())
    return record


def pages() -> list[str]:
    """The Markdown pages of the checkout that have figures."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file() and BEGIN in (ROOT / name).read_text()]


def page(name: str) -> str:
    """The page as it should be. Raises ValueError for figures without an end, or of no known name."""
    blocks = {block: partial(lines, read) for block, lines in BLOCKS.items()}
    return filled((ROOT / name).read_text(), name, blocks)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is out of date")
    options = parser.parse_args(argv)
    written = {name: page(name) for name in pages()}
    stale = [name for name, text in written.items() if text != (ROOT / name).read_text()]
    for name in stale:
        if options.check:
            print(f"{name} does not show what is recorded: run `python -m benchmarks.report`", file=sys.stderr)
        else:
            write_text(ROOT / name, written[name])
            print(f"wrote {name}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    run_command(main)
