"""`brats-ldm verify`: its options, and what it says. Standard library until it runs."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from ._cli_connection import connect, connection_options
from ._cli_sampling import load, load_options

if TYPE_CHECKING:
    from ._client import Client
    from .bulk import Verdict

_SHOWN = 20  # faults
_SAMPLE = 16  # images


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="check a folder of `bulk`: its hashes, and some images that the server makes again",
        description="Check a folder of `brats-ldm bulk`: the hashes of all files, and a random sample of images, "
        "which the server makes again. On one kind of processor they have the same bits. docs/verify.md says what to "
        "do where they have not.",
    )
    parser.add_argument("folder", metavar="DIR", help="the folder")
    parser.add_argument("--sample", type=int, metavar="N", help=f"images to make again ({_SAMPLE})")
    parser.add_argument("--seed", type=int, metavar="N", help="draws the same sample each time (random)")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="allow pixel values to differ by X, for a GPU or another kind of processor; without it no bit may differ",
    )
    parser.add_argument("--hashes-only", action="store_true", help="make no images again; needs no server")
    connection_options(parser, timeout=600.0)
    load_options(parser, concurrency=8, retry=60.0)
    parser.set_defaults(run=_verify, check=_check)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.hashes_only and (args.sample, args.seed, args.tolerance) != (None, None, None):
        parser.error("--hashes-only makes no image: leave out --sample, --seed and --tolerance, or leave out that")
    args.sample = _SAMPLE if args.sample is None else args.sample
    if args.sample < 1:
        parser.error("--sample must be at least 1; --hashes-only makes no image")
    if args.tolerance is not None and not args.tolerance >= 0:
        parser.error("--tolerance must be at least 0")


def _verify(args: argparse.Namespace) -> int:
    from pathlib import Path

    from .bulk.verify import check_sample, manifest_of, prepare_sample

    folder = Path(args.folder)
    plan = manifest_of(folder)["plan"]
    with contextlib.ExitStack() as stack:
        client: Client | None = None
        if not args.hashes_only:
            client = stack.enter_context(connect(args, **load(args)))
            prepare_sample(client, plan)  # before the long part
        verdict = _hashes(args)
        if client is not None:
            sample = check_sample(client, folder, args.sample, args.seed, args.tolerance)
            verdict.seeds, verdict.faults = sample.seeds, verdict.faults + sample.faults
    for fault in verdict.faults[:_SHOWN]:
        print(f"brats-ldm: {fault}", file=sys.stderr)
    if len(verdict.faults) > _SHOWN:
        print(f"brats-ldm: and {len(verdict.faults) - _SHOWN} more", file=sys.stderr)
    print(f"{args.folder}: {_said(verdict, args)}")
    return 0 if verdict.sound else 1


def _hashes(args: argparse.Namespace) -> Verdict:
    from tqdm import tqdm

    from .bulk.verify import check_hashes, total_bytes

    size = total_bytes(args.folder)
    with tqdm(total=size, unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar:
        return check_hashes(args.folder, bar.update)


def _said(verdict: Verdict, args: argparse.Namespace) -> str:
    result = "no fault" if verdict.sound else _counted(len(verdict.faults), "fault")
    made = ""
    if verdict.seeds:
        how = "bit for bit" if args.tolerance is None else f"within {args.tolerance:g}"
        made = f", and made {_counted(len(verdict.seeds), 'image')} again to compare them {how}"
    return (
        f"{result}; read {_counted(verdict.files, 'file')} ({verdict.bytes:,} bytes) in {verdict.shards} of "
        f"{_counted(verdict.plan.shards, 'shard')}{made}"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
