"""python -m benchmarks.quality: what fewer steps cost in quality and save in time, for the weights of a repository.

Measures the latents that exist, and takes the times. --generate first makes the missing latents, which takes hours on a
CPU. The same command continues an interrupted run: latents and their figures are kept in --latents. Writes
quality.json, the tables in quality.md, quality.png and quality-slices.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import ROOT
from benchmarks.harness.command import parser, read_record, write_record
from benchmarks.harness.markdown import Record
from benchmarks.quality.settings import FULL, QUICK, Design
from training.cli import exit_status, run_command

PARTS = ("distance", "time")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    command = parser("benchmarks.quality", __doc__, "repository", "rounds", "quick", rounds=5)
    add = command.add_argument
    add("--latents", type=Path, default=ROOT / "build/quality", help="folder of latents (default: build/quality)")
    add("--images", type=int, default=200, help="most images of each setting (default: %(default)s)")
    add("--generate", action="store_true", help="make the latents that are missing first")
    add("--only", choices=PARTS, nargs="+", default=PARTS, help="what to measure (default: both)")
    add("--real", type=Path, help="folder of training.evaluation.slices (default: out/eval/real, if there)")
    add("--features", type=Path, help="feature extractor, as in training.evaluation (default: the shipped encoder)")
    add("--out", type=Path, help="write everything into this folder (default: benchmarks and docs)")
    arguments = command.parse_args(argv)
    if arguments.images < 1 or arguments.rounds < 1:
        command.error("--images and --rounds must be 1 or more")
    if arguments.quick and arguments.out is None:
        command.error("--quick needs --out: its figures mean nothing, and would replace those that do")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, generate, measure, report; returns the exit status."""
    arguments = _parse(argv)
    design = QUICK if arguments.quick else FULL

    from server.errors import ServerError

    try:
        return exit_status(lambda: _run(arguments, design), "interrupted: the same command continues from here")
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace, design: Design) -> None:
    from benchmarks import report
    from benchmarks.quality.curves import draw_curves
    from benchmarks.quality.latents import generate
    from benchmarks.tables.quality import lines
    from training.files import write_text

    data, docs = (arguments.out or ROOT / name for name in ("benchmarks", "docs"))
    if arguments.generate:
        generate(arguments.repository, arguments.images, arguments.latents, design)
    if "distance" in arguments.only:
        _keep(data / "quality.json", "distance", _distance(arguments, design, docs / "quality-slices.png"))
    if "time" in arguments.only:
        _keep(data / "quality.json", "time", _time(arguments, design))
    record = read_record(data / "quality.json")
    if "distance" in record:
        draw_curves(record, docs / "quality.png")
    text = "\n".join(lines(record))
    print(text)
    if arguments.out is None:
        report.main([])
    else:
        write_text(docs / "quality.md", text + "\n")


def _distance(arguments: argparse.Namespace, design: Design, picture: Path) -> Record:
    from benchmarks.harness.machine import describe
    from benchmarks.quality.curves import draw_slices
    from benchmarks.quality.distances import compare
    from benchmarks.quality.features import Measurer, measure_all
    from training.evaluation import ENCODER
    from training.evaluation.slices import read_slices

    machine = describe()
    measurer = Measurer(arguments.latents, arguments.repository, arguments.features or ENCODER, design)
    folder, real = arguments.real or ROOT / "out" / "eval" / "real", None
    if arguments.real or folder.is_dir():
        real = measurer.real(read_slices(folder).images)
    else:
        print(f"no distances to real slices: {folder} is missing; docs/quality.md says how to make it", flush=True)
    measured = measure_all(measurer, arguments.latents, design, arguments.images)
    compared = compare(measured, design, real)
    draw_slices(measurer.images, [setting for setting in design.all if setting in measured], picture)
    return {"machine": machine, "features": measurer.origin, "digest": measurer.digest} | compared


def _time(arguments: argparse.Namespace, design: Design) -> Record:
    """Seconds of each setting, in turns; those with all steps once. With the digest of the weights that were served.

    They are a user's: from the client's call to the array, one image at a time on an idle server.
    """
    from benchmarks.harness.machine import describe
    from benchmarks.harness.timing import compare, in_turns
    from brats_ldm_client import Client
    from server.process import TritonServer

    machine, tell = describe(), partial(print, flush=True)
    with TritonServer(arguments.repository) as server, Client(server.grpc_url, rows_per_request=1) as client:
        server.probe()
        one = {
            setting: partial(client.generate, [1], steps=setting.steps, sampler=setting.sampler)
            for setting in design.all
        }
        one[design.baseline]()  # warm-up: memory is allocated and kernels are chosen
        few = {setting.name: one[setting] for setting in design.fewer}
        all_steps = {setting.name: one[setting] for setting in (design.reference, design.ancestral)}
        taken = in_turns(few, arguments.rounds, report=tell) | in_turns(all_steps, 1, report=tell)
        times, digest = compare(taken, design.baseline.name), client.info().model_digest
    return {"machine": machine, "baseline": design.baseline.name, "settings": times, "digest": digest}


def _keep(path: Path, part: str, result: Record) -> None:
    """Write `part`, beside the other part if that is of the same weights."""
    kept = {name: value for name, value in read_record(path).items() if value["digest"] == result["digest"]}
    write_record(path, kept | {part: result})


if __name__ == "__main__":
    run_command(main)
