"""python -m benchmarks.quality: what fewer steps and the tiny decoder cost in quality, for the weights of a repository.

Measures the latents that exist, and takes the times. --generate first makes the missing latents, on all cores; on two
that takes half an hour. The same command continues an interrupted run: latents and their figures are kept in --latents.
Writes quality.json, the tables in quality.md, quality.png and quality-slices.png, and the chart presets.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import ROOT
from benchmarks.harness.command import parser, read_record, write_record
from benchmarks.harness.markdown import Record
from benchmarks.quality.settings import Design, Setting, full, presets, quick
from training.cli import exit_status, run_command

PARTS = ("distance", "time")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    command = parser("benchmarks.quality", __doc__, "repository", "rounds", "quick", rounds=5)
    add = command.add_argument
    add("--latents", type=Path, default=ROOT / "build/quality", help="folder of latents (default: build/quality)")
    add("--images", type=int, help="images of each preset (default: 200)")
    add("--sweep-images", type=int, help="images of each sampler, grid and number of steps (default: 16)")
    add("--reference-images", type=int, help="images of the reference, DDIM with 250 steps (default: 40)")
    add("--generate", action="store_true", help="make the latents that are missing first")
    add("--only", choices=PARTS, nargs="+", default=PARTS, help="what to measure (default: both)")
    add("--real", type=Path, help="folder of training.evaluation.slices (default: out/eval/real, if there)")
    add("--features", type=Path, help="feature extractor, as in training.evaluation (default: the shipped encoder)")
    add("--out", type=Path, help="write everything into this folder (default: benchmarks and docs)")
    arguments = command.parse_args(argv)
    counts = [arguments.images, arguments.sweep_images, arguments.reference_images, arguments.rounds]
    if any(count is not None and count < 1 for count in counts):
        command.error("images and rounds must be 1 or more")
    if arguments.quick and arguments.out is None:
        command.error("--quick needs --out: its figures mean nothing, and would replace those that do")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, generate, measure, report; returns the exit status."""
    arguments = _parse(argv)

    from server.errors import ServerError

    try:
        return exit_status(lambda: _run(arguments), "interrupted: the same command continues from here")
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> None:
    from benchmarks import report
    from benchmarks.quality.latents import generate
    from benchmarks.serving import presets_chart
    from benchmarks.tables.quality import presets as presets_table
    from benchmarks.tables.quality import sweep
    from training.files import write_text

    data, docs = (arguments.out or ROOT / name for name in ("benchmarks", "docs"))
    design = _design(arguments)
    if arguments.generate:
        generate(arguments.repository, arguments.latents, design)
    if "distance" in arguments.only:
        _keep(data / "quality.json", "distance", _distance(arguments, design, docs))
    if "time" in arguments.only:
        _keep(data / "quality.json", "time", _time(arguments))
    record = read_record(data / "quality.json")
    lines = [*presets_table(record), *(["", *sweep(record["distance"])] if "distance" in record else [])]
    print("\n".join(lines))
    if arguments.out is None:
        presets_chart.draw_recorded()
        report.main([])
    else:
        write_text(docs / "quality.md", "\n".join(lines) + "\n")


def _design(arguments: argparse.Namespace) -> Design:
    """As asked for, without what the repository lacks."""
    design = quick() if arguments.quick else full()
    counts = {name: getattr(arguments, name) for name in ("images", "sweep_images", "reference_images")}
    design = replace(design, **{name: count for name, count in counts.items() if count is not None})
    model = read_record(arguments.repository / "mri_ldm" / "1" / "model.json")
    aligned = bool(model.get("aligned_timesteps"))
    tiny = (arguments.repository / "vae_decoder_tiny").is_dir()
    for there, what in ((aligned, "aligned timesteps"), (tiny, "tiny decoder")):
        if not there:
            print(f"{arguments.repository} has no {what}: what needs it is left out", flush=True)
    return design.served(aligned, tiny)


def _distance(arguments: argparse.Namespace, design: Design, docs: Path) -> Record:
    from benchmarks.harness.machine import describe
    from benchmarks.quality.curves import draw_curves, draw_slices
    from benchmarks.quality.distances import compare
    from benchmarks.quality.features import Measurer, measure_all
    from training.evaluation import ENCODER
    from training.evaluation.slices import read_slices

    machine = describe()
    measurer = Measurer(arguments.latents, arguments.repository, arguments.features or ENCODER)
    folder, real, slices = arguments.real or ROOT / "out" / "eval" / "real", None, None
    if arguments.real or folder.is_dir():
        real, slices = measurer.real(read_slices(folder).images)
    else:
        print(f"no distances to real slices: {folder} is missing; docs/quality.md says how to make it", flush=True)
    compared = compare(measure_all(measurer, arguments.latents, design), design, real)
    facts = {"machine": machine, "features": measurer.origin, "digest": measurer.digest, "real_slices": slices}
    record = facts | {"baseline": design.baseline.name} | compared
    draw_curves(record, docs / "quality.png")
    draw_slices(measurer.images, _shown(design), docs / "quality-slices.png")
    return record


def _shown(design: Design) -> list[Setting]:
    """The preset `fast` by its number of steps, between all presets and the reference."""
    fast = presets()["fast"]
    like = [setting for setting in design.sweep if replace(setting, steps=fast.steps) == fast]
    return list(dict.fromkeys([*like, *design.presets, design.reference]))


def _time(arguments: argparse.Namespace) -> Record:
    """Seconds of each preset, in turns; of the reference once. With the digest of the weights that were served.

    They are a user's: from the client's call to the array, one image at a time on an idle server.
    """
    from benchmarks.harness.machine import describe
    from benchmarks.harness.timing import compare, in_turns
    from brats_ldm_client import Client, InvalidRequest
    from server.process import TritonServer

    machine, tell = describe(), partial(print, flush=True)
    with TritonServer(arguments.repository) as server, Client(server.grpc_url, rows_per_request=1) as client:
        server.probe()
        calls = {name: partial(client.generate, [1], preset=name) for name in presets() if name != "reference"}
        for name in list(calls):  # warm-up: memory is allocated and kernels are chosen
            try:
                calls[name]()
            except InvalidRequest as error:
                print(f"{name} is left out: {error}", flush=True)
                del calls[name]
        taken = in_turns(calls, arguments.rounds, report=tell)
        if not arguments.quick:
            taken |= in_turns({"reference": partial(client.generate, [1], preset="reference")}, 1, report=tell)
        times, digest = compare(taken, "standard"), client.info().model_digest
    return {"machine": machine, "baseline": "standard", "presets": times, "digest": digest}


def _keep(path: Path, part: str, result: Record) -> None:
    """Write `part`, beside the other part if that is of the same weights."""
    kept = {name: value for name, value in read_record(path).items() if value["digest"] == result["digest"]}
    write_record(path, kept | {part: result})


if __name__ == "__main__":
    run_command(main)
