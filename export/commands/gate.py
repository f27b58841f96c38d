"""The command `gate`: whether OpenVINO may serve these weights, in each of its precisions."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from export.commands.options import add_image_options, report_problems
from export.parity.limits import LIMITS, PRECISIONS
from training.evaluation import ENCODER, FEWEST

if TYPE_CHECKING:
    from export.commands.options import Commands


def add_command(commands: Commands) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "gate",
        help="decide whether OpenVINO may serve these weights, from the images of many seeds",
        description="Compare the profile openvino with float32 in PyTorch: PSNR and SSIM of the images of the same "
        "seeds, and the Frechet distance of all images to real slices. The exit status is 1 if a precision misses a "
        "limit, or does not run on this machine.",
    )
    parser.add_argument("snapshot", type=Path, help="snapshot folder of the weights")
    parser.add_argument("repository", type=Path, help="repository exported from it")
    parser.add_argument(
        "--real",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder of real slices, written by training.evaluation.slices",
    )
    parser.add_argument(
        "--features",
        type=Path,
        metavar="PATH",
        default=ENCODER,
        help="encoder for the distances, as in training.evaluation (default: %(default)s)",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS),
        help="precisions to compare; bf16-decoder: decoder in bf16, UNet in float32 (default: all three)",
    )  # fmt: skip
    add_image_options(parser, seeds=200)
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.seeds < FEWEST or arguments.batch < 1 or not 1 <= arguments.steps <= 1000:
        parser.error(f"--seeds must be {FEWEST} or more, --batch 1 or more, --steps 1 to 1000")
    return report_problems(lambda: _measure(arguments))


def _measure(arguments: argparse.Namespace) -> list[str]:
    from export.manifest import read_manifest, read_model
    from export.parity.gate import Frechet, candidates, measure, table
    from export.parity.record import write_record
    from training.checkpoint import load_snapshot
    from training.evaluation.slices import read_slices

    weights = read_manifest(arguments.repository)["name"]
    real = read_slices(arguments.real).images
    if len(real) < FEWEST:
        raise ValueError(f"--real {arguments.real} holds {len(real)} slices: at least {FEWEST} are needed")
    runnable, not_run = candidates(arguments.repository, arguments.precision)
    if not runnable:
        return not_run
    distance = Frechet(real, arguments.features)
    reference, records = measure(
        load_snapshot(arguments.snapshot),
        runnable,
        distance,
        seeds=range(arguments.seeds),
        steps=arguments.steps,
        batch=arguments.batch,
    )
    print(table(records))
    if arguments.out is not None:
        setting = {
            "weights": weights,
            "digest": read_model(arguments.repository)["digest"],
            "seeds": arguments.seeds,
            "steps": arguments.steps,
            "real_slices": len(real),
            "features": distance.origin,
            "limits": LIMITS,
            "reference": {"runtime": "PyTorch", "precision": "fp32", "frechet": reference},
        }
        write_record(arguments.out, setting, records)
    missed = [f"{entry['runtime']} {entry['precision']}: {text}" for entry in records for text in entry["problems"]]
    return missed + not_run
