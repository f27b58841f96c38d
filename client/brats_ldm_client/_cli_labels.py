"""`brats-ldm labels`: its options, and what it does: a library of label maps from training data."""

from __future__ import annotations

import argparse
import sys
from typing import Any

_COUNT = 1000


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "labels",
        help="make a library of label maps from training data, for --labels and --draw-labels",
        description="Make a library of label maps, each with the outline of its brain, from slices of "
        "Task01_BrainTumour that show a lesion. It needs no server. The library holds labels of patients, if the data "
        "do: treat it as you treat them.",
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="folder that holds Task01_BrainTumour")
    parser.add_argument("--out", required=True, metavar="FILE", help="the library, an .npz file")
    parser.add_argument(
        "--count", type=int, default=_COUNT, metavar="N", help="slices at most, drawn at random (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other slices (%(default)s)")
    parser.add_argument(
        "--section",
        choices=("training", "validation", "all"),
        default="training",
        help="volumes that are used; the validation section is the fifth that training holds out (%(default)s)",
    )
    parser.set_defaults(run=_labels, check=_check)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.count < 1:
        parser.error(f"--count must be at least 1, not {args.count}")
    if not args.out.endswith(".npz"):
        parser.error(f"--out is {args.out}: a library is an .npz file")


def _labels(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .labels import make_library

    with tqdm(unit="file", file=sys.stderr, disable=None) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        library = make_library(args.data, args.out, args.count, section=args.section, seed=args.seed, on_volume=report)
    print(f"{len(library)} label maps with their brains, sha256:{library.sha256}: {args.out}")
    return 0
