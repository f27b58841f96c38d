"""python -m benchmarks.quality: what fewer steps cost in quality and save in time, for the weights of a repository.

Measures the latents that exist, and takes the times. --generate first makes the missing latents, which takes hours on a
CPU. The same command continues an interrupted run: latents and their figures are kept in --latents. Writes
quality.json, the tables in quality.md, quality.png and quality-slices.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import COMMITTED, ROOT
from benchmarks.quality.settings import FULL, QUICK, Plan
from training.cli import run_command

PARTS = ("distance", "time")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--repository", type=Path, default=COMMITTED, help="of the weights (default: the demo weights)")
    add("--latents", type=Path, default=ROOT / "build/quality", help="folder of latents (default: build/quality)")
    add("--images", type=int, default=200, help="of each setting, at most (default: %(default)s)")
    add("--generate", action="store_true", help="make the latents that are missing first")
    add("--only", choices=PARTS, nargs="+", default=PARTS, help="default: both")
    add(
        "--real", type=Path, help="real slices (python -m training.evaluation.slices); default: out/eval/real, if there"
    )
    add("--features", type=Path, help="as in training.evaluation (default: its encoder)")
    add("--rounds", type=int, default=5, help="of the times (default: %(default)s)")
    add("--quick", action="store_true", help="try the benchmark itself: hardly any steps")
    add("--out", type=Path, help="one folder for all that is written (default: benchmarks and docs)")
    arguments = parser.parse_args(argv)
    if arguments.images < 1 or arguments.rounds < 1:
        parser.error("--images and --rounds must be 1 or more")
    if arguments.quick and arguments.out is None:
        parser.error("--quick needs --out: its figures mean nothing, and would replace those that do")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, generate, measure, report; returns the exit status."""
    arguments = _parse(argv)

    from server.errors import ServerError

    try:
        _run(arguments, QUICK if arguments.quick else FULL)
    except (ValueError, OSError, ServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command continues from here", file=sys.stderr)
        return 130
    return 0


def _run(arguments: argparse.Namespace, plan: Plan) -> None:
    from benchmarks import report
    from benchmarks.quality.latents import generate
    from benchmarks.quality.plot import draw_curves
    from benchmarks.tables.quality import lines
    from training.files import write_text

    data, docs = (arguments.out or ROOT / name for name in ("benchmarks", "docs"))
    if arguments.generate:
        generate(arguments.repository, arguments.images, arguments.latents, plan)
    if "distance" in arguments.only:
        _keep(data / "quality.json", "distance", _distance(arguments, plan, docs / "quality-slices.png"))
    if "time" in arguments.only:
        _keep(data / "quality.json", "time", _time(arguments, plan))
    record = json.loads((data / "quality.json").read_text())
    if "distance" in record:
        draw_curves(record, docs / "quality.png")
    text = "\n".join(lines(record))
    print(text)
    if arguments.out is None:
        report.main([])
    else:
        write_text(docs / "quality.md", text + "\n")


def _distance(arguments: argparse.Namespace, plan: Plan, picture: Path) -> dict[str, Any]:
    from benchmarks.harness.machine import describe
    from benchmarks.quality.distances import compare
    from benchmarks.quality.measure import Measurer, measure_all
    from benchmarks.quality.plot import draw_slices
    from training.evaluation import ENCODER
    from training.evaluation.slices import read_slices

    machine = describe()
    measurer = Measurer(arguments.latents, arguments.repository, arguments.features or ENCODER, plan)
    folder, real = arguments.real or ROOT / "out" / "eval" / "real", None
    if arguments.real or folder.is_dir():
        real = measurer.real(read_slices(folder).images)
    else:
        print(f"no distances to real slices: {folder} is missing; docs/quality.md says how to make it", flush=True)
    measured = measure_all(measurer, arguments.latents, plan, arguments.images)
    compared = compare(measured, plan, real)
    draw_slices(measurer.images, [setting for setting in plan.all if setting in measured], picture)
    return {"machine": machine, "features": measurer.origin, "digest": measurer.digest} | compared


def _time(arguments: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    from benchmarks.harness.machine import describe
    from benchmarks.quality.measure import times

    machine = describe()
    return {"machine": machine} | times(arguments.repository, plan, arguments.rounds, partial(print, flush=True))


def _keep(path: Path, part: str, result: dict[str, Any]) -> None:
    """Write `part`, beside the other part if that is of the same weights."""
    from training.files import write_text

    old = json.loads(path.read_text()) if path.is_file() else {}
    kept = {name: value for name, value in old.items() if value["digest"] == result["digest"]}
    write_text(path, json.dumps(kept | {part: result}, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
