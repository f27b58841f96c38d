"""The command `parity`: a repository's networks and images in every precision and runtime, against float32."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from export.commands.options import add_image_options, report_problems

if TYPE_CHECKING:
    from export.commands.options import Commands


def add_command(commands: Commands) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "parity",
        help="measure how far a repository's networks and images are from PyTorch in float32",
        description="Compare a repository's networks and images with PyTorch in float32, in every precision and "
        "runtime that runs here. The exit status is 1 if something differs by more than its precision allows.",
    )
    parser.add_argument(
        "snapshot", type=Path, help="snapshot folder; `python -m export from-monai` makes one of MONAI's weights"
    )
    parser.add_argument(
        "repository", type=Path, help="repository exported from it; every ONNX file and plan is measured"
    )
    add_image_options(parser, seeds=16)
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if min(arguments.seeds, arguments.steps, arguments.batch) < 1 or arguments.steps > 1000:
        parser.error("--seeds and --batch must be 1 or more, --steps 1 to 1000")
    return report_problems(lambda: _measure(arguments))


def _measure(arguments: argparse.Namespace) -> list[str]:
    from export.manifest import read_manifest, read_model
    from export.parity.measure import measure, table
    from export.parity.record import write_record
    from training.checkpoint import load_snapshot

    weights = read_manifest(arguments.repository)["name"]
    snapshot = load_snapshot(arguments.snapshot)
    records = measure(snapshot, arguments.repository, range(arguments.seeds), arguments.steps, arguments.batch)
    print(table(records))
    if arguments.out is not None:
        setting = {
            "weights": weights,
            "digest": read_model(arguments.repository)["digest"],
            "seeds": arguments.seeds,
            "steps": arguments.steps,
        }
        write_record(arguments.out, setting, records)
    return [f"{record['runtime']} {record['precision']}: {text}" for record in records for text in record["problems"]]
